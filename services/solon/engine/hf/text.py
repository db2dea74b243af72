"""Conversations to token ids and back.

Knows nothing of batches and tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from solon.chat import Conversation
from solon.engine.base import InvalidInput

_REPLACEMENT = "\ufffd"
_BOUNDARY_CHARACTERS = 32
_MOST_TOKENS_A_CHARACTER = 4


class Codec:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: a transformers tokenizer that has a chat template."""
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._continuation = lru_cache(maxsize=4096)(self._encode_continuation)
        self._piece = lru_cache(maxsize=65536)(self._decode_one)

    def prompt(self, conversation: Conversation) -> str:
        """The conversation as the model reads it, up to where its answer starts or goes on.

        Raises:
            InvalidInput: The chat template refuses the conversation.
        """
        messages = list(conversation.as_dicts())
        if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
            messages.pop()
        continued = messages[-1]["role"] == "assistant"
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
        except TemplateError as error:
            raise InvalidInput(
                f"conversation: the model's chat template refuses it: {error}"
            ) from error
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, which names its special tokens itself."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def continuation(self, prompt: str, text: str) -> tuple[int, ...]:
        """Token ids of ``text`` as it follows ``prompt``.

        The tokens are those that joint tokenization gives after the prompt's own, so that a
        tokenizer that marks word starts by what comes before gets it right. Where the two merge
        across the boundary, so that the prompt's tokens would change, the continuation is
        tokenized alone: a model that answers the prompt cannot make the merged token either.

        Raises:
            InvalidInput: The text has no tokens.
        """
        ids = self._continuation(prompt[-_BOUNDARY_CHARACTERS:], text)
        if not ids:
            raise InvalidInput(f"continuation {text!r}: expected at least one token, got none")
        return ids

    def piece(self, token: int) -> str:
        """The text of one token; a part of a character is U+FFFD, a special token its name."""
        return self._piece(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        text: str = self._tokenizer.decode(
            [i for i in ids if i not in self._special], clean_up_tokenization_spaces=False
        )
        return text

    def _encode_continuation(self, before: str, text: str) -> tuple[int, ...]:
        alone = self.encode(before)
        joint = self.encode(before + text)
        if joint[: len(alone)] == alone:
            return tuple(joint[len(alone) :])
        return tuple(self.encode(text))

    def _decode_one(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text


class RunningText:
    """A text that grows by tokens, given out in whole characters and cut at stop texts.

    Decodes a short window of the latest tokens, since a token's text may depend on the one before
    it, and holds back what may still become a stop text or a character.
    """

    def __init__(self, codec: Codec, stop: Sequence[str] = ()) -> None:
        """``stop``: texts that end it."""
        self._codec = codec
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window = 0
        self._decoded = 0
        self._given = 0
        self.text = ""
        """All text so far; ends before the stop text once ``stopped``."""
        self.stopped = False

    def push(self, token: int) -> None:
        """Add a token; ``stopped`` says whether a stop text is now there."""
        self._ids.append(token)
        self._grow(whole=False)

    def finish(self) -> None:
        """No more tokens come: an incomplete character is given as it is."""
        if not self.stopped:
            self._grow(whole=True)

    def take(self, *, final: bool) -> str:
        """Text that was not given yet and cannot be part of a stop text; all of it if ``final``."""
        end = len(self.text) if final or self.stopped else len(self.text) - self._pending()
        new = self.text[self._given : end]
        self._given = max(self._given, end)
        return new

    def _grow(self, *, whole: bool) -> None:
        known = self._codec.decode(self._ids[self._window : self._decoded])
        longer = self._codec.decode(self._ids[self._window :])
        new = longer[len(known) :]
        pending = len(self._ids) - self._decoded
        # a character has at most four tokens: what is still none then is an invalid byte
        if new.endswith(_REPLACEMENT) and not whole and pending < _MOST_TOKENS_A_CHARACTER:
            return
        self._window, self._decoded = self._decoded, len(self._ids)
        self._append(new)

    def _append(self, new: str) -> None:
        searched = max(0, len(self.text) - max(map(len, self._stop), default=1) + 1)
        self.text += new
        cuts = [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if cuts:
            self.text = self.text[: min(cuts)]
            self.stopped = True

    def _pending(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
