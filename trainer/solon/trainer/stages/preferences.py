"""The stage that makes the preference model's data: pairs of responses, labelled by the judge.

The SL model, in later iterations the RL model, answers every prompt n times, at one temperature or
several; different answers, or a revision and what it revises, are compared by the constitution, in
both orders, and the probabilities are kept soft. Method: Bai et al. 2022 (2212.08073), section 4.1;
both orders as in Lee et al. 2023 (2309.00267), section 2.1. A comparison without a verdict, or that
a filter leaves out, is kept as such, counted, and never trained on. Knows nothing of training or of
any ground truth.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from solon.constitution import derive_seed, tagged
from solon.trainer.prompts import Prompt
from solon.trainer.schemas import PREFERENCES
from solon.trainer.stages import candidates, filters, judging, rows
from solon.trainer.stages.candidates import Item, Pair
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.stages.preference_counts import Counts
from solon.trainer.stages.preference_export import Given, copied, export_pairs
from solon.trainer.stages.work import make_records
from solon.trainer.store import Record


async def run(context: StageContext) -> Summary:
    """Make a record of every prompt that has none yet, then the exports for the preference model.

    Raises:
        StageFailed: Too few verdicts or usable responses, too many verdicts that follow the
            position, calls of a panel's judge that failed or pairs that are left out, or no pair
            is left to train on.
        TrainerError, SolonError: As the store and the services raise.
    """
    config, folder = context.config.preferences, context.step.name
    total = Counter[str]()
    for item in candidates.items(context):
        total.update(items=1, sampled=item.is_sampled, revised=item.revised is not None)
    parts = context.run.parts(folder, PREFERENCES)
    done = parts.ids()
    counts = Counts(config, sampled=total["sampled"], revised=total["revised"])
    context.progress.start(total["items"], len(done))
    for record in parts.records():
        counts.add(record)

    def on_record(record: Record) -> None:
        context.progress.advance()
        counts.add(record)

    await make_records(
        (item for item in candidates.items(context) if item.prompt.id not in done),
        lambda item: _make(context, item),
        parts=parts,
        in_flight=context.config.services.in_flight,
        store=context.config.store,
        on_record=on_record,
    )
    out = copied(context.run, context.step, config.filters.max_copies)
    counts.end(len(out))
    given = Given(context.prompts["comparisons"].prompts, config, context.seed)
    export = export_pairs(context.run, context.step, config, without=out, given=given)
    summary = {"prompts": total["items"], **counts.figures(), **export}
    _tell(context, summary)
    return summary


async def _make(context: StageContext, item: Item) -> Record:
    config, prompt = context.config.preferences, item.prompt
    seed = derive_seed(context.seed, "preferences", prompt.id)
    responses, policy = await candidates.responses_of(context, item, seed)
    ranking = await _rank(context, prompt, responses, seed)
    order = [one["response"] for one in ranking if one["strength"] is not None]
    pairs = candidates.choose(responses, config, derive_seed(seed, "pairs"), order)
    return {
        "id": prompt.id,
        **rows.origin(prompt),
        "prompt": prompt.conversation.as_dicts(),
        "seed": seed,
        "responses": responses,
        "identical": candidates.identical(responses),
        "policy": policy,
        "ranking": ranking,
        "comparisons": [await _compare(context, prompt, responses, pair, seed) for pair in pairs],
        "constitution": context.constitution.name,
        "constitution_digest": context.constitution.digest,
        "judge_model": context.fleet.judge_model,
        "judge_settings": judging.settings(config),
    }


async def _rank(
    context: StageContext, prompt: Prompt, responses: list[rows.Row], seed: int
) -> list[rows.Row]:
    """Rows of ``schemas.RANKED``; none unless the ranking is to choose the pairs."""
    config = context.config.preferences
    places = candidates.usable_samples(responses)
    if config.selection != "best_worst" or len(places) < 2:
        return []
    ranked = await judging.rank(
        context.fleet,
        config,
        prompt.conversation,
        [responses[place]["text"] for place in places],
        seed=seed,
        among=tagged(context.constitution.for_comparison, prompt.judged_by),
    )
    return [{"response": places[index], "strength": strength} for index, strength in ranked]


async def _compare(
    context: StageContext, prompt: Prompt, responses: list[rows.Row], pair: Pair, seed: int
) -> rows.Row:
    places = (pair.a, pair.b)
    if pair.dropped is not None:
        return rows.not_compared(*places, pair.dropped.value)
    config = context.config.preferences
    made = await judging.compare(
        context.fleet,
        config,
        prompt.conversation,
        (responses[pair.a]["text"], responses[pair.b]["text"]),
        places=places,
        seed=seed,
        among=tagged(context.constitution.for_comparison, prompt.judged_by),
    )
    dropped = filters.of_verdict(made, config.filters)
    return made | {"dropped": dropped and dropped.value}


def _tell(context: StageContext, summary: dict[str, Any]) -> None:
    for key, what in (("no_verdict", "have no verdict"), ("dropped", "are left out by filters")):
        if summary[key]:
            listed = ", ".join(f"{n} {reason}" for reason, n in summary[key].items())
            context.progress.note(
                f"{context.step.name}: of {summary['pairs']:,} pairs {what}: {listed}"
            )
    given, share = summary["given"]["train"], context.config.preferences.given.share
    # rounding aside
    if given + 1 < summary["exported"]["train"] * share:
        context.progress.note(
            f"{context.step.name}: prompts.comparisons has {given:,} training pairs, fewer than "
            f"preferences.given.share = {share!r} asks for"
        )
