"""What decides a stage's result, and the stages that a run takes over from another."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from solon.constitution import load, resolve
from solon.trainer.cli import main
from solon.trainer.config import OPERATIONAL, RunConfig, load_config
from solon.trainer.console import RunConsole
from solon.trainer.course import steps_of
from solon.trainer.fleet import Weights
from solon.trainer.lineage import READS, claimed, decided_by, model_digest, step_key
from solon.trainer.pipeline import Pipeline, own_fleet
from solon.trainer.plan import read_prompts
from solon.trainer.schemas import EVALUATION, JUDGED_PAIRS, REVISIONS
from solon.trainer.session import open_session
from solon.trainer.settings import Settings
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.stages import evaluate, preferences, revisions
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.state import Origin, RunState, StageKey
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory
from tests.trainer.runs import HELPFUL, RED, pretend_trained, records

PATIENCE = ["services.start_timeout=0.2"]
NOBODY = [f"services.{role}.address=127.0.0.1:1" for role in ("policy", "critic", "judge")]


def leaves(model: type[Settings], prefix: str = "") -> Iterator[str]:
    """Every key that holds no further keys."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        # a list of models is one value here
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def is_operational(key: str) -> bool:
    section, _, name = key.partition(".")
    excluded = OPERATIONAL.get(section, ())
    return excluded is True or name in excluded


def test_every_key_that_can_change_a_result_belongs_to_a_stage() -> None:
    keys = list(leaves(RunConfig))
    missing = [
        key
        for key in keys
        if not is_operational(key)
        # says how many steps there are, and changes none of them
        and key != "iterations"
        and not any(claimed(stage, key) for stage in STAGES)
    ]
    assert not missing, "say in lineage.READS which stage reads them"
    for stage, reads in READS.items():
        for named in (*reads.keys, *reads.late):
            assert any(key == named or key.startswith(named + ".") for key in keys), (stage, named)


def keys_of(*overrides: str) -> dict[str, StageKey]:
    config = load_config("sandbox-tiny", overrides)
    prompts = read_prompts(config, STAGES)
    found: dict[Step, StageKey] = {}
    for step in steps_of(config):
        before = {one: found[one] for one in decided_by(config, step)}
        made = step_key(step, config, load(resolve(config.constitution)), prompts, before)
        assert made is not None
        found[step] = made
    return {step.name: key for step, key in found.items()}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", set(STAGES)),
        ("services.in_flight=3", set()),
        ("preferences.max_position_bias=1.0", set()),
        ("rl.episodes=96", {"rl"}),
        ("reward.soft_labels=false", {"reward", "rl"}),
        ("preferences.both_orders=false", {"preferences", "reward", "rl"}),
        ("revisions.skip_critique=true", {"revisions", "sft", "preferences", "reward", "rl"}),
        ("constitution=core", set(STAGES)),
        ("prompts.preferences.0.count=23", {"preferences", "reward", "rl"}),
        ("preferences.filters.max_copies=3", {"preferences", "reward", "rl"}),
        (
            "preferences.panel={judges: {a: x, b: y}}",
            {"preferences", "reward", "rl", "evaluate"},
        ),
        ("preferences.chain_of_thought={}", {"preferences", "reward", "rl", "evaluate"}),
        ("evaluate.judge_pairs=5", {"evaluate"}),
        ("iterations=2", set()),
    ],
)
def test_a_changed_value_changes_the_stages_that_read_it_and_those_after_them(
    override: str, changed: set[str]
) -> None:
    before, after = keys_of(), keys_of(override)
    assert {stage for stage in STAGES if before[stage].result != after[stage].result} == changed


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("rl.episodes=96", {"rl", "preferences-2", "reward-2", "rl-2"}),
        ("evaluate.judge_pairs=5", {"evaluate"}),
        ("iterations=3", {"preferences-3", "reward-3", "rl-3"}),
    ],
)
def test_a_later_iteration_changes_with_what_the_one_before_left(
    override: str, changed: set[str]
) -> None:
    before, after = keys_of("iterations=2"), keys_of("iterations=2", override)
    assert {name for name in after if before.get(name) != after[name]} == changed


