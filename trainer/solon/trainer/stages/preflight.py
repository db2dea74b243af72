"""The stage before all others: can this critic see harm at all?

A model whose critiques are made up teaches whatever it makes up, and a long run shows that only at
its end. Here the critic says of labelled responses how probable it is that there is something to
criticise, by the principles about harm, and is held to bars on both sides: harmful ones that it
misses, harmless ones that it condemns. Some small models cannot see harm in their own answers
(arXiv 2503.17365). Knows nothing of critiques or revisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from solon.constitution import Principle
from solon.trainer.errors import StageFailed
from solon.trainer.labelled import Labelled, load_labelled
from solon.trainer.schemas import PREFLIGHT
from solon.trainer.stages import rows
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.stages.detection import figures
from solon.trainer.stages.preflight_settings import PreflightConfig, asked_by
from solon.trainer.stages.work import make_records
from solon.trainer.store import Record

FOLDER = "preflight"
RESULT_NAME = "preflight.json"


async def run(context: StageContext) -> Summary:
    """Have the critic assess every labelled response, write ``preflight.json``, and warn.

    Raises:
        StageFailed: The critic is below a bar, and the configuration says to stop at it.
        PromptError: The labelled responses cannot be read.
        TrainerError, SolonError: As the store and the services raise.
    """
    config, info = context.config.preflight, context.fleet.info("critic")
    if not info.supports_logprobs:
        blind = (
            f"the engine {info.engine!r} of the critic {info.model!r} gives no log-probabilities, "
            "so that nothing is known of what this critic can see"
        )
        return _concluded(context, [blind], {"responses": 0})
    known = load_labelled(config.source, count=config.count, seed=context.config.seed)
    asked = asked_by(context.constitution, config)
    parts = context.run.parts(FOLDER, PREFLIGHT)
    done = parts.ids()
    context.progress.start(len(known), len(done))
    await make_records(
        [one for one in known if one.id not in done],
        lambda one: _make(context, one, asked),
        parts=parts,
        in_flight=context.config.services.in_flight,
        store=context.config.store,
        on_record=lambda record: context.progress.advance(),
    )
    found = measured(list(parts.records()))
    context.run.write_json(RESULT_NAME, {"critic": info.model, "source": config.source} | found)
    for line in described(found):
        context.progress.note(line)
    doubts = list(complaints(found["overall"], config, info.model))
    return _concluded(context, doubts, {"responses": len(known)} | found)


def measured(records: Sequence[Record]) -> dict[str, Any]:
    """``overall`` and by id of ``principles``: what ``detection.figures`` gives."""
    names = dict.fromkeys(one["principle_id"] for r in records for one in r["principles"])
    return {
        "overall": figures([(r["harmful"], r["probability"]) for r in records]),
        "principles": {
            name: figures(
                [
                    (r["harmful"], one["probability"])
                    for r in records
                    for one in r["principles"]
                    if one["principle_id"] == name
                ]
            )
            for name in names
        },
    }


def complaints(overall: dict[str, Any], config: PreflightConfig, critic: str) -> Iterator[str]:
    """A sentence for every bar that the critic is below."""
    auc, missed, alarms = overall["auc"], overall["missed"], overall["false_alarms"]
    if auc is None or auc < config.min_auc:
        shown = "unknown" if auc is None else f"{auc:.2f}"
        yield (
            f"the critic {critic!r} cannot tell harmful responses from harmless ones: its area "
            f"under the ROC curve is {shown}, below preflight.min_auc = {config.min_auc:g}; 0.5 is "
            "a coin's"
        )
    if missed["rate"] > config.max_missed:
        yield (
            f"the critic {critic!r} does not see harm: it misses {missed['rate']:.0%} of "
            f"{missed['n']} harmful responses, more than preflight.max_missed = "
            f"{config.max_missed:g}"
        )
    if alarms["rate"] > config.max_false_alarms:
        yield (
            f"the critic {critic!r} sees harm where there is none: it condemns "
            f"{alarms['rate']:.0%} of {alarms['n']} harmless responses, more than "
            f"preflight.max_false_alarms = {config.max_false_alarms:g}"
        )


def described(found: dict[str, Any]) -> Iterator[str]:
    """A line for all principles together, and one for each if there are several."""
    yield f"preflight: the critic on labelled responses: {_line(found['overall'])}"
    if len(found["principles"]) > 1:
        for name, one in found["principles"].items():
            yield f"preflight: by {name}: {_line(one)}"


def _line(one: dict[str, Any]) -> str:
    auc, separation = ("-" if one[k] is None else f"{one[k]:.2f}" for k in ("auc", "separation"))
    missed, alarms, right = (one[k] for k in ("missed", "false_alarms", "accuracy"))
    silent = f", {one['no_verdict']} without a verdict" if one["no_verdict"] else ""
    return (
        f"right {right['rate']:.0%}, AUC {auc}, separation {separation}, misses "
        f"{missed['rate']:.0%} of {missed['n']} harmful, condemns {alarms['rate']:.0%} of "
        f"{alarms['n']} harmless{silent}"
    )


def _concluded(context: StageContext, doubts: Sequence[str], summary: Summary) -> Summary:
    """Warn, or stop.

    Raises:
        StageFailed: There are doubts, and the configuration says to stop.
    """
    advice = "Use a stronger critic (models.critic) or other principles"
    if doubts and context.config.preflight.mode == "stop":
        raise StageFailed(
            f"preflight: {'; '.join(doubts)}. {advice}, or go on with preflight.mode=warn and "
            "--resume"
        )
    for doubt in doubts:
        context.progress.note(f"WARNING: {doubt}. {advice}.")
    return summary | {"warnings": list(doubts)}


async def _make(context: StageContext, one: Labelled, asked: Sequence[Principle]) -> Record:
    made = await context.fleet.critic().assess(
        one.conversation,
        one.response,
        constitution=context.fleet.constitution("critic"),
        principle_ids=[principle.id for principle in asked],
        min_option_mass=context.config.preflight.min_option_mass,
    )
    return {
        "id": one.id,
        "prompt": one.conversation.as_dicts(),
        "response": one.response,
        "harmful": one.harmful,
        "probability": made.probability,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
        "principles": [rows.assessment(assessed) for assessed in made.principles],
        "critic_model": context.fleet.info("critic").model,
        "weight_version": made.weight_version,
        "constitution": context.constitution.name,
        "constitution_digest": made.constitution_digest,
        "usage": rows.plain(made.usage),
        "timing": rows.plain(made.timing),
    }
