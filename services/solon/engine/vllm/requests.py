"""One request to vLLM: what it is asked with, and what its answer is in our terms."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any

from solon.engine.base import EngineFailed, FinishReason, Sampling
from solon.engine.vllm.backend import Backend, failures
from solon.engine.vllm.positions import Position

_NUMBERS = count()
_INSTEAD = 0x5EED_5EED_5EED
"""A seed that hardly anybody chooses."""
_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.ABORT,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What vLLM has said; of a stream, since it last said something."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: FinishReason | None
    """None: there is more to come."""
    cached_tokens: int
    queue: float
    """Seconds in vLLM's own queue."""


def parameters(sampling: Sampling, eos_ids: frozenset[int], *, stream: bool) -> Any:
    """SamplingParams of a generation.

    Raises:
        InvalidInput: vLLM does not take them.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415 - heavy

    with failures():
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=_signed(sampling.seed),
            stop=list(sampling.stop),
            stop_token_ids=sorted(eos_ids),
            logprobs=0,
            flat_logprobs=True,
            # text is made here, of all tokens at once; vLLM only looks for the stop texts
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )


def wanting(position: Position) -> Any:
    """SamplingParams that ask for log-probabilities of tokens that may come next."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415 - heavy

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprob_token_ids=list(position.wanted),
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


async def answers(
    backend: Backend, ids: Sequence[int], parameters: Any, adapter: Any, name: str
) -> AsyncGenerator[Answer, None]:
    """Ask vLLM, and give what it says; closing this stops its work.

    Raises:
        InvalidInput, BackendUnavailable, EngineFailed.
    """
    with failures():
        asked = backend.llm.generate(
            {"type": "token", "prompt_token_ids": list(ids)}, parameters, name, lora_request=adapter
        )
        async with aclosing(asked) as outputs:
            async for output in outputs:
                yield _answer(output)


async def next_logprobs(
    backend: Backend, position: Position, adapter: Any, name: str
) -> tuple[Answer, Mapping[int, float]]:
    """The log-probabilities of the tokens wanted at a position; none if it was aborted."""
    with failures():
        asked = backend.llm.generate(
            {"type": "token", "prompt_token_ids": position.ids},
            wanting(position),
            name,
            lora_request=adapter,
        )
        async with aclosing(asked) as outputs:
            async for output in outputs:
                made = output.outputs[0]
                known: dict[int, float] = {}
                if made.finish_reason != "abort":
                    given = dict(zip(made.logprobs.token_ids, made.logprobs.logprobs, strict=True))
                    known = {token: given[token] for token in position.wanted}
                    _check(known.values())
                return _answer(output, sampled=False), known
    raise EngineFailed("vLLM ended a request without an answer")


def new_name() -> str:
    """A name for a request that no other has."""
    return f"solon-{next(_NUMBERS)}"


def _answer(output: Any, *, sampled: bool = True) -> Answer:
    made, times = output.outputs[0], output.metrics
    if made.finish_reason is not None and made.finish_reason not in _REASONS:
        raise EngineFailed(f"vLLM ended a request with {made.finish_reason!r}")
    logprobs: tuple[float, ...] = ()
    if sampled and made.logprobs is not None:
        # at each position the token that was drawn comes first
        logprobs = tuple(made.logprobs.logprobs[start] for start in made.logprobs.start_indices)
        _check(logprobs)
    return Answer(
        ids=tuple(made.token_ids),
        logprobs=logprobs,
        reason=None if made.finish_reason is None else _REASONS[made.finish_reason],
        cached_tokens=output.num_cached_tokens or 0,
        queue=max(0.0, times.scheduled_ts - times.queued_ts) if times is not None else 0.0,
    )


def _check(logprobs: Any) -> None:
    if not all(map(math.isfinite, logprobs)):
        raise EngineFailed("the model's logits are not finite: the weights are damaged")


def _signed(seed: int) -> int:
    """A seed as vLLM takes it: of 64 bits with a sign, but not -1, which to it is none at all."""
    signed = seed if seed < 2**63 else seed - 2**64
    return signed if signed != -1 else _INSTEAD
