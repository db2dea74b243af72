"""Tells sentences of the sandbox world from word salad, by rules on neighbouring words.

Not a grammar: it counts what no sentence does, so that an unusual wording passes and a shuffled
or looping text does not. Knows nothing of acts or outcomes.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

_DETERMINERS = frozenset({"the", "a", "an", "someone's"})
_FUNCTION_WORDS = frozenset(
    [
        "the",
        "a",
        "an",
        "someone's",
        "you",
        "i",
        "it",
        "to",
        "then",
        "first",
        "because",
        "but",
        "would",
        "won't",
        "can't",
        "can",
        "is",
        "of",
        "with",
        "how",
        "instead",
        "sorry",
        "here",
    ]
)
_AFTER_I = frozenset(
    [
        "i'm",
        "am",
        "can",
        "can't",
        "cannot",
        "could",
        "do",
        "don't",
        "have",
        "know",
        "must",
        "never",
        "refuse",
        "see",
        "think",
        "understand",
        "want",
        "was",
        "will",
        "won't",
        "would",
        "wouldn't",
        "shall",
        "should",
        "also",
        "am",
    ]
)
_NEVER_LAST = _DETERMINERS | frozenset({"to", "i", "because", "won't", "can't", "would", "but"})
_NEVER_AFTER_TO = frozenset(
    [
        "to",
        "then",
        "first",
        "because",
        "would",
        "won't",
        "can't",
        "is",
        "sorry",
        "i",
        "a",
        "instead",
        "but",
    ]
)
_MOST_DEFECTS = 1
_LOOP_WORDS = 3
_LOOP_TIMES = 3


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; apostrophes belong to words."""
    return re.findall(r"[a-z']+", text.lower())


def is_salad(text: str) -> bool:
    """Whether a text loops, or breaks the order of words more than once."""
    return _loops(words_of(text)) or sum(map(_defects, _clauses(text))) > _MOST_DEFECTS


def _clauses(text: str) -> list[list[str]]:
    return [words for part in re.split(r"[.!?:,;]+", text) if (words := words_of(part))]


def _loops(words: list[str]) -> bool:
    runs = Counter(tuple(words[i : i + _LOOP_WORDS]) for i in range(len(words) - _LOOP_WORDS + 1))
    return bool(runs) and max(runs.values()) >= _LOOP_TIMES


def _defects(clause: list[str]) -> int:
    return sum(_clash(*pair) for pair in pairwise(clause)) + (clause[-1] in _NEVER_LAST)


def _clash(word: str, following: str) -> bool:
    if word == following:
        return True
    if word in _DETERMINERS:
        return following in _FUNCTION_WORDS
    if word == "to":
        return following in _NEVER_AFTER_TO
    return word == "i" and following not in _AFTER_I
