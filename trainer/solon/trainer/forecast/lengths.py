"""How long texts are in tokens: by the model's tokenizer where it is here, else by rule of thumb.

Knows nothing of stages; imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from solon.chat import Conversation

_CHARACTERS_A_TOKEN = 4.0
"""Of English text in vocabularies of 32,000 and more."""
_TURN_TOKENS = 5
"""That a chat template puts around a turn: ChatML's are five."""
_ASK_TOKENS = 3
"""With which it lets the assistant begin."""
_MOST_MEASURED = 2_000
"""Items that are measured, evenly spread, of a longer list."""

Item = TypeVar("Item")


def spread(items: Sequence[Item]) -> Sequence[Item]:
    """Items of which there are not too many to measure, from all over a list."""
    return items[:: len(items) // _MOST_MEASURED + 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """Of some texts, in tokens."""

    mean: float
    longest: int


class Tokens:
    """Counts the tokens of one model."""

    def __init__(self, folder: Path | None) -> None:
        """``folder``: the model's; None, or without a tokenizer.json: by the rule of thumb."""
        self._path = folder / "tokenizer.json" if folder is not None else None

    @property
    def are_counted(self) -> bool:
        """Whether a tokenizer counts, rather than a rule of thumb."""
        return self._tokenizer is not None

    def of_texts(self, texts: Sequence[str]) -> list[int]:
        """The length of each text."""
        if self._tokenizer is None:
            return [max(1, round(len(text) / _CHARACTERS_A_TOKEN)) for text in texts]
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in found]

    def of_conversations(self, conversations: Sequence[Conversation]) -> Length:
        """As chat templates render them, up to where the assistant begins; 0 for none."""
        if not conversations:
            return Length(mean=0.0, longest=0)
        lengths = [
            sum(self.of_texts([turn.content for turn in one.messages]))
            + _TURN_TOKENS * len(one.messages)
            + _ASK_TOKENS
            for one in conversations
        ]
        return Length(mean=fmean(lengths), longest=max(lengths))

    @cached_property
    def _tokenizer(self) -> Any:
        if self._path is None or not self._path.is_file():
            return None
        from tokenizers import Tokenizer  # noqa: PLC0415 - compiled; the rule of thumb needs none

        return Tokenizer.from_file(str(self._path))
