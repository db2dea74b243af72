"""The stage that makes the preference model's data: pairs of responses, labelled by the judge.

The SL model answers every prompt n times; different answers are compared by the constitution, in
both orders, and the probabilities are kept soft. Method: Bai et al. 2022 (2212.08073), section 4.1;
both orders as in Lee et al. 2023 (2309.00267), section 2.1. A comparison without a verdict is kept
as such, counted, and never trained on. Knows nothing of training or of any ground truth.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

from solon.client import Completion, Generated, PrincipleSample
from solon.constitution import derive_seed
from solon.trainer.errors import StageFailed
from solon.trainer.prompts import Prompt
from solon.trainer.schemas import PREFERENCES, PREFERENCES_EXPORT
from solon.trainer.stages import rows
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.stages.work import Share, make_records
from solon.trainer.store import Record, RunDirectory

FOLDER = "preferences"
Split = Literal["train", "test"]
_FOLLOWS = "follow the position"


class _Counts:
    """What became of responses and pairs, over this and earlier attempts at the stage."""

    def __init__(self, context: StageContext, prompts: int) -> None:
        config = context.config.preferences
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
            total=prompts * config.pairs,
        )
        self.positions = Share(
            what="preferences: verdicts in both orders",
            key="preferences.max_position_bias",
            limit=config.max_position_bias,
            total=prompts * config.pairs,
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
            StageFailed: Too many unusable responses, or pairs without a verdict or with one that
                follows the position.
        """
        self.identical += record["identical"]
        self.responses.add(_outcome_of(response) for response in record["responses"])
        for pair in record["comparisons"]:
            self.pairs.add([_reason(pair) or "made"])
            if (follows := prefers_position(pair)) is not None:
                self.positions.add([_FOLLOWS if follows else "made"])


async def run(context: StageContext) -> Summary:
    """Make a record of every prompt that has none yet, then the exports for the preference model.

    Raises:
        StageFailed: Too few verdicts or usable responses, too many verdicts that follow the
            position, or no pair is left to train on.
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
    counts.pairs.end()
    counts.positions.end()
    exported = export(context.run, test_share=config.test_share)
    return _summary(counts, len(prompts), exported)


def export(run: RunDirectory, *, test_share: float) -> dict[Split, int]:
    """Write the pairs that have a verdict, split by prompt; returns how many there are.

    Raises:
        StageFailed: None is left to train on.
    """
    rows_of: dict[Split, list[Record]] = {"train": [], "test": []}
    for record in run.parts(FOLDER, PREFERENCES).records():
        rows_of[split_of(record["id"], test_share)].extend(pairs_of(record))
    if not rows_of["train"]:
        raise StageFailed(
            "preferences: no pair of different responses has a verdict, so that there is nothing "
            f"to train on; look at the records in {run.url}/{FOLDER}"
        )
    return {
        split: run.export(f"preferences/{split}", found, PREFERENCES_EXPORT)
        for split, found in rows_of.items()
    }


def split_of(prompt_id: str, test_share: float) -> Split:
    """Which split a prompt's pairs belong to: by its id alone, so the same in every run."""
    return "test" if derive_seed(0, "split", prompt_id) < test_share * 2**64 else "train"


def prefers_position(comparison: Record) -> bool | None:
    """Whether the choice follows the position: the orders, each a mean over principles, disagree.

    None unless there is a verdict in both orders.
    """
    means: list[float] = []
    for swapped in (False, True):
        found = [
            (verdict["weight"], order["probability_a"])
            for verdict in comparison["principles"]
            for order in verdict["orders"]
            if order["swapped"] is swapped and order["probability_a"] is not None
        ]
        if not found:
            return None
        means.append(sum(w * p for w, p in found) / sum(w for w, _ in found))
    return (means[0] > 0.5) != (means[1] > 0.5)


