"""The rules that every engine holds its requests to, before any work.

Knows nothing of models; imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from solon.chat import Conversation
from solon.engine.base import InvalidInput, Sampling


def check_sampling(sampling: Sampling) -> None:
    """Hold the decoding settings to their ranges.

    Raises:
        InvalidInput: A value is out of its range; the text names it.
    """
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise _wrong("temperature", "a finite number >= 0", sampling.temperature)
    if not 0 < sampling.top_p <= 1:
        raise _wrong("top_p", "a number in (0, 1]", sampling.top_p)
    if sampling.top_k < 0:
        raise _wrong("top_k", "a number >= 0 (0 is off)", sampling.top_k)
    if sampling.max_tokens < 1:
        raise _wrong("max_tokens", "a number >= 1", sampling.max_tokens)
    if not 0 <= sampling.seed < 2**64:
        raise _wrong("seed", "a number in [0, 2**64)", sampling.seed)
    for index, text in enumerate(sampling.stop):
        if not text:
            raise _wrong(f"stop[{index}]", "a text that is not empty", text)


def check_score(prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]) -> None:
    """Hold a request to score to its rules.

    Raises:
        InvalidInput: No prompts, not one sequence of continuations a prompt, a prompt without
            continuations, or an empty continuation.
    """
    if not prompts:
        raise InvalidInput("prompts: expected at least one conversation, got none")
    if len(continuations) != len(prompts):
        raise InvalidInput(
            f"continuations: expected {len(prompts)} sequences, one a prompt, "
            f"got {len(continuations)}"
        )
    for row, texts in enumerate(continuations):
        if not texts:
            raise InvalidInput(f"continuations[{row}]: expected at least one text, got none")
        for column, text in enumerate(texts):
            if not text:
                raise _wrong(f"continuations[{row}][{column}]", "a text that is not empty", text)


def _wrong(name: str, expected: str, value: object) -> InvalidInput:
    return InvalidInput(f"{name}: expected {expected}, got {value!r}")
