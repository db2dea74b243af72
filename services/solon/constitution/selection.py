"""Seeded draws of principles: the same seed gives the same principles on every platform.

The paper draws one principle anew for every revision round and for every comparison (Bai et al.
2022, arXiv 2212.08073, sections 3.1 and 4.1). Knows nothing of models, prompts or gRPC.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Collection, Sequence

from solon.constitution.types import Principle

_SEEDS = 2**64


def draw(principles: Sequence[Principle], count: int, seed: int) -> tuple[Principle, ...]:
    """Draw ``count`` principles without replacement, with odds in proportion to their weights.

    Args:
        principles: The candidates. Their order is part of the input.
        count: 1 to the number of candidates.
        seed: 0 to 2**64 - 1.

    Raises:
        ValueError: ``count`` or ``seed`` is out of its range.
    """
    if not 1 <= count <= len(principles):
        raise ValueError(
            f"count: expected 1 to {len(principles)}, the number of usable principles, got {count}"
        )
    _check_seed(seed)
    # random() of an integer seed is the same for every Python version, as choices() is not
    generator = random.Random(seed)
    left = list(principles)
    return tuple(left.pop(_position(left, generator.random())) for _ in range(count))


def tagged(principles: Sequence[Principle], tags: Collection[str]) -> tuple[Principle, ...]:
    """Those of the principles that have one of the tags, in their order."""
    return tuple(one for one in principles if not set(one.tags).isdisjoint(tags))


def by_priority(principles: Sequence[Principle]) -> tuple[Principle, ...]:
    """The lowest ``priority`` first; those that share one, and last those without, as given."""
    return tuple(sorted(principles, key=lambda p: math.inf if p.priority is None else p.priority))


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed of its own for one piece of the work, such as (prompt id, round).

    The first 64 bits of SHA-256 over ``seed`` and ``parts``; ``1`` and ``"1"`` differ.

    Raises:
        ValueError: ``seed`` is not in 0 to 2**64 - 1.
    """
    _check_seed(seed)
    content = json.dumps([seed, *parts], ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


def _position(principles: Sequence[Principle], fraction: float) -> int:
    # the largest finite weights would sum to infinity; a power of two changes no draw
    exponent = max(math.frexp(p.weight)[1] for p in principles)
    weights = [math.ldexp(p.weight, -exponent) for p in principles]
    target = fraction * sum(weights)
    for index, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return index
    # rounding can leave a hair of the last weight
    return len(principles) - 1


def _check_seed(seed: int) -> None:
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
