"""From a request to token ids: checked, and tokenized where it keeps nobody waiting.

Shared by the engines that tokenize themselves. Knows nothing of queues and tensors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from solon.chat import Conversation
from solon.engine.base import ContextExceeded, Sampling
from solon.engine.checks import check_sampling, check_score
from solon.engine.text import Codec

T = TypeVar("T")

_LONG = 8192
"""Characters of a request above which the event loop does not tokenize it itself: a million take
seconds, in which no other call would be answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt and what is to be scored after it, as token ids."""

    prompt: list[int]
    continuations: list[tuple[int, ...]]

    @property
    def tokens(self) -> int:
        """Of the prompt and all continuations."""
        return len(self.prompt) + sum(map(len, self.continuations))


class Prompts:
    """A model's tokenizer and context."""

    def __init__(self, codec: Codec, context_tokens: int) -> None:
        """``context_tokens``: most tokens of prompt and answer together."""
        self.codec = codec
        self.context_tokens = context_tokens
        # one thread: many long prompts together take no more memory than the longest
        self._tokenizing = ThreadPoolExecutor(1, "solon-tokenize")

    def close(self) -> None:
        """Tokenize nothing more."""
        self._tokenizing.shutdown(wait=False)

    async def prompt(self, conversation: Conversation, sampling: Sampling) -> list[int]:
        """Token ids of a request that passes every check.

        Raises:
            InvalidInput, ContextExceeded: It does not.
        """
        check_sampling(sampling)
        ids, _ = await self._tokenized(
            lambda: self._encoded(conversation, sampling.max_tokens), [conversation]
        )
        return ids

    async def questions(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> list[Question]:
        """Token ids of a request to score that passes every check.

        Raises:
            InvalidInput, ContextExceeded: It does not.
        """
        check_score(prompts, continuations)
        return await self._tokenized(
            lambda: [self._question(*one) for one in zip(prompts, continuations, strict=True)],
            prompts,
        )

    def _question(self, conversation: Conversation, texts: Sequence[str]) -> Question:
        ids, prompt = self._encoded(conversation, 1)
        options = [self.codec.continuation(prompt, text) for text in texts]
        self._check_length(len(ids), max(map(len, options)))
        return Question(prompt=ids, continuations=options)

    def _encoded(self, conversation: Conversation, max_tokens: int) -> tuple[list[int], str]:
        """Token ids of a prompt that fits, and its text."""
        fewest = _characters(conversation) // self.codec.most_characters_a_token
        self._check_length(fewest, max_tokens, at_least=True)
        prompt = self.codec.prompt(conversation)
        ids = self.codec.encode(prompt)
        self._check_length(len(ids), max_tokens)
        return ids, prompt

    async def _tokenized(self, work: Callable[[], T], prompts: Iterable[Conversation]) -> T:
        """The work's result; away from the event loop if the prompts together are long."""
        together = accumulate(map(_characters, prompts))
        if not any(characters > _LONG for characters in together):
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    def _check_length(self, prompt_tokens: int, max_tokens: int, *, at_least: bool = False) -> None:
        if prompt_tokens + max_tokens > self.context_tokens:
            raise ContextExceeded(
                prompt_tokens=prompt_tokens,
                max_tokens=max_tokens,
                context_tokens=self.context_tokens,
                at_least=at_least,
            )


def _characters(conversation: Conversation) -> int:
    return sum(len(turn.content) for turn in conversation.messages)
