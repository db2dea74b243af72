"""Dry runs: what a model is, what a run would cost, and what would keep it from its end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solon.trainer.cli import main
from solon.trainer.config import load_config
from solon.trainer.course import steps_of, together
from solon.trainer.errors import ConfigError
from solon.trainer.forecast import memory
from solon.trainer.forecast.hardware import GIB, KNOWN, generation_seconds, training_seconds
from solon.trainer.forecast.lengths import Tokens
from solon.trainer.forecast.memory import Learning
from solon.trainer.forecast.models import Model, describe, find
from solon.trainer.stage_names import STAGES
from solon.trainer.state import RunState
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 80, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen2": {"intermediate_size": 80, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {"intermediate_size": 80, "num_key_value_heads": 2, "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def saved(folder: Path, architecture: str, *, weights: bool) -> Any:
    """A tiny model of an architecture, built for real; with or without its weights beside."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture, **(SMALL | ARCHITECTURES[architecture]))
    model = AutoModelForCausalLM.from_config(config)
    (model if weights else config).save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_measured_by_the_headers_of_its_weights(
    tmp_path: Path, architecture: str
) -> None:
    built = saved(tmp_path, architecture, weights=True)
    model = describe(find(str(tmp_path)))
    assert model.parameters == sum(p.numel() for p in built.parameters())
    assert (model.layers, model.hidden, model.vocabulary) == (2, 32, 96)
    assert model.intermediate == (128 if architecture == "gpt2" else 80)
    assert model.key_value_width == {"gpt2": 32, "mistral": 32}.get(architecture, 16)
    assert model.stored_bytes > 4 * model.parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_is_measured_without_any_weights(tmp_path: Path, architecture: str) -> None:
    # in this process; the command asks one of its own, as a later test does
    from solon.trainer.forecast.shapes import shapes

    built = saved(tmp_path, architecture, weights=False)
    expected = {name: list(p.shape) for name, p in built.named_parameters()}
    assert shapes(str(tmp_path)) == expected


MEASURES: dict[str, Any] = {
    "name": "m",
    "shapes": {"a.q_proj.weight": (4, 6), "b.embed_tokens.weight": (8, 4), "c.norm.weight": (4,)},
    "layers": 2,
    "hidden": 4,
    "intermediate": 8,
    "key_value_width": 3,
    "vocabulary": 8,
    "context": 64,
    "stored_bytes": 1,
}
MODEL = Model(**MEASURES)


