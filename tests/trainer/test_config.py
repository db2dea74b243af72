"""Configurations: what is read, what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import pytest

from solon.trainer.config import (
    RunConfig,
    differences,
    load_config,
    load_run_config,
    model_in,
    shipped_names,
    to_yaml,
)
from solon.trainer.course import stages_of, steps_of
from solon.trainer.errors import ConfigError
from solon.trainer.settings import Settings
from solon.trainer.stage_names import STAGES
from solon.trainer.training import LoraSettings

MINIMAL = """\
constitution: core
models:
  policy: some/model
  critic: some/model
  judge: some/model
  base_for_sft: some/base
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["sandbox", "sandbox-tiny"])
def test_a_shipped_configuration_is_found_by_its_name(name: str) -> None:
    config = load_config(name)
    assert name in shipped_names()
    assert config.run_dir is not None
    assert config.run_dir.endswith(f"runs/{name}")


def test_a_file_overrides_a_few_defaults_and_the_command_line_overrides_the_file(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, MINIMAL + "revisions: {rounds: 2, critic: {max_tokens: 7}}\n")
    config = load_config(path, ["revisions.rounds=3", "sft.learning_rate=1e-4", "run_dir=x"])
    assert config.revisions.rounds == 3
    assert config.revisions.critic.max_tokens == 7
    assert config.revisions.response.max_tokens == 256
    assert config.sft.learning_rate == 1e-4
    assert config.run_dir == str(Path("x").absolute())


def test_an_override_reaches_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "prompts: {red_team: [{source: a.txt}, {source: b.txt}]}\n")
    config = load_config(path, ["prompts.red_team.1.count=5"])
    assert [source.count for source in config.prompts.red_team] == [None, 5]


def test_a_run_may_have_some_of_the_stages_and_they_keep_their_order(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), ["stages=[sft, revisions]"])
    assert stages_of(config) == ("revisions", "sft")
    without_model = ["rl.reward.model=0", "rl.reward.judge=1", "stages=[reward, rl]"]
    assert stages_of(load_config(write(tmp_path, MINIMAL), without_model)) == ("rl",)


def test_later_iterations_repeat_what_can_be_run(tmp_path: Path) -> None:
    def steps(*overrides: str, done: Sequence[str] = ()) -> list[str]:
        config = load_config(write(tmp_path, MINIMAL), ["iterations=2", *overrides])
        return [step.name for step in steps_of(config, is_done=lambda step: step.name in done)]

    second = ["preferences-2", "reward-2", "rl-2"]
    assert steps() == [*STAGES[:-1], *second, "evaluate"]
    assert steps("rl.algorithm=dpo", "stages=[preferences, reward, rl]") == [
        *("preferences", "rl", "preferences-2", "rl-2"),
    ]
    # on a machine that trains nothing
    labels = "stages=[revisions, preferences]"
    assert steps(labels) == ["revisions", "preferences"]
    assert steps(labels, done=["rl"]) == ["revisions", "preferences", "preferences-2"]
    assert steps("stages=[reward, rl]") == ["reward", "rl"]
    assert steps("stages=[reward, rl]", done=["preferences-2"]) == ["reward", "rl", *second[1:]]


