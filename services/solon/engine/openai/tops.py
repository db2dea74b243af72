"""Log-probabilities from the likeliest tokens that an endpoint tells, along one greedy answer.

An endpoint that tells no more than these cannot be asked how likely a given text is. But where the
answer could begin with one of several texts, the places in which it decides between them are among
its first tokens, and there the alternatives stand side by side. A text's log-probability is that of
the tokens up to where no other text is left that the answer could become: an upper bound of the
whole's, alike for all. What is not among the likeliest is unknown: NaN, never a guess. Pure
functions. Knows nothing of endpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from solon.engine.openai.replies import Chosen, log_probability
from solon.engine.probability import log_mass


def places(texts: Sequence[str]) -> int:
    """Tokens of the answer after which no two of the texts are open, at the most; >= 1."""
    raw = [text.encode() for text in texts]
    shared = [_shared(one, other) for one, other in combinations(raw, 2)]
    # a token has one byte at the least
    return 1 + max(shared, default=0)


def scores(texts: Sequence[str], path: Sequence[Chosen]) -> tuple[float, ...]:
    """Natural log-probability of each text as the beginning of the answer; NaN: not told.

    Args:
        texts: All different.
        path: The answer's tokens in order, each with the likeliest in its place.
    """
    raw = [text.encode() for text in texts]
    found: list[list[float]] = [[] for _ in raw]
    said, so_far = b"", 0.0
    decided: set[int] = set()
    for chosen in path:
        if not set(_open(raw, said)) - decided:
            break
        for token, logprob in _alternatives(chosen).items():
            for index in _became(raw, said, said + token):
                if index not in decided:
                    found[index].append(so_far + logprob)
        decided.update(_became(raw, said, said + chosen.raw))
        said += chosen.raw
        so_far += log_probability(chosen.logprob)
    return tuple(log_mass(some) if some else math.nan for some in found)


def _alternatives(chosen: Chosen) -> dict[bytes, float]:
    """Token -> log-probability; of those that are finite. The one that was chosen is among them."""
    known = {one.raw: log_probability(one.logprob) for one in (chosen, *chosen.top_logprobs)}
    return {token: logprob for token, logprob in known.items() if token and logprob > -math.inf}


def _became(texts: Sequence[bytes], before: bytes, now: bytes) -> list[int]:
    """Indices of the texts that this very token decides for: said in full, or the only one left."""
    said = [i for i, one in enumerate(texts) if now.startswith(one) and not before.startswith(one)]
    left = _open(texts, now)
    alone = len(left) == 1 and len(_open(texts, before)) > 1 and not said
    return [*said, *left] if alone else said


def _shared(one: bytes, other: bytes) -> int:
    """Length of what both begin with."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _open(texts: Sequence[bytes], said: bytes) -> list[int]:
    """Indices of the texts that what was said is a part of, though not yet the whole."""
    return [i for i, one in enumerate(texts) if one.startswith(said) and one != said]
