"""The responses of a prompt and the pairs of them that are to be compared.

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

from solon.client import Generated
from solon.constitution import derive_seed
from solon.trainer.prompts import Prompt
from solon.trainer.stages import filters, rows
from solon.trainer.stages.context import StageContext
from solon.trainer.stages.filters import Dropped
from solon.trainer.stages.preference_settings import PreferencesConfig
from solon.trainer.stages.rows import Row


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses of one prompt, by their places."""

    a: int
    b: int
    dropped: Dropped | None
    """Why it is not to be judged."""


async def sample(context: StageContext, prompt: Prompt, seed: int) -> tuple[list[Row], Row]:
    """The SL model's responses, in turn of the temperatures, and who answered at what cost.

    Returns:
        Rows of ``schemas.RESPONSE`` and one of ``schemas.ANSWERED``.

    Raises:
        ServiceError, SolonError: As ``Policy.generate``.
    """
    config = context.config.preferences
    temperatures = config.temperatures or (config.sampling.temperature,)
    replies: list[Generated] = []
    made: list[Row] = [{}] * config.responses
    for turn, temperature in enumerate(temperatures):
        settings = config.sampling.model_copy(update={"temperature": temperature})
        places = range(turn, config.responses, len(temperatures))
        reply = await context.fleet.policy.generate(
            prompt.conversation,
            weights=context.weights["sl"],
            sampling=rows.sampling(settings, derive_seed(seed, "responses", *[turn] * bool(turn))),
            n=len(places),
        )
        replies.append(reply)
        for place, completion in zip(places, reply.completions, strict=True):
            made[place] = rows.completion(completion) | {"temperature": temperature}
    answered = rows.answered(replies[0], context.fleet.info("policy"), config.sampling)
    spent: dict[str, Any] = {
        "usage": rows.plain(reduce(add, (reply.usage for reply in replies))),
        "timing": rows.plain(reduce(add, (reply.timing for reply in replies))),
    }
    return made, answered | spent


def outcome(response: Row) -> str:
    """What became of a response: made, empty, truncated or aborted."""
    if not response["text"].strip():
        return "empty"
    return {"stop": "made", "length": "truncated"}.get(response["finish_reason"], "aborted")


def identical(responses: Sequence[Row]) -> int:
    """How many responses are equal to one before them."""
    return len(responses) - len({response["text"] for response in responses})


def choose(responses: Sequence[Row], config: PreferencesConfig, seed: int) -> list[Pair]:
    """The pairs to compare, up to ``config.pairs``, and those that were met and left out.

    Of the usable responses, each text once: a seeded draw of all pairs, or the most different
    first.
    """
    chosen: list[Pair] = []
    wanted = config.pairs
    for a, b in _in_order(responses, config, seed):
        dropped = filters.of_texts(responses[a]["text"], responses[b]["text"], config.filters)
        chosen.append(Pair(a, b, dropped))
        wanted -= dropped is None
        if not wanted:
            break
    return chosen


def _in_order(
    responses: Sequence[Row], config: PreferencesConfig, seed: int
) -> Iterator[tuple[int, int]]:
    pairs = list(combinations(_distinct(responses), 2))
    if config.selection == "most_different":
        pairs.sort(
            key=lambda pair: filters.similarity(*(responses[place]["text"] for place in pair))
        )
    else:
        random.Random(seed).shuffle(pairs)
    yield from pairs


def _distinct(responses: Sequence[Row]) -> list[int]:
    """Places of the usable responses, each text once."""
    first: dict[str, int] = {}
    for place, response in enumerate(responses):
        if outcome(response) == "made":
            first.setdefault(response["text"], place)
    return list(first.values())