def test_what_is_saved_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    config = load_config("sandbox", ["seed=7", "rl.kl_target=2.5"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path) == config
    assert load_config(str(tmp_path)).run_dir == str(tmp_path)


def test_relative_paths_become_absolute_so_that_a_run_resumes_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = "services: {judge: {address: 'judge:1', tls: {ca: certificates/ca.pem}}}\n"
    path = write(tmp_path, MINIMAL + "prompts: {red_team: [mine/red.txt]}\n" + judge)
    monkeypatch.chdir(tmp_path)
    for name in ("core", "sandbox"):
        (tmp_path / name).mkdir()  # a name that ships means what ships
    panel = "preferences.panel.judges={own: ./model, other: sandbox}"
    config = load_config(path, ["models.policy=./model", "models.judge=sandbox", panel])
    assert config.preferences.panel is not None
    assert config.preferences.panel.judges == {"own": str(tmp_path / "model"), "other": "sandbox"}
    assert config.models.judge == "sandbox"
    assert config.prompts.red_team[0].source == str(tmp_path / "mine/red.txt")
    assert config.models.policy == str(tmp_path / "model")
    assert config.models.critic == "some/model"
    assert config.constitution == "core"
    assert config.services.judge.tls is not None
    assert config.services.judge.tls.ca == str(tmp_path / "certificates/ca.pem")


METHODS = {
    "revisions.rounds": (4, 2),
    "revisions.train_on": ("all", "last"),
    "sft.batch_size": (1024, 64),
    "sft.schedule": ("constant", "cosine"),
    "sft.epochs": (1, 1),
    "sft.lora": (None, LoraSettings(rank=32, alpha=64)),
    "sft.precision": ("float32", "bfloat16"),
    "preferences.principles": (1, "all"),
    "preferences.both_orders": (False, True),
    "reward.soft_labels": (True, True),
    "reward.centering": (0.0, 0.01),
    "rl.algorithm": ("ppo", "rloo"),
    "rl.kl_coefficient": (0.001, 0.05),
    "rl.normalise_reward": (False, True),
}


def test_the_methods_differ_as_they_say_and_a_file_may_change_anything_in_them(
    tmp_path: Path,
) -> None:
    paper, modern = (
        load_config(write(tmp_path, f"base: {name}\n{MINIMAL}")) for name in ("paper", "modern")
    )
    found = {key: (attrgetter(key)(paper), attrgetter(key)(modern)) for key in METHODS}
    assert found == METHODS
    own = "sft: {lora: {rank: 8}}\nrl: {algorithm: ppo}\n"
    changed = load_config(write(tmp_path, f"base: modern\n{MINIMAL}{own}"), ["sft.epochs=3"])
    assert changed.sft.lora == LoraSettings(rank=8, alpha=64)
    assert changed.sft.epochs == 3
    assert set(differences(modern, changed)) == {
        "rl.algorithm: 'rloo' -> 'ppo'", "sft.epochs: 1 -> 3", "sft.lora.rank: 32 -> 8"
    }  # fmt: skip
    # what is saved is the whole, so that a run does not change with the method
    (tmp_path / "config.yaml").write_text(to_yaml(modern))
    assert load_run_config(tmp_path) == modern


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: papre\n", "config.yml:1: base: expected one of modern, paper, got 'papre'. Did"),
        ("base: paper\nsft: {batch_size: 5}\n", "sft: micro_batch_size: expected a divisor"),
    ],
)
def test_a_method_that_is_none_or_does_not_fit_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text + MINIMAL))
    assert expected in str(caught.value)
    with pytest.raises(ConfigError, match="`base: paper` at its top"):
        load_config("paper")


