"""When texts say the same: their normal form, near-duplicates, repetition, how diverse a set is.

Languages that are written without spaces count by characters instead of words. Knows nothing of
prompts or files.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from solon.chat import Conversation

Shingles = frozenset[tuple[str, ...]]

_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
"""Thai and Lao, Japanese kana, Chinese characters."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_MOST_COMPARED = 1000


class _Blanks(dict[int, str]):
    """Code point -> what it is in a normal form: a blank for punctuation, space and control."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # Sk: accents that stand alone, the backtick among them
        is_blank = unicodedata.category(character).startswith(("P", "Z", "C", "Sk"))
        self[code] = " " if is_blank else character
        return self[code]


_BLANKS = _Blanks()


def normal_form(text: str) -> str:
    """The text without regard to case, white space, punctuation and ways to encode a character.

    Of a text that is nothing else, the characters themselves.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_BLANKS).split()) or folded.strip()


def words(text: str) -> list[str]:
    """The words of the normal form; of unspaced languages, its characters."""
    return _WORD.findall(normal_form(text))


def conversation_key(conversation: Conversation) -> str:
    """The same for conversations whose turns have the same normal forms, and for no others."""
    return "\n".join(f"{turn.role}:{normal_form(turn.content)}" for turn in conversation.messages)


def shingles(text: str) -> Shingles:
    """The pairs of neighbouring words of the normal form, its beginning and its end among them.

    Broder 1997, "On the resemblance and containment of documents", with shingles of two words:
    prompts are short.
    """
    return frozenset(pairwise(["", *words(text), ""]))


def resemblance(one: Shingles, other: Shingles) -> float:
    """Jaccard's index: the share of all shingles that both have, 0 to 1."""
    return len(one & other) / len(one | other)


def repeated_trigrams(items: Sequence[Hashable]) -> float:
    """The share of the runs of three that were there before, 0 to 1; 0 below three items.

    One minus the distinct-3 of Li et al. 2016 (1510.03055): shorter runs of words come again in
    ordinary text, longer ones miss short loops.
    """
    trigrams = list(zip(items, items[1:], items[2:], strict=False))
    return 1 - _distinct(trigrams) if trigrams else 0.0


class NearDuplicates:
    """Texts of which no two resemble each other, and whether a further one does.

    Exact: a text is compared with all that can reach the threshold t. Those share ``t|x|`` of its
    shingles at least, hence one of any ``|x| - ceil(t|x|) + 1``; the rarest are looked up (Sarawagi
    and Kirpal 2004, "Efficient set joins on similarity predicates": the longest lists need no
    merging).
    """

    def __init__(self, threshold: float) -> None:
        """Start empty.

        Args:
            threshold: Resemblance from which on two texts are near-duplicates, above 0 and up to 1.
        """
        self._threshold = threshold
        self._kept: list[tuple[str, Shingles]] = []
        self._with: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def find(self, text: str) -> str | None:
        """The first kept text that this one nearly duplicates; None: it is new."""
        found = shingles(text)
        lists = sorted((self._with.get(one, []) for one in found), key=len)
        looked_up = len(found) - math.ceil(self._threshold * len(found)) + 1
        for number in sorted({number for of in lists[:looked_up] for number in of}):
            kept, other = self._kept[number]
            if resemblance(found, other) >= self._threshold:
                return kept
        return None

    def keep(self, text: str) -> None:
        """Further texts are compared with this one, too."""
        found = shingles(text)
        for one in found:
            self._with[one].append(len(self._kept))
        self._kept.append((text, found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity:
    """How different the texts of a set are from one another."""

    texts: int
    distinct_1: float
    """Different words, as a share of all words (Li et al. 2016, 1510.03055, section 5.2); falls
    with the number of texts, so compare sets of one size."""
    distinct_2: float
    """The same of pairs of neighbouring words."""
    nearest: float | None
    """Mean resemblance of a text to the one most like it, 0 to 1; None of fewer than two texts."""
    compared: int
    """Texts that ``nearest`` is of: all, or a seeded draw of a thousand."""


def diversity(texts: Sequence[str], seed: int = 0) -> Diversity:
    """Measure a set of texts."""
    drawn = random.Random(seed).sample(texts, min(len(texts), _MOST_COMPARED))
    found = [words(text) for text in texts]
    return Diversity(
        texts=len(texts),
        distinct_1=_distinct(word for of in found for word in of),
        distinct_2=_distinct(pair for of in found for pair in pairwise(of)),
        nearest=_nearest([shingles(text) for text in drawn]),
        compared=len(drawn),
    )


def _distinct(items: Iterable[Hashable]) -> float:
    counts = Counter(items)
    return len(counts) / counts.total() if counts else 0.0


def _nearest(sets: Sequence[Shingles]) -> float | None:
    if len(sets) < 2:
        return None
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(sets):
        for shingle in one:
            holders[shingle].append(number)
    total = 0.0
    for number, one in enumerate(sets):
        shared = Counter(other for shingle in one for other in holders[shingle])
        del shared[number]
        total += max(
            (both / (len(one) + len(sets[other]) - both) for other, both in shared.items()),
            default=0.0,
        )
    return total / len(sets)
