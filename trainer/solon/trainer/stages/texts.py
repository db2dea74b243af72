"""How far a text repeats itself, and how far two differ: pure functions of their words.

Words as they are written, without case; of scripts that put no spaces between words (Chinese,
Japanese, Thai, ...) each character. So no tokenizer is needed and every language is measured.
Knows nothing of prompts, responses or models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_REPEATED = 3
"""Words: shorter runs come again in ordinary text, longer ones miss short loops."""


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


def repetition(text: str) -> float:
    """The share of the text's word trigrams that were in it before; 0 below three words.

    One minus the distinct-n of Li et al. 2016 (arXiv 1510.03055), n = 3.
    """
    found = _grams(words(text), _REPEATED)
    return 1 - len(set(found)) / len(found) if found else 0.0


def similarity(one: str, other: str) -> float:
    """What two texts have in common of their words and word pairs, 0 to 1 (Dice's coefficient).

    Length-normalised: of two long and of two short texts the same shares count the same. 1 for
    texts without any word.
    """
    ours, theirs = (Counter(_grams(w, 1) + _grams(w, 2)) for w in (words(one), words(other)))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


def _grams(found: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + length]) for i in range(len(found) - length + 1)]