def test_adapters_are_as_large_as_peft_makes_them(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    built = saved(tmp_path, "llama", weights=True)
    model = describe(find(str(tmp_path)))
    for targets, asked in ((None, "all-linear"), (("q_proj", "v_proj"), ["q_proj", "v_proj"])):
        adapted = get_peft_model(built, LoraConfig(r=3, target_modules=asked))
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert model.adapted(3, targets) == trainable
        built = adapted.unload()


def test_memory_is_the_sum_of_what_a_step_holds() -> None:
    whole = Learning(trainable=100, frozen=0, compute=4, checkpointing=False)
    assert sum(memory.learning_weights(whole).values()) == 16 * 100
    mixed = Learning(trainable=100, frozen=0, compute=2, checkpointing=False)
    assert sum(memory.learning_weights(mixed).values()) == 18 * 100
    adapters = Learning(trainable=10, frozen=100, compute=2, checkpointing=False)
    assert sum(memory.learning_weights(adapters).values()) == 18 * 10 + 2 * 100
    replicas = replace(whole, processes=4)
    assert sum(memory.learning_weights(replicas).values()) == 20 * 100
    assert memory.gathered(MODEL, replicas) == 0
    parts = replace(mixed, processes=4, sharded=True)
    # no copies in bfloat16: it is what is gathered
    assert sum(memory.learning_weights(parts).values()) == 16 * 25
    assert 0 < memory.gathered(MODEL, parts) < memory.gathered(MODEL, replace(parts, compute=4))
    # 2 layers, keys and values of 3 numbers, 10 tokens, 2 bytes
    assert memory.key_value_bytes(MODEL, 10, 2) == 2 * 2 * 3 * 10 * 2


def test_checkpointing_holds_less_and_more_tokens_hold_more() -> None:
    every = Learning(trainable=100, frozen=0, compute=2, checkpointing=False)
    few = Learning(trainable=100, frozen=0, compute=2, checkpointing=True)
    deep = Model(**{**MEASURES, "layers": 20})
    assert memory.activations(deep, 10, few) < memory.activations(deep, 10, every) / 5
    assert memory.activations(deep, 20, every) == 2 * memory.activations(deep, 10, every)


def test_time_is_work_by_what_a_device_can_do() -> None:
    device = KNOWN["a100-40gb"]
    one = training_seconds(device, parameters=10**9, tokens=10**6, passes=3)
    assert one == pytest.approx(2 * 3 * 1e15 / (312e12 * 0.35))
    written = generation_seconds(
        device,
        weight_bytes=2 * 10**9,
        cache_bytes=0,
        parameters=10**9,
        prompt_tokens=0,
        completion_tokens=1000,
        together=10,
    )
    assert written == pytest.approx(100 * 2e9 / (1.555e12 * 0.6))


def test_services_are_shared_until_a_training_stage_if_they_make_room_for_it() -> None:
    steps = steps_of(load_config("sandbox-tiny"))
    assert together(load_config("sandbox-tiny"), steps) == steps
    config = load_config("sandbox-tiny", ["services.release_for_training=true", "iterations=2"])
    steps = steps_of(config)
    assert together(config, steps) == steps[:2]
    assert together(config, steps[4:]) == (Step("reward"), Step("rl"))
    assert together(config, steps[6:]) == (Step("preferences", 2),)


def test_without_a_tokenizer_a_token_is_four_characters() -> None:
    tokens = Tokens(None)
    assert not tokens.are_counted
    assert tokens.of_texts(["12345678", ""]) == [2, 1]


@pytest.fixture
def plan(tmp_path: Path) -> list[str]:
    """A dry run of the smallest configuration, in a directory that is not there."""
    return ["run", "sandbox-tiny", "--dry-run", "--run", str(tmp_path / "run")]


def dry(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_resolves_and_estimates_everything_and_starts_nothing(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry(capsys, *plan)
    assert found["problems"] == []
    assert found["config"]["models"]["policy"] == "sandbox"
    assert found["models"]["policy"]["parameters"] == 2_092_416
    assert found["prompts"]["red_team"] == 24
    calls = {(one["stage"], one["role"]): one["calls"] for one in found["calls"]}
    assert calls["revisions", "critic"] == 24 * 2 * 2
    assert {one["stage"] for one in found["training"]} == {"sft", "reward", "rl"}
    assert {use["stage"] for use in found["memory"]} == set(STAGES)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_every_iteration(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def counted(*overrides: str) -> tuple[dict[Any, int], dict[str, int]]:
        found = dry(capsys, *plan, *overrides)
        calls = {(one["stage"], one["role"]): one["calls"] for one in found["calls"]}
        return calls, {one["stage"]: one["tokens"] for one in found["training"]}

    calls, tokens = counted()
    more_calls, more_tokens = counted("iterations=2")
    for role in ("policy", "judge"):
        assert more_calls["preferences", role] == 2 * calls["preferences", role]
    assert more_calls["revisions", "critic"] == calls["revisions", "critic"]
    # one model more
    assert 3 * more_calls["evaluate", "policy"] == 4 * calls["evaluate", "policy"]
    assert more_tokens["rl"] == 2 * tokens["rl"]
    # on the first iteration's pairs, and on those of both
    assert more_tokens["reward"] == pytest.approx(3 * tokens["reward"], rel=0.05)
    assert more_tokens["sft"] == tokens["sft"]


def test_dpo_is_planned_on_the_pairs_with_a_reference_and_no_reward_model(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dpo = ["rl.algorithm=dpo", "dpo.batch_size=8", "dpo.micro_batch_size=8"]
    found = dry(capsys, *plan, "--gpus", "1xa100-40gb", *dpo, "dpo.max_length=512")
    trainings = {one["stage"]: one for one in found["training"]}
    assert set(trainings) == {"sft", "rl"}
    assert trainings["rl"]["sampled_tokens"] == 0
    (use,) = [u for u in found["memory"] if (u["stage"], u["process"]) == ("rl", "training")]
    assert "reference" in use["parts"]
    assert not any("reward" in name for name in use["parts"])


def test_the_episodes_that_rl_keeps_take_room_on_the_disk(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def needed(share: float) -> float:
        many = [*plan, "rl.episodes=10_000_000", f"rl.kept_episodes={share}"]
        # a machine may have less, which is a problem of its own
        main([*many, "--json"])
        return float(json.loads(capsys.readouterr().out)["facts"]["disk"].split()[0])

    nothing, half = needed(0), needed(0.5)
    # 32 tokens of 64, at 6 bytes, and 128 more
    assert half - nothing == pytest.approx(0.5e7 * (32 * 6 + 128) / GIB, abs=0.1)


def test_a_person_sees_the_plan_and_whether_it_fits(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--gpus", "1xa100-40gb"]) == 0
    said = capsys.readouterr().out
    assert "constitution: sandbox" in said
    assert "models.policy: sandbox: 2,092,416 parameters" in said
    assert "device 0 (a100-40gb): at most" in said
    assert "Time: preflight" in said
    assert "All is well: nothing was started." in said


def test_every_problem_is_told_at_once_with_its_key(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "model"
    empty.mkdir()
    wrong = [
        f"models.critic={empty}",
        "models.judge=no-such-house/no-such-model",
        "prompts.red_team=[/no/such.txt]",
        "preferences.principles=99",
        "sft.lora={target_modules: [nowhere]}",
        "services.policy.address=127.0.0.1:1",
        "services.start_timeout=0.2",
    ]
    found = dry(capsys, *plan, *wrong, code=2)
    told = "\n".join(found["problems"])
    for key in ("models.critic: expected a directory", "/no/such.txt: no such file"):
        assert key in told
    for key in ("preferences.principles: expected 1 to", "services.policy.address: the policy"):
        assert key in told
    assert "sft.lora.target_modules: expected all-linear or" in told
    assert len(found["problems"]) == 5
    assert "models.judge: 'no-such-house/no-such-model' is not in the" in "".join(found["notes"])


def test_what_is_not_known_is_not_said_to_be_well(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "models.judge=no-such-house/no-such-model"]) == 0
    said = capsys.readouterr().out
    assert "not estimated: models.judge: memory and time of 'no-such-house/no-such-model'" in said
    assert "No problem was found in what could be looked at" in said
    assert "All is well" not in said


def test_a_run_that_is_there_is_a_problem_unless_it_is_gone_on_with(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("anything")
    assert "add --resume" in dry(capsys, *plan, code=2)["problems"][0]
    RunState(RunDirectory(str(tmp_path / "run"))).finish("revisions", 1234.0, {})
    found = dry(capsys, *plan, "--resume")
    assert found["problems"] == []
    assert "revisions: done before, in 1,234 s" in found["notes"]


def test_a_model_is_whole_or_a_problem(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    saved(folder, "llama", weights=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    told = dry(capsys, *plan, f"models.policy={folder}", code=2)["problems"]
    assert f"models.policy: {str(folder)!r} has no tokenizer.json" in told[0]
    assert "lacks weights" in told[1]


def test_an_architecture_that_nobody_can_build_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(ConfigError, match="transformers cannot build this model"):
        describe(find(str(tmp_path)))


@pytest.mark.parametrize("gpus", ["a100", "0xa100-40gb", "2xabacus"])
def test_devices_that_nobody_knows_are_refused(
    plan: list[str], gpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--gpus", gpus]) == 2
    assert f"got {gpus!r}; known devices: a100-40gb" in capsys.readouterr().err


def test_what_does_not_fit_a_device_or_a_context_is_a_problem(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    large = ["sft.max_length=1000000", "revisions.response.max_tokens=131072"]
    told = dry(capsys, *plan, *large, "--gpus", "1xrtx4090-24gb", code=2)["problems"]
    assert any("the context of models.policy ('sandbox') 1,024" in one for one in told)
    assert any("GiB of device 0 (rtx4090-24gb), which has 24" in one for one in told)


def test_the_command_imports_no_torch() -> None:
    code = (
        "import sys; from solon.trainer.forecast import dry_run, show, surroundings;"
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sandbox_needs_little() -> None:
    model = describe(find(load_config("sandbox-tiny").models.policy))
    served = memory.serving(model, element=4, cached_tokens=1000, rows=64)
    assert sum(served.values()) < 1.2 * GIB


def test_a_model_behind_an_endpoint_takes_no_memory_and_what_it_charges_is_told(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = "{base_url: 'http://localhost:1/v1', input_price: 2.5, output_price: 10}"
    judge = ["models.judge=/elsewhere/some-model", "services.judge.engine=openai"]
    found = dry(capsys, *plan, *judge, f"services.judge.engine_options={options}")
    assert found["problems"] == []
    assert found["config"]["services"]["judge"]["engine_options"]["input_price"] == "2.5"
    assert found["facts"]["judge"] == "started by the run (openai)"
    assert not [use for use in found["memory"] if use["process"] == "judge"]
    asked = sum(one["prompt_tokens"] for one in found["calls"] if one["role"] == "judge")
    cost = f"{asked * 2.5 / 1e6:,.2f} US dollars"
    assert found["facts"]["cost of judge"].startswith(f"about {cost}")
    wrong = ["services.policy.engine=openai", "services.judge.engine_options={input_price: much}"]
    problems = dry(capsys, *plan, *judge, *wrong, code=2)["problems"]
    assert any("services.policy.engine: 'openai' cannot replace" in one for one in problems)
    assert any("services.judge.engine_options.input_price: expected" in one for one in problems)
    assert any("services.judge.engine_options.base_url: expected" in one for one in problems)
    unset = "services.judge.engine_options={base_url: 'https://x/v1', api_key_env: NOT_SET}"
    (told,) = dry(capsys, *plan, *judge, unset, code=2)["problems"]
    assert told.startswith("services.judge.engine_options.api_key_env: the environment variable")