async def _make(context: StageContext, prompt: Prompt) -> Record:
    config = context.config.preferences
    seed = derive_seed(context.config.seed, FOLDER, prompt.id)
    reply = await context.fleet.policy.generate(
        prompt.conversation,
        weights=context.weights["sl"],
        sampling=rows.sampling(config.sampling, derive_seed(seed, "responses")),
        n=config.responses,
    )
    distinct = _distinct(reply)
    pairs = chosen_pairs(distinct, config.pairs, derive_seed(seed, "pairs"))
    return {
        "id": prompt.id,
        "source": prompt.source,
        "prompt": prompt.conversation.as_dicts(),
        "seed": seed,
        "responses": [rows.completion(c) for c in reply.completions],
        "identical": _identical(reply),
        "policy": rows.answered(reply, context.fleet.info("policy"), config.sampling),
        "comparisons": [
            await _compare(context, prompt, reply.completions, pair, seed) for pair in pairs
        ],
        "constitution": context.constitution.name,
        "constitution_digest": context.constitution.digest,
        "judge_model": context.fleet.info("judge").model,
    }


def chosen_pairs(candidates: Sequence[int], most: int, seed: int) -> list[tuple[int, int]]:
    """Which responses to compare: a seeded draw of all pairs of candidates."""
    pairs = list(combinations(candidates, 2))
    return random.Random(seed).sample(pairs, min(most, len(pairs)))


async def _compare(
    context: StageContext,
    prompt: Prompt,
    responses: Sequence[Completion],
    pair: tuple[int, int],
    seed: int,
) -> rows.Row:
    config = context.config.preferences
    a, b = pair
    draws = config.principles != "all"
    principle_seed = derive_seed(seed, "principles", a, b) if draws else None
    made = await context.fleet.judge().compare(
        prompt.conversation,
        responses[a].text,
        responses[b].text,
        constitution=context.fleet.constitution("judge"),
        sample=None
        if config.principles == "all"
        else PrincipleSample(config.principles, principle_seed),
        both_orders=config.both_orders,
        min_option_mass=config.min_option_mass,
    )
    return rows.comparison(a, b, made, principle_seed)


def _distinct(reply: Generated) -> list[int]:
    """Indices of the usable responses, each text once."""
    first: dict[str, int] = {}
    for index, made in enumerate(reply.completions):
        if rows.outcome(made).value == "made":
            first.setdefault(made.text, index)
    return list(first.values())


def _identical(reply: Generated) -> int:
    return len(reply.completions) - len({made.text for made in reply.completions})


def _outcome_of(response: Record) -> str:
    if not response["text"].strip():
        return "empty"
    return {"stop": "made", "length": "truncated"}.get(response["finish_reason"], "aborted")


def pairs_of(record: Record) -> Iterator[dict[str, Any]]:
    """The rows of PREFERENCES_EXPORT that come of a record: its pairs that have a verdict."""
    for pair in record["comparisons"]:
        probability = pair["probability_a"]
        if probability is None:
            continue
        chosen, rejected = pair["a"], pair["b"]
        if probability < 0.5:
            chosen, rejected, probability = rejected, chosen, 1 - probability
        yield {
            "id": f"{record['id']}:{pair['a']}-{pair['b']}",
            "source": record["source"],
            "prompt": record["prompt"],
            "chosen": _said(record["responses"][chosen]),
            "rejected": _said(record["responses"][rejected]),
            "probability": probability,
        }


def _reason(pair: Record) -> str | None:
    """Why there is no verdict: the principles' most frequent reason says more than their sum's."""
    if pair["no_verdict_reason"] is None:
        return None
    found = Counter(verdict["no_verdict_reason"] for verdict in pair["principles"])
    found.pop(None, None)
    return str(found.most_common(1)[0][0]) if found else str(pair["no_verdict_reason"])


def _said(response: Record) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response["text"]}]


def _summary(counts: _Counts, prompts: int, exported: dict[Split, int]) -> Summary:
    pairs = counts.pairs.counts
    verdicts = pairs["made"]
    return {
        "prompts": prompts,
        "pairs": pairs.total(),
        "verdicts": verdicts,
        "no_verdict": {name: n for name, n in sorted(pairs.items()) if name != "made"},
        "identical_responses": counts.identical,
        "unusable_responses": {
            name: n for name, n in sorted(counts.responses.counts.items()) if name != "made"
        },
        "position_bias": counts.position_bias,
        "exported": dict(exported),
    }