BROKEN = [
    ("seed: -1\n", ["config.yml:7: seed: expected greater than or equal to 0, got -1"]),
    ("revisions: {round: 3}\n", ["config.yml:7: revisions.round: unknown key", "'rounds'"]),
    ("revisions:\n  rounds: 99\n", ["config.yml:8: revisions.rounds:", "99", "1 to 8"]),
    (
        "revisions: {rounds: 2, train_rounds: 3}\n",
        ["config.yml:7: revisions: train_rounds: expected at most rounds=2, got 3"],
    ),
    ("revisions:\n  rounds: many\n", ["revisions.rounds: expected a whole number, got 'many'"]),
    ("rl: {algorithm: dpo, reward: {judge: 1}}\n", ["config.yml:7: rl: reward.judge: expected 0"]),
    (
        "evaluate: {snapshots: true}\n",
        ["evaluate.snapshots: expected false, since rl.snapshots_every keeps none; got true"],
    ),
    ("rl: {clip: -1}\n", ["config.yml:7: rl.clip: expected greater than 0, got -1"]),
    (
        "services: {judge: {address: 'judge:50051', tls: {key: k.pem}}}\n",
        ["config.yml:7: services.judge.tls: certificate:", "give both"],
    ),
    (
        "services: {critic: {token_env: CRITIC_TOKEN}}\n",
        ["config.yml:7: services.critic: token_env:", "give its address, or remove token_env"],
    ),
    (
        "preferences: {panel: {judges: {a: x, b: y}, quorum: 3}}\n",
        ["config.yml:7: preferences.panel: quorum: expected 1 to 2", "got 3"],
    ),
    ("preferences: {panel: {judges: {a: x}}}\n", ["preferences.panel.judges", "two or more"]),
    (
        "preferences: {panel: {judges: {A b: x, c: y}}}\n",
        ["preferences.panel.judges: ", "got 'A b'", "1 to 32 of a-z"],
    ),
    (
        "services: {panel: {c: {}}}\npreferences: {panel: {judges: {a: x, b: y}}}\n",
        ["services.panel.c: expected a judge of preferences.panel.judges, which are a, b"],
    ),
    (
        "preferences: {selection: best_worst}\n",
        ["preferences: selection: best_worst ranks three responses or more", "now 2"],
    ),
    (
        "preferences: {given: {share: 0.4}}\n",
        ["preferences.given.share is 0.4", "prompts.comparisons has 0 sources"],
    ),
    (
        "prompts: {red_team: [{source: x.txt, judged_by: [a]}]}\n",
        ["prompts: red_team: judged_by is of prompts.preferences only"],
    ),
    (
        "preferences: {temperatures: [1, 2, 0.5]}\n",
        ["preferences: temperatures: expected at most one for each of the 2 responses"],
    ),
    ("sft: 3\n", ["config.yml:7: sft: expected a mapping of keys to values, got 3"]),
    ("sft: {batch_size: 10, micro_batch_size: 3}\n", ["config.yml:7: sft:", "divisor", "3"]),
    (
        "sft: {batch_size: 64, micro_batch_size: 4, processes: 3}\n",
        ["config.yml:7: sft: batch_size: expected a multiple of micro", "4 x 3 = 12, got 64"],
    ),
    (
        "sft: {sharding: full}\n",
        ["config.yml:7: sft: sharding: expected none with processes=1", "got 'full'"],
    ),
    (
        "rl: {sharding: full, processes: 2, lora: {rank: 4}}\n",
        ["config.yml:7: rl: sharding: expected none with lora", "got 'full'"],
    ),
    (
        "rl: {batch_size: 64, minibatches: 4, processes: 32}\n",
        ["config.yml:7: rl: batch_size: expected a multiple of minibatches times", "got 64"],
    ),
    (
        "rl: {batch_size: 64, processes: 2}\nservices: {reward_device: cpu}\n",
        ["services.reward_device: expected null with rl.processes=2", "got 'cpu'"],
    ),
    ("preferences: {principles: most}\n", ["config.yml:7: preferences.principles:", "'most'"]),
    ("prompts: {red_team: ['sandbox:harmful']}\n", ["prompts.red_team[0]", "set count"]),
    (
        "prompts: {red_team: [{source: 'sandbox:evil', count: 3}]}\n",
        ["prompts.red_team[0]:", "sandbox:sounds_dangerous", "'sandbox:evil'"],
    ),
    (
        "prompts: {red_team: [{source: a.csv, where: {label: }}]}\n",
        ["prompts.red_team[0].where", "expected a text, a number or a truth", "got None"],
    ),
    (
        "prompts: {rl: [{source: 'sandbox:benign', count: 3, where: {label: safe}}]}\n",
        ["prompts.rl[0]", "where", "are of files", "remove them"],
    ),
    (
        "evaluate: {ground_truth: sandbox}\nprompts: {evaluation: {harmful: [x.txt]}}\n",
        ["prompts.evaluation.harmful", "evaluate.ground_truth=null"],
    ),
    ("stages: [sft, baking]\n", ["config.yml:7: stages[1]: expected", "'baking'"]),
    (
        "services: {reward_device: 'cuda:1'}\nrl: {value_network: head}\n",
        ["services.reward_device: expected null", "'cuda:1'", "to 'full'"],
    ),
    ("iterations: 9\n", ["config.yml:7: iterations: ", "less than or equal to 8", "got 9"]),
    (
        "iterations: 2\nrl: {reward: {model: 0, judge: 1}}\n",
        ["iterations: expected 1 with rl.reward.model 0", "got 2"],
    ),
    (
        "iterations: 2\npreferences: {source: revisions}\n",
        ["iterations: expected 1 with preferences.source 'revisions'", "got 2"],
    ),
    ("services: {judge: {device: gpu}}\n", ["services.judge.device: ", "'gpu'", "cuda:N"]),
    ("seed: 1\nseed: 2\n", ["config.yml:8: key 'seed' was given before, at", "config.yml:7"]),
    ("seed: [1\n", ["config.yml:8: not valid YAML"]),
    ("7: x\n", ["config.yml:7: expected a text key, got 7"]),
]


