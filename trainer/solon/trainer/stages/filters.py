"""Which responses and pairs are not trained on, and why: pure functions of plain rows.

Each reason is a typed outcome that stays with the record and is counted. Knows nothing of stages
or of who made or judged the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from solon.trainer.similarity import repeated_trigrams, resemblance, shingles, words
from solon.trainer.stages.preference_settings import PairFilters
from solon.trainer.stages.rows import verdicts_of

Row = Mapping[str, Any]


class Dropped(StrEnum):
    """Why a pair is not trained on."""

    REPETITIVE = "repetitive"
    """A response says the same again and again."""
    LENGTH = "length"
    """A response is too short or too long, or one much longer than the other."""
    SIMILAR = "similar"
    """The responses say nearly the same."""
    NEAR_TIE = "near_tie"
    """The label is too near to 1/2."""
    FOLLOWS_POSITION = "follows_position"
    """The two orders disagree."""
    COPY = "copy"
    """The same two responses were a pair often enough before."""


def repetition(text: str) -> float:
    """The share of the text's word trigrams that were in it before; 0 below three words."""
    return repeated_trigrams(words(text))


def similarity(one: str, other: str) -> float:
    """How far two responses say the same, 0 to 1; see ``solon.trainer.similarity``."""
    return resemblance(shingles(one), shingles(other))


def is_repetitive(text: str, most: float | None) -> bool:
    """Whether more than this share of the text repeats itself; None: nothing does."""
    return most is not None and repetition(text) > most


def of_texts(one: str, other: str, filters: PairFilters) -> Dropped | None:
    """Why two responses make no pair, as far as their texts tell."""
    if any(is_repetitive(text, filters.max_repetition) for text in (one, other)):
        return Dropped.REPETITIVE
    if _has_bad_length(min(len(one), len(other)), max(len(one), len(other)), filters):
        return Dropped.LENGTH
    most = filters.max_similarity
    if most is not None and similarity(one, other) > most:
        return Dropped.SIMILAR
    return None


def of_verdict(comparison: Row, filters: PairFilters) -> Dropped | None:
    """Why a judged pair is not trained on, as far as its verdict tells; None without a verdict."""
    probability = comparison["probability_a"]
    if probability is None:
        return None
    if filters.consistent_orders and prefers_position(comparison):
        return Dropped.FOLLOWS_POSITION
    if abs(probability - 0.5) < filters.min_margin:
        return Dropped.NEAR_TIE
    return None


def copies(pairs: Iterable[Row], most: int | None) -> Iterator[str]:
    """Ids of the pairs whose two responses were a pair so often before; none if that is None.

    Args:
        pairs: Rows with ``id``, ``chosen`` and ``rejected`` (messages), in the order that counts.
        most: Times that the same two responses may be a pair.
    """
    seen: Counter[frozenset[str]] = Counter()
    for pair in pairs if most is not None else ():
        texts = frozenset(pair[side][-1]["content"] for side in ("chosen", "rejected"))
        seen[texts] += 1
        if most is not None and seen[texts] > most:
            yield pair["id"]


def prefers_position(comparison: Row) -> bool | None:
    """Whether the choice follows the position: the orders, each a mean over principles, disagree.

    Of a panel, over the principles of all its judges.

    None unless there is a verdict in both orders.
    """
    means: list[float] = []
    for swapped in (False, True):
        found = [
            (verdict["weight"], order["probability_a"])
            for verdict in verdicts_of(comparison)
            for order in verdict["orders"]
            if order["swapped"] is swapped and order["probability_a"] is not None
        ]
        if not found:
            return None
        means.append(sum(w * p for w, p in found) / sum(w for w, _ in found))
    return min(means) < 0.5 < max(means)


def _has_bad_length(shorter: int, longer: int, filters: PairFilters) -> bool:
    ratio, most = filters.max_length_ratio, filters.max_characters
    return (
        shorter < filters.min_characters
        or (most is not None and longer > most)
        or (ratio is not None and longer > ratio * shorter)
    )
