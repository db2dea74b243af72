"""Conversations to token ids and back.

What people say stays text: where it spells one of the model's control tokens ("<|im_start|>"), it
is tokenized as the characters that it consists of. Only the chat template makes control tokens.
Knows nothing of batches and tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any
from uuid import uuid4

from jinja2.exceptions import TemplateError

from solon.chat import Conversation, Message, MessageDict
from solon.engine.base import InvalidInput

_REPLACEMENT = "\ufffd"
_BOUNDARY_CHARACTERS = 32
_MOST_TOKENS_A_CHARACTER = 4
_ANCHOR = "\n"
"""What a piece of a text is tokenized after, so that it is not taken for the start of one."""


class Codec:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: a transformers tokenizer that has a chat template."""
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        # stands in texts where a control token is cut in two; nobody can guess and write it
        self._cut = uuid4().hex
        self._control = self._control_tokens()
        self.most_characters_a_token = max(map(len, tokenizer.get_vocab()))
        """No token is longer, but of tokenizers that make one of a run of unknown characters."""
        self._continuation = lru_cache(maxsize=4096)(self._encode_continuation)
        self._head = lru_cache(maxsize=64)(self._encode_head)
        self._piece = lru_cache(maxsize=65536)(self._decode_one)

    def prompt(self, conversation: Conversation) -> str:
        """The conversation as the model reads it, up to where its answer starts or goes on.

        For ``encode``, which knows by its cuts what is text and what is the template's.

        Raises:
            InvalidInput: The chat template refuses the conversation.
        """
        return self._rendered(
            [
                {"role": turn.role, "content": self._as_text(turn.content)}
                for turn in conversation.messages
            ]
        )

    def _rendered(self, messages: list[MessageDict]) -> str:
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
        first, *others = text.split(self._cut)
        ids: list[int] = self._tokenizer.encode(first, add_special_tokens=False)
        if others:
            ids += self._encode_pieces(others)
        return ids

    def shared(self, conversation: Conversation, ids: Sequence[int]) -> int:
        """How many of a prompt's ids are those of the messages that it shares with others.

        0 if it shares none, or the chat template puts something else first.
        """
        if not conversation.shared:
            return 0
        head = self._head(conversation.messages[: conversation.shared])
        if tuple(ids[: len(head)]) == head:
            return len(head)
        return next(i for i, (a, b) in enumerate(zip(head, [*ids, -1], strict=False)) if a != b)

    def continuation(self, prompt: str, text: str) -> tuple[int, ...]:
        """Token ids of ``text`` as it follows ``prompt``.

        The tokens are those that joint tokenization gives after the prompt's own, so that a
        tokenizer that marks word starts by what comes before gets it right. Where the two merge
        across the boundary, so that the prompt's tokens would change, the continuation is
        tokenized alone: a model that answers the prompt cannot make the merged token either.

        Raises:
            InvalidInput: The text has no tokens.
        """
        before = prompt.rpartition(self._cut)[-1][-_BOUNDARY_CHARACTERS:]
        ids = self._continuation(before, self._as_text(text))
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

    def _control_tokens(self) -> re.Pattern[str] | None:
        """Finds the first character of each: of special tokens, and of what the template makes.

        Some models' role tokens are not marked as special; other tokens that were added, such as
        runs of spaces, are ordinary text.
        """
        made = set(self.encode(self._rendered([{"role": "user", "content": "Hello"}])))
        texts = {
            token.content
            for id_, token in self._tokenizer.added_tokens_decoder.items()
            if (token.special or id_ in made) and len(token.content.strip()) > 1
        }
        if not texts:
            return None
        return re.compile(f"(?=(?:{'|'.join(map(re.escape, sorted(texts)))}))(.)", re.DOTALL)

    def _as_text(self, text: str) -> str:
        """The text, cut after the first character of every control token that it spells."""
        return self._control.sub(rf"\g<1>{self._cut}", text) if self._control else text

    def _encode_pieces(self, pieces: Sequence[str]) -> Iterator[int]:
        """Token ids of what follows cuts; together, for a text may consist of nothing else."""
        anchor = self.encode(_ANCHOR)
        anchored = self._tokenizer([_ANCHOR + one for one in pieces], add_special_tokens=False)
        for piece, joint in zip(pieces, anchored["input_ids"], strict=True):
            merged = joint[: len(anchor)] != anchor
            yield from self.encode(piece) if merged else joint[len(anchor) :]

    def _encode_head(self, messages: Sequence[Message]) -> tuple[int, ...]:
        turns = [{"role": turn.role, "content": self._as_text(turn.content)} for turn in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            # it may refuse what is not yet a conversation
            return ()
        return tuple(self.encode(text))

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