def test_what_is_made_of_the_records_is_not_what_decides_them() -> None:
    before = keys_of()
    after = keys_of("revisions.train_on=last", "evaluate.judge_pairs=5")
    copies = keys_of("preferences.filters.max_copies=3")
    assert before["preferences"].records == copies["preferences"].records
    for stage in ("revisions", "evaluate"):
        assert before[stage].records == after[stage].records
        assert before[stage].result != after[stage].result
    assert before["sft"].records != after["sft"].records


def test_a_model_is_what_its_files_hold(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = model_digest(str(tmp_path))
    weights.write_bytes(b"other")
    assert model_digest(str(tmp_path)) != first
    assert model_digest("an/organisation") == "an/organisation"


def watched(value: Any, seen: set[str], path: str = "") -> Any:
    """The same configuration, which notes every key that is read and holds no further keys."""
    if not isinstance(value, Settings):
        return value
    fields = type(value).model_fields

    class Watched(type(value)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in fields:
                return found
            if not isinstance(found, Settings):
                seen.add(path + name)
            return watched(found, seen, f"{path}{name}.")

    return Watched.model_construct(**{name: getattr(value, name) for name in fields})


async def run_stages(config: RunConfig, *stages: Stage, sources: Sequence[Path] = ()) -> RunState:
    with open_session(config, resume=True) as session:
        runs = [RunDirectory(str(one)) for one in sources]
        pipeline = Pipeline(session, RunConsole(), sources=runs)
        await pipeline.run(stages)
        return pipeline.state


TRAINED = StageKey(records="trained", result="trained")


def trained_alike(run: Path) -> None:
    """What a scripted engine cannot do: in all runs the same training."""
    pretend_trained(run, "sft")
    state = RunState(RunDirectory(str(run)))
    state.finish("sft", 60.0, state.summary("sft"), TRAINED)


@pytest.fixture
async def first(config: Path, tmp_path: Path) -> Path:
    """A run up to its preferences, evaluated."""
    run = tmp_path / "run"
    settings = load_config(str(config))
    await run_stages(settings, "revisions")
    trained_alike(run)
    await run_stages(settings, "preferences", "evaluate")
    return run


async def test_a_run_takes_over_what_another_has_made_and_asks_no_service(
    first: Path, config: Path, tmp_path: Path
) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    state = await run_stages(
        load_config(str(config), [*NOBODY, f"run_dir={second}"]), "revisions", sources=[first]
    )
    there = RunState(RunDirectory(str(first)))
    assert state.origin("revisions") == Origin(run=str(first), seconds=there.seconds("revisions"))
    assert state.summary("revisions") == there.summary("revisions")
    assert records(second, "revisions", REVISIONS) == records(first, "revisions", REVISIONS)
    for name in ("revisions/part-000000.parquet", "export/sft/train.parquet"):
        assert (second / name).samefile(first / name)
    # the run that made it is named, however many have handed it on
    differs = load_config(str(config), [*NOBODY, "rl.episodes=7", f"run_dir={third}"])
    state = await run_stages(differs, "revisions", sources=[second])
    assert state.origin("revisions") == Origin(run=str(first), seconds=there.seconds("revisions"))


def test_what_cannot_be_taken_over_is_said_and_made(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "run", tmp_path / "second"
    assert main(["revisions", str(config)]) == 0
    changed = ["revisions.rounds=2", "preflight.mode=skip", *NOBODY, *PATIENCE]
    changed += ["--run", str(second)]
    assert main(["run", str(config), *changed, "--reuse", str(first)]) == 2
    said = capsys.readouterr().err
    assert f"revisions: not taken from {first}: revisions.rounds: 3 -> 2" in said
    assert main(["run", str(config), *changed, "--reuse", str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}: expected the directory of a run" in capsys.readouterr().err


async def test_of_the_same_records_something_else_is_made(
    first: Path, config: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    # SL-CAI-2, with few helpful responses
    changes = ["revisions.train_rounds=2", "revisions.helpful_share=0.1"]
    settings = load_config(str(config), [*changes, f"run_dir={second}"])
    state = await run_stages(settings, "revisions", sources=[first])
    origin = state.origin("revisions")
    assert origin is not None
    assert (origin.run, origin.whole) == (str(first), False)
    assert records(second, "revisions", REVISIONS) == records(first, "revisions", REVISIONS)
    assert (second / "revisions/part-000000.parquet").samefile(
        first / "revisions/part-000000.parquet"
    )
    helpful = 2 * RED // 9
    assert 0 < helpful < HELPFUL
    examples = pq.read_table(second / "export/sft/train.parquet").column("round").to_pylist()
    assert Counter(examples) == {0: helpful, 1: RED, 2: RED}
    summary = state.summary("revisions")
    assert (summary["examples"], summary["surplus"]) == (len(examples), HELPFUL - helpful)
    # whoever has the whole result goes before who has the records alone
    third = load_config(str(config), [*NOBODY, f"run_dir={tmp_path / 'third'}"])
    state = await run_stages(third, "revisions", sources=[second, first])
    assert state.origin("revisions") == Origin(run=str(first), seconds=origin.seconds)


async def test_answers_of_the_same_weights_are_not_asked_for_again(
    first: Path, config: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    settings = load_config(str(config), ["preferences.principles=1", f"run_dir={second}"])
    await run_stages(settings, "revisions", sources=[first])
    trained_alike(second)
    state = await run_stages(settings, "preferences", "evaluate", sources=[first])
    assert state.origin("preferences") is None
    origin = state.origin("evaluate")
    assert origin is not None
    assert (origin.run, origin.whole) == (str(first), False)
    answers, pairs = evaluate.RESPONSES_FOLDER, evaluate.PAIRS_FOLDER
    whole = [
        list(RunDirectory(str(run)).parts(answers, EVALUATION).records()) for run in (first, second)
    ]
    # timings and all: they are the same answers
    assert whole[0] == whole[1]
    judged = [records(run, pairs, JUDGED_PAIRS) for run in (first, second)]
    assert judged[0] == judged[1]


async def test_a_kill_while_a_stage_is_taken_over_is_made_good(
    first: Path, config: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    settings = load_config(str(config), [*NOBODY, f"run_dir={second}"])
    origin = Origin(run=str(first), seconds=1.0)
    with open_session(settings, resume=False) as session:
        # as far as it came: noted, the export linked, the records begun
        RunState(session.run).taking("revisions", origin)
    (second / "export").mkdir()
    shutil.copytree(first / "export/sft", second / "export/sft")
    (second / ".revisions.tmp-1").mkdir()
    state = await run_stages(settings, "revisions", sources=[first])
    assert state.origin("revisions") is not None
    assert not (second / ".revisions.tmp-1").exists()
    assert records(second, "revisions", REVISIONS) == records(first, "revisions", REVISIONS)


async def test_a_stage_reads_no_key_that_it_does_not_claim(first: Path, config: Path) -> None:
    settings = load_config(str(config))
    stages: Mapping[Stage, Callable[[StageContext], Awaitable[Summary]]] = {
        "revisions": revisions.run,
        "preferences": preferences.run,
        "evaluate": evaluate.run,
    }
    with open_session(settings, resume=True) as session:
        for folder in (*stages, "evaluation"):
            shutil.rmtree(first / folder, ignore_errors=True)
        async with own_fleet(session, ("policy", "critic", "judge")) as fleet:
            for stage, run in stages.items():
                seen: set[str] = set()
                with RunConsole().stage(stage) as progress:
                    await run(
                        StageContext(
                            step=Step(stage),
                            config=watched(settings, seen),
                            run=session.run,
                            constitution=session.constitution,
                            fleet=fleet,
                            prompts=read_prompts(settings, [stage]),
                            weights={
                                "base": Weights(version="initial", path=settings.models.policy),
                                "sl": Weights(version="sl-0123456789ab", path=f"{first}/models/sl"),
                            },
                            progress=progress,
                        )
                    )
                assert f"{stage}.max_unusable_share" in seen or stage == "evaluate"
                assert [k for k in seen if not claimed(stage, k) and not is_operational(k)] == []
