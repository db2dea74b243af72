"""The stage that makes the preference model's data: pairs of responses, labelled by the judge.

The SL model answers every prompt n times, at one temperature or several; different answers are
compared by the constitution, in both orders, and the probabilities are kept soft. Method: Bai et
al. 2022 (2212.08073), section 4.1; both orders as in Lee et al. 2023 (2309.00267), section 2.1. A
comparison without a verdict, or that a filter leaves out, is kept as such, counted, and never
trained on. Knows nothing of training or of any ground truth.
"""

from __future__ import annotations

from collections import Counter
from math import comb
from typing import Any

from solon.constitution import derive_seed
from solon.trainer.prompts import Prompt
from solon.trainer.schemas import PREFERENCES
from solon.trainer.stages import candidates, filters, judging, rows
from solon.trainer.stages.candidates import Pair
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.stages.filters import Dropped, prefers_position
from solon.trainer.stages.preference_export import FOLDER, Split, collect
from solon.trainer.stages.work import Share, make_records
from solon.trainer.store import Record

_FOLLOWS = "follow the position"


class _Counts:
    """What became of responses and pairs, over this and earlier attempts at the stage."""

    def __init__(self, context: StageContext, prompts: int) -> None:
        config = context.config.preferences
        pairs = prompts * config.pairs
        self.responses = Share(
            what="preferences: unusable responses of the SL model",
            key="preferences.max_unusable_share",
            limit=config.max_unusable_share,
            total=prompts * config.responses,
        )
        self.pairs = Share(
            what="preferences: pairs without a verdict",
            key="preferences.max_no_verdict_share",
            limit=config.max_no_verdict_share,
            total=pairs,
        )
        self.positions = Share(
            what="preferences: verdicts in both orders",
            key="preferences.max_position_bias",
            limit=config.max_position_bias,
            total=pairs,
        )
        self.drops = Share(
            what="preferences: pairs that the filters leave out",
            key="preferences.max_dropped_share",
            limit=config.max_dropped_share,
            # another pair takes the place of one that is left out
            total=prompts * comb(config.responses, 2),
        )
        self.identical = 0

    @property
    def position_bias(self) -> float | None:
        """Of the pairs with a verdict in both orders, the part that follows the position."""
        both = self.positions.counts.total()
        return self.positions.counts[_FOLLOWS] / both if both else None

    def add(self, record: Record) -> None:
        """Count one record.

        Raises:
            StageFailed: Too many unusable responses, or pairs without a verdict, or with one that
                follows the position, or left out.
        """
        self.identical += record["identical"]
        self.responses.add(candidates.outcome(response) for response in record["responses"])
        for pair in record["comparisons"]:
            self.drops.add([pair["dropped"] or "made"])
            if not pair["principles"]:
                continue  # it was never judged
            self.pairs.add([_reason(pair) or "made"])
            if (follows := prefers_position(pair)) is not None:
                self.positions.add([_FOLLOWS if follows else "made"])

    def end(self, copies: int) -> None:
        """All records are counted; so many of their pairs are copies of others.

        Raises:
            StageFailed: As ``add``, of the pairs that there were, perhaps fewer than thought.
        """
        self.drops.counts["made"] -= copies
        self.drops.counts[Dropped.COPY.value] += copies
        for share in (self.pairs, self.positions, self.drops):
            share.end()


async def run(context: StageContext) -> Summary:
    """Make a record of every prompt that has none yet, then the exports for the preference model.

    Raises:
        StageFailed: Too few verdicts or usable responses, too many verdicts that follow the
            position or pairs that are left out, or no pair is left to train on.
        TrainerError, SolonError: As the store and the services raise.
    """
    config = context.config.preferences
    prompts = context.prompts["preferences"].prompts
    parts = context.run.parts(FOLDER, PREFERENCES)
    done = parts.ids()
    counts = _Counts(context, len(prompts))
    context.progress.start(len(prompts), len(done))
    for record in parts.records():
        counts.add(record)

    def on_record(record: Record) -> None:
        context.progress.advance()
        counts.add(record)

    await make_records(
        [prompt for prompt in prompts if prompt.id not in done],
        lambda prompt: _make(context, prompt),
        parts=parts,
        in_flight=context.config.services.in_flight,
        store=context.config.store,
        on_record=on_record,
    )
    export = collect(context.run, config)
    counts.end(export.copies)
    exported = export.write(context.run)
    summary = _summary(counts, len(prompts), exported) | export.figures()
    _tell(context, summary)
    return summary


async def _make(context: StageContext, prompt: Prompt) -> Record:
    config = context.config.preferences
    seed = derive_seed(context.config.seed, FOLDER, prompt.id)
    responses, policy = await candidates.sample(context, prompt, seed)
    pairs = candidates.choose(responses, config, derive_seed(seed, "pairs"))
    return {
        "id": prompt.id,
        **rows.origin(prompt),
        "prompt": prompt.conversation.as_dicts(),
        "seed": seed,
        "responses": responses,
        "identical": candidates.identical(responses),
        "policy": policy,
        "comparisons": [await _compare(context, prompt, responses, pair, seed) for pair in pairs],
        "constitution": context.constitution.name,
        "constitution_digest": context.constitution.digest,
        "judge_model": context.fleet.info("judge").model,
        "judge_settings": judging.settings(config),
    }


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
    )
    dropped = filters.of_verdict(made, config.filters)
    return made | {"dropped": dropped and dropped.value}


def _reason(pair: Record) -> str | None:
    """Why there is no verdict: the principles' most frequent reason says more than their sum's."""
    if pair["no_verdict_reason"] is None:
        return None
    found = Counter(verdict["no_verdict_reason"] for verdict in pair["principles"])
    found.pop(None, None)
    return str(found.most_common(1)[0][0]) if found else str(pair["no_verdict_reason"])


def _summary(counts: _Counts, prompts: int, exported: dict[Split, int]) -> Summary:
    pairs = counts.pairs.counts
    return {
        "prompts": prompts,
        "pairs": counts.drops.counts.total(),
        "verdicts": pairs["made"],
        "no_verdict": counts.pairs.bad,
        "dropped": counts.drops.bad,
        "identical_responses": counts.identical,
        "unusable_responses": counts.responses.bad,
        "position_bias": counts.position_bias,
        "exported": dict(exported),
    }


def _tell(context: StageContext, summary: dict[str, Any]) -> None:
    for key, what in (("no_verdict", "have no verdict"), ("dropped", "are left out by filters")):
        if summary[key]:
            listed = ", ".join(f"{n} {reason}" for reason, n in summary[key].items())
            context.progress.note(f"preferences: of {summary['pairs']:,} pairs {what}: {listed}")