@pytest.mark.parametrize(("extra", "expected"), BROKEN)
def test_a_broken_file_is_refused_with_its_line_key_value_and_fix(
    tmp_path: Path, extra: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL + extra))
    for text in expected:
        assert text in str(caught.value)


BROKEN_OVERRIDES = [
    ("rounds", "expected key.path=value, got 'rounds'"),
    ("=3", "expected key.path=value, got '=3'"),
    ("seed=x", "command line: seed: expected a whole number, got 'x'"),
    ("revisions.round=3", "command line: revisions.round: unknown key; did you mean 'rounds'?"),
    ("seed.deeper=3", "command line: seed.deeper: seed is 5, which has no keys"),
    ("prompts.red_team.4.count=1", "is a list of 1; expected an index from 0 to 0, got '4'"),
    ("seed=[1", "command line: seed: not a YAML value: '[1'"),
]


@pytest.mark.parametrize(("assignment", "expected"), BROKEN_OVERRIDES)
def test_a_broken_override_is_said_to_come_from_the_command_line(
    tmp_path: Path, assignment: str, expected: str
) -> None:
    path = write(tmp_path, MINIMAL + "seed: 5\nprompts: {red_team: [x.txt]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [assignment])
    assert expected in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL + "seed: -1\nsft: {epochs: 0}\n"), ["rl.clip=0"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_key_is_named_with_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models.policy: expected a value, .*The helpful model"):
        load_config(write(tmp_path, "constitution: core\nmodels: {critic: x, judge: x}\n"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sandbx", "Did you mean 'sandbox'?"), ("no/such.yaml", "'no/such.yaml' does not exist")],
)
def test_an_unknown_configuration_is_refused_with_those_that_exist(
    name: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert expected in str(caught.value)
    assert "sandbox" in str(caught.value)


def test_only_what_changes_a_result_counts_as_a_difference() -> None:
    before = load_config("sandbox")
    operational = ["services.in_flight=1", "store.part_records=1", "run_dir=/x"]
    operational += ["stages=[sft]"]
    limit = "preferences.max_no_verdict_share=0.9"
    after = load_config("sandbox", [*operational, limit, "revisions.rounds=2"])
    assert differences(before, after) == ["revisions.rounds: 4 -> 2"]


def test_every_key_is_documented() -> None:
    def check(model: type[Settings], path: str) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{path}{name} has no docstring"
            inner = model_in(field.annotation)
            if inner is not None:
                assert issubclass(inner, Settings)
                check(inner, f"{path}{name}.")

    check(RunConfig, "")


def test_reading_a_configuration_loads_nothing_heavy() -> None:
    code = (
        "import sys; from solon.trainer.config import load_config; load_config('sandbox');"
        "heavy = {'torch', 'transformers', 'grpc', 'pyarrow', 'vllm', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
