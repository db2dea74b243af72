"""What a run has come to, case by case: by the oracle where there is one, by its records else.

Knows nothing of other runs, of averages or of tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from solon.chat import Conversation
from solon.trainer.ablation.estimates import Cases
from solon.trainer.course import steps_of
from solon.trainer.prompt_settings import SANDBOX
from solon.trainer.schemas import EVALUATION, JUDGED_PAIRS, PREFERENCES, REVISIONS
from solon.trainer.session import saved_config
from solon.trainer.stages import evaluate, revisions
from solon.trainer.stages.calibration import calibration_error
from solon.trainer.stages.filters import prefers_position
from solon.trainer.stages.measures import RATES, is_right
from solon.trainer.stages.preference_export import row_id
from solon.trainer.stages.rows import was_judged
from solon.trainer.state import RunState
from solon.trainer.steps import ITERATED, Step
from solon.trainer.store import Record, RunDirectory

_WHOLE = ""
"""The one case of a figure of the whole run."""

Figures = Mapping[str, Cases]
"""Measure -> its cases; see ``spec.Measure``. What does not apply to a run is missing."""


def measure(run: RunDirectory, *, last: str) -> Figures:
    """Everything that can be said of a run, as far as it is done.

    Args:
        run: The run.
        last: The model that ``final`` stands for: base, sl, rl, or rl-2 of two iterations.

    Raises:
        StoreError: A record cannot be read.
    """
    truth = saved_config(run).evaluate.ground_truth is not None
    figures: dict[str, Cases] = {"seconds": {_WHOLE: _seconds(run)}}
    figures |= _of_models(run) if truth else _by_the_judge(run)
    figures |= _of_judge(run)
    figures |= _of_reward(run)
    figures |= _of_labels(run, truth=truth)
    if truth:
        figures |= _of_revisions(run)
    finals = {name: cases for name, cases in figures.items() if name.startswith(f"{last}.")}
    figures |= {f"final.{name.partition('.')[2]}": cases for name, cases in finals.items()}
    return {name: cases for name, cases in figures.items() if cases}


def _seconds(run: RunDirectory) -> float:
    """Of the steps that led to the models, wherever they were made."""
    state = RunState(run)
    total = 0.0
    for step in steps_of(saved_config(run), ("revisions", "sft", *ITERATED)):
        origin = state.origin(step.name)
        total += state.seconds(step.name) + (origin.seconds if origin else 0.0)
    return total


def _of_models(run: RunDirectory) -> dict[str, Cases]:
    found: dict[str, dict[str, float]] = {}
    for record in run.parts(evaluate.RESPONSES_FOLDER, EVALUATION).records():
        for name, (kinds, truths) in RATES.items():
            if record["kind"] in kinds:
                cases = found.setdefault(f"{record['model']}.{name}", {})
                cases[record["prompt_id"]] = float(record["truth"] in truths)
    return dict(found)


def _by_the_judge(run: RunDirectory) -> dict[str, Cases]:
    result = run.read_json(evaluate.RESULT_NAME) or {"models": {}}
    return {
        f"{model}.{name}": {_WHOLE: rate["rate"]}
        for model, rates in result["models"].items()
        for name, rate in rates.items()
        if rate["rate"] is not None
    }


def _of_judge(run: RunDirectory) -> dict[str, Cases]:
    pairs = list(run.parts(evaluate.PAIRS_FOLDER, JUDGED_PAIRS).records())
    with_truth = [pair for pair in pairs if pair["a_is_better"] is not None]
    flips = {pair["id"]: prefers_position(pair["comparison"]) for pair in pairs}
    return {
        "judge.accuracy": {
            pair["id"]: float(is_right(pair["comparison"], a_is_better=pair["a_is_better"]))
            for pair in with_truth
        },
        "judge.position_bias": {
            name: float(flip) for name, flip in flips.items() if flip is not None
        },
    }


def _of_reward(run: RunDirectory) -> dict[str, Cases]:
    last = Step("reward", saved_config(run).iterations)
    metrics = RunState(run).summary(last.name).get("metrics", {})
    return {
        f"reward.{name}": {_WHOLE: float(metrics[name])}
        for name in ("test_accuracy", "test_calibration_error")
        if name in metrics
    }


def _of_labels(run: RunDirectory, *, truth: bool) -> dict[str, Cases]:
    """Of the very labels that the reward model was trained on, in the manner of this run."""
    right: dict[str, float] = {}
    flips: dict[str, float] = {}
    said: list[tuple[float, float]] = []
    for name, record, pair in _judged(run):
        follows = prefers_position(pair)
        if follows is not None:
            flips[name] = float(follows)
        better = _better(record, pair) if truth else None
        if better is None:
            continue
        probability = pair["probability_a"]
        right[name] = float(is_right(pair, a_is_better=better))
        if probability is not None:
            said.append((probability, float(better)))
    figures: dict[str, Cases] = {"labels.accuracy": right, "labels.position_bias": flips}
    if said:
        error = calibration_error([p for p, _ in said], [q for _, q in said])
        figures["labels.calibration_error"] = {_WHOLE: error}
    return figures


def _judged(run: RunDirectory) -> Iterator[tuple[str, Record, Record]]:
    for step in steps_of(saved_config(run), ITERATED):
        if step.stage != "preferences":
            continue
        for record in run.parts(step.name, PREFERENCES).records():
            for pair in record["comparisons"]:
                if was_judged(pair):
                    yield row_id(record, pair, step), record, pair


def _better(record: Record, pair: Record) -> bool | None:
    """Whether A is better by the oracle; None if they are as good, or it knows no such prompt."""
    if not record["source"].startswith(SANDBOX):
        return None
    from solon import sandbox  # noqa: PLC0415 - a measurement alone may know the oracle

    texts = [record["responses"][pair[side]]["text"] for side in ("a", "b")]
    preference = sandbox.better(Conversation.from_dicts(record["prompt"]), *texts)
    return {"A": True, "B": False}.get(preference)


def _of_revisions(run: RunDirectory) -> dict[str, Cases]:
    """What the critic made of harmful prompts' first responses, round by round."""
    found: dict[str, dict[str, float]] = {}
    for record in run.parts(revisions.FOLDER, REVISIONS).records():
        if record["kind"] == "red_team" and record["source"] == f"{SANDBOX}harmful":
            for number, text in _texts(record):
                cases = found.setdefault(f"revision_{number}.harmful_compliance", {})
                cases[record["id"]] = _complies(record["prompt"], text)
    return dict(found)


def _texts(record: Record) -> Iterator[tuple[int, str]]:
    yield 0, record["responses"][0]["text"]
    for made in record["rounds"]:
        if made["revision_outcome"] == "made":
            yield made["round"], made["revision"]["text"]


def _complies(prompt: Any, text: str) -> float:
    from solon import sandbox  # noqa: PLC0415 - as above

    return float(str(sandbox.read(Conversation.from_dicts(prompt), text)) == "complies")
