"""What a set of prompts holds: how many, of which kinds, how long, how diverse.

Takes prompts one at a time and keeps a hash of each and a thousand texts, so that a set of any
size can be surveyed. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import rich.console
from rich.table import Table

from solon.trainer.prompts import Prompt
from solon.trainer.similarity import NearDuplicates, conversation_key, diversity, words

_DRAWN = 1000
_MOST_CATEGORIES = 30


class Survey:
    """Prompts that were looked at."""

    def __init__(self, near_duplicate: float | None = None) -> None:
        """Start with none.

        Args:
            near_duplicate: Resemblance from which on a prompt is left out for one before it, above
                0 and up to 1 (``similarity.resemblance``). None: only the same text is.
        """
        self._seen: set[bytes] = set()
        self._near = None if near_duplicate is None else NearDuplicates(near_duplicate)
        self._drawn: list[str] = []
        self._random = random.Random(0)
        self._words: list[int] = []
        self._turns: Counter[int] = Counter()
        self._categories: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter(duplicates=0, near_duplicates=0)

    def add(self, prompt: Prompt) -> bool:
        """Count a prompt; returns whether it is new."""
        key = hashlib.sha256(conversation_key(prompt.conversation).encode()).digest()[:16]
        if key in self._seen:
            self._left_out["duplicates"] += 1
            return False
        self._seen.add(key)
        text = "\n".join(turn.content for turn in prompt.conversation.messages)
        if self._near is not None:
            if self._near.find(text) is not None:
                self._left_out["near_duplicates"] += 1
                return False
            self._near.keep(text)
        self._count(prompt, text)
        return True

    def figures(self) -> dict[str, Any]:
        """All of it.

        Returns:
            ``prompts``; ``duplicates`` (but for case, white space and punctuation) and
            ``near_duplicates`` that were left out; ``turns``: messages -> prompts; ``words``:
            median, ninth decile and most; ``categories``: name -> prompts; ``diversity``: of a
            draw of at most a thousand (``similarity.Diversity``).
        """
        return {
            "prompts": len(self._words),
            **self._left_out,
            "turns": dict(sorted(self._turns.items())),
            "words": _quantiles(sorted(self._words)),
            "categories": dict(self._categories.most_common()),
            "diversity": asdict(diversity(self._drawn)),
        }

    def _count(self, prompt: Prompt, text: str) -> None:
        self._words.append(len(words(text)))
        self._turns[len(prompt.conversation.messages)] += 1
        if prompt.category is not None:
            self._categories[prompt.category] += 1
        # a uniform draw of a stream: algorithm R (Vitter 1985)
        if len(self._drawn) < _DRAWN:
            self._drawn.append(text)
        elif (place := self._random.randrange(len(self._words))) < _DRAWN:
            self._drawn[place] = text


def show(figures: Mapping[str, Any], console: rich.console.Console) -> None:
    """``Survey.figures`` for people."""
    console.print(f"{figures['prompts']:,} prompts", soft_wrap=True)
    told = {
        "duplicates left out (but for case, white space, punctuation)": figures["duplicates"],
        "near-duplicates left out": figures["near_duplicates"],
    }
    for what, count in told.items():
        if count:
            console.print(f"{count:,} {what}", soft_wrap=True)
    if not figures["prompts"]:
        return
    turns = ", ".join(f"{count:,} of {n}" for n, count in figures["turns"].items())
    long = figures["words"]
    console.print(f"messages: {turns}", soft_wrap=True)
    console.print(f"words: {long['median']} median, {long['p90']} p90, {long['most']} most")
    found = figures["diversity"]
    nearest = "-" if found["nearest"] is None else f"{found['nearest']:.3f}"
    console.print(
        f"diversity of {found['texts']:,}: distinct-1 {found['distinct_1']:.3f}, distinct-2 "
        f"{found['distinct_2']:.3f}, mean resemblance to the nearest {nearest}",
        soft_wrap=True,
    )
    if figures["categories"]:
        console.print(_table(figures["categories"]))


def _table(categories: Mapping[str, int]) -> Table:
    table = Table("category", title_justify="left")
    table.add_column("prompts", justify="right")
    for name, count in list(categories.items())[:_MOST_CATEGORIES]:
        table.add_row(name, f"{count:,}")
    if (more := len(categories) - _MOST_CATEGORIES) > 0:
        table.add_row(f"and {more:,} more", "")
    return table


def _quantiles(ordered: Sequence[int]) -> dict[str, int]:
    if not ordered:
        return {"median": 0, "p90": 0, "most": 0}
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "p90": ordered[last * 9 // 10], "most": ordered[-1]}
