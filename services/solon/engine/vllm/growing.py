"""An answer as it grows: token by token, or all at once.

Knows nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

from solon.engine.base import (
    FinishReason,
    Generation,
    GenerationPiece,
    Sampling,
    Timing,
    Token,
    Usage,
)
from solon.engine.text import Codec, RunningText
from solon.engine.vllm.requests import Answer


class Growing:
    """What has been made for one request."""

    def __init__(
        self, codec: Codec, eos_ids: frozenset[int], sampling: Sampling, *, stream: bool
    ) -> None:
        """Nothing has been made yet."""
        self._codec = codec
        self._eos_ids = eos_ids
        # followed token by token only where it must be: to decode all at once is far cheaper
        followed = stream or bool(sampling.stop)
        self._running = RunningText(codec, sampling.stop) if followed else None
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._cached_tokens = 0
        self._given = 0
        self.queue = 0.0
        """Seconds in vLLM's own queue."""
        self.reason: FinishReason | None = None
        """None: it goes on."""

    def add(self, answer: Answer) -> None:
        """Take what vLLM said next."""
        self._ids += answer.ids
        self._logprobs += answer.logprobs
        self._cached_tokens = max(self._cached_tokens, answer.cached_tokens)
        self.queue, self.reason = answer.queue, answer.reason
        if self._running is not None:
            for token in answer.ids:
                if token not in self._eos_ids and not self._running.stopped:
                    self._running.push(token)

    def piece(self, weight_version: str) -> GenerationPiece:
        """What is new."""
        assert self._running is not None, "only streams have pieces"
        return GenerationPiece(
            text=self._running.take(final=False),
            tokens=self._new_tokens(),
            weight_version=weight_version,
        )

    def last(self, prompt_tokens: int, timing: Timing, weight_version: str) -> GenerationPiece:
        """The last piece, with the whole."""
        text = rest = self._text()
        if self._running is not None:
            rest = self._running.take(final=True)
        final = Generation(
            text=text,
            tokens=self._tokens(self._ids, self._logprobs),
            finish_reason=self.reason or FinishReason.ABORT,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                cached_tokens=self._cached_tokens,
                completion_tokens=len(self._ids),
                model_calls=1,
            ),
            timing=timing,
            weight_version=weight_version,
        )
        return GenerationPiece(
            text=rest, tokens=self._new_tokens(), final=final, weight_version=weight_version
        )

    def _text(self) -> str:
        if self._running is not None:
            self._running.finish()
            return self._running.text
        return self._codec.decode([token for token in self._ids if token not in self._eos_ids])

    def _new_tokens(self) -> tuple[Token, ...]:
        new = self._tokens(self._ids[self._given :], self._logprobs[self._given :])
        self._given = len(self._ids)
        return new

    def _tokens(self, ids: Sequence[int], logprobs: Sequence[float]) -> tuple[Token, ...]:
        piece = self._codec.piece
        return tuple(
            Token(id=token, text=piece(token), logprob=logprob)
            for token, logprob in zip(ids, logprobs, strict=True)
        )
