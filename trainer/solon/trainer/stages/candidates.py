"""The prompts, their responses, and the pairs of them that are to be compared.

Knows nothing of judges, and of labels no more than that a pair may be left out before it has one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any

from solon.chat import Conversation
from solon.client import Generated, Outcome
from solon.constitution import derive_seed
from solon.trainer.prompts import Prompt
from solon.trainer.schemas import REVISIONS
from solon.trainer.spool import TextSet
from solon.trainer.stages import filters, revisions, rows
from solon.trainer.stages.context import StageContext
from solon.trainer.stages.filters import Dropped
from solon.trainer.stages.preference_settings import PreferencesConfig
from solon.trainer.stages.rows import Row
from solon.trainer.store import Record

_SAMPLE = "sample"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One prompt and where its responses come from; at least one of the two."""

    prompt: Prompt
    is_sampled: bool
    """Whether the policy answers it."""
    revised: Record | None
    """Its record of the revisions stage, in which there is a revision to compare."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses of one prompt, by their places."""

    a: int
    b: int
    dropped: Dropped | None
    """Why it is not to be judged."""


def items(context: StageContext) -> Iterator[Item]:
    """What ``preferences.source`` says; a prompt of both sources once.

    Revisions are compared in the first iteration alone: in the others they would be the same.

    Raises:
        StoreError: A record of the revisions stage cannot be read.
    """
    source = context.config.preferences.source
    sampled = context.prompts["preferences"].prompts
    revised = TextSet()
    if source != "samples" and context.step.iteration == 1:
        for record in context.run.parts(revisions.FOLDER, REVISIONS).records():
            if not _last_revision(record):
                continue
            name = record["id"]
            revised.add(name)
            yield Item(
                prompt=sampled.get(name) or _prompt_of(record),
                is_sampled=source == "both" and sampled.has(name),
                revised=record,
            )
    if source != "revisions" or context.step.iteration > 1:
        for one in sampled:
            if one.id not in revised:
                yield Item(prompt=one, is_sampled=True, revised=None)


async def responses_of(
    context: StageContext, item: Item, seed: int
) -> tuple[list[Row], Row | None]:
    """All responses of a prompt, and who answered now at what cost; None if nobody did.

    Returns:
        Rows of ``schemas.RESPONSE``, the samples first, and one of ``schemas.ANSWERED``.

    Raises:
        ServiceError, SolonError: As ``Policy.generate``.
    """
    made, policy = await _sample(context, item.prompt, seed) if item.is_sampled else ([], None)
    return made + (_revised(item.revised) if item.revised is not None else []), policy


async def _sample(context: StageContext, prompt: Prompt, seed: int) -> tuple[list[Row], Row]:
    """The policy's responses, in turn of the temperatures, and who answered at what cost."""
    config = context.config.preferences
    temperatures = config.temperatures or (config.sampling.temperature,)
    replies: list[Generated] = []
    made: list[Row] = [{}] * config.responses
    for turn, temperature in enumerate(temperatures):
        settings = config.sampling.model_copy(update={"temperature": temperature})
        places = range(turn, config.responses, len(temperatures))
        reply = await context.fleet.policy.generate(
            prompt.conversation,
            weights=context.weights[context.step.policy],
            sampling=rows.sampling(settings, derive_seed(seed, "responses", *[turn] * bool(turn))),
            n=len(places),
        )
        replies.append(reply)
        for place, completion in zip(places, reply.completions, strict=True):
            how = {"origin": _SAMPLE, "temperature": temperature}
            made[place] = rows.completion(completion) | how
    answered = rows.answered(replies[0], context.fleet.info("policy"), config.sampling)
    spent: dict[str, Any] = {
        "usage": rows.plain(reduce(add, (reply.usage for reply in replies))),
        "timing": rows.plain(reduce(add, (reply.timing for reply in replies))),
    }
    return made, answered | spent


def is_sample(response: Row) -> bool:
    """Whether the policy made it in this stage."""
    return bool(response["origin"] == _SAMPLE)


def identical(responses: Sequence[Row]) -> int:
    """How many samples are equal to one before them."""
    texts = [response["text"] for response in responses if is_sample(response)]
    return len(texts) - len(set(texts))


def choose(
    responses: Sequence[Row], config: PreferencesConfig, seed: int, ranking: Sequence[int] = ()
) -> list[Pair]:
    """The pairs to compare, up to ``config.pairs`` of samples, and those that were left out.

    Of the usable samples, each text once: a seeded draw of all pairs, the most different first, or
    the ends of a ranking. Beside them the first response against its revision, if there is one.

    Args:
        responses: Rows of ``schemas.RESPONSE``.
        config: The stage's.
        seed: Of the draw.
        ranking: Places of samples, best first; for ``best_worst``.
    """
    chosen: list[Pair] = []
    wanted = config.pairs
    for a, b in _in_order(responses, config, seed, ranking):
        chosen.append(_pair(responses, a, b, config))
        wanted -= chosen[-1].dropped is None
        if not wanted:
            break
    revised = [place for place in _distinct(responses) if not is_sample(responses[place])]
    if len(revised) == 2:
        first, last = revised
        chosen.append(_pair(responses, first, last, config))
    return chosen


def usable_samples(responses: Sequence[Row]) -> list[int]:
    """Places of the usable samples, of equal ones the first."""
    return [place for place in _distinct(responses) if is_sample(responses[place])]


def _pair(responses: Sequence[Row], a: int, b: int, config: PreferencesConfig) -> Pair:
    dropped = filters.of_texts(responses[a]["text"], responses[b]["text"], config.filters)
    return Pair(a, b, dropped)


def _in_order(
    responses: Sequence[Row], config: PreferencesConfig, seed: int, ranking: Sequence[int]
) -> Iterator[tuple[int, int]]:
    if config.selection == "best_worst":
        half = len(ranking) // 2
        ends = zip(ranking[:half], reversed(ranking), strict=False)
        yield from ((min(pair), max(pair)) for pair in ends)
        return
    pairs = list(combinations(usable_samples(responses), 2))
    if config.selection == "most_different":
        pairs.sort(
            key=lambda pair: filters.similarity(*(responses[place]["text"] for place in pair))
        )
    else:
        random.Random(seed).shuffle(pairs)
    yield from pairs


def _distinct(responses: Sequence[Row]) -> list[int]:
    """Places of the usable responses; of samples that are equal the first, and so of revisions."""
    first: dict[tuple[bool, str], int] = {}
    for place, response in enumerate(responses):
        if rows.outcome(response) is Outcome.MADE:
            first.setdefault((is_sample(response), response["text"]), place)
    return list(first.values())


def _last_revision(record: Record) -> Record | None:
    """The round whose revision is compared; None without one that the model ended itself."""
    made = [one for one in record["rounds"] if one["revision_outcome"] == "made"]
    return made[-1] if made else None


def _prompt_of(record: Record) -> Prompt:
    return Prompt(
        id=record["id"],
        conversation=Conversation.from_dicts(record["prompt"]),
        source=record["source"],
        row=record["row"],
        category=record["category"],
    )


def _revised(record: Record) -> list[Row]:
    last = _last_revision(record)
    assert last is not None, "items has no record without one"
    first = record["policy"]["sampling"]["temperature"]
    then = record["critic_sampling"]["temperature"]
    return [
        record["responses"][0] | {"origin": "initial", "temperature": first},
        last["revision"] | {"origin": f"revision {last['round']}", "temperature": then},
    ]
