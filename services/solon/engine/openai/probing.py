"""What an endpoint can do, found out at the start by asking it.

A wrong address, key or model ends the start with a text that says what to do; what works is asked
for no more than once. Knows nothing of queues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from solon.chat import Conversation
from solon.engine.base import EngineFailed, InvalidInput, Sampling, Usage
from solon.engine.openai import tops
from solon.engine.openai.endpoint import Endpoint
from solon.engine.openai.exact import ExactScorer
from solon.engine.openai.options import OpenAIOptions, wrong
from solon.engine.openai.replies import Chat, usage
from solon.engine.openai.requests import Requests

_LOG = logging.getLogger(__name__)

Scorer = Callable[
    [Conversation, Sequence[str]], Coroutine[Any, Any, tuple[tuple[float, ...], Usage]]
]
"""Log-probabilities of texts as the start of the answer, and what they took."""

_COUNT = Conversation.from_user("Count from 1 to 100, with a comma after each number.")
_FEW = 16
"""Tokens of the answer to that: no model ends it in so few."""
_ASK = Conversation.from_user("Is water wet? Answer only one of: Yes, No.")
_ANSWERS = ("Yes", "No")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An endpoint that answers."""

    requests: Requests
    """How to ask it."""
    scoring: str
    """``vllm``, ``top_logprobs`` or ``none``."""
    scorer: Scorer | None
    """None: it tells no log-probabilities."""
    context_tokens: int
    """0: unknown."""


async def probe(endpoint: Endpoint, own: OpenAIOptions, model: str) -> Found:
    """Find out what an endpoint can do, or that it cannot do what the options ask for.

    Raises:
        InvalidInput: Address, key, model or an option is wrong.
        EngineError: As ``Engine.generate``.
    """
    models = await endpoint.models()
    listed = models.data if models else []
    endpoint.known = tuple(one.id for one in listed)
    ours = next((one for one in listed if one.id == model), None)
    is_vllm = (
        own.dialect == "vllm"
        or own.scoring == "vllm"
        or (own.dialect == "auto" and ours is not None and ours.owned_by == "vllm")
    )
    if not endpoint.context_tokens and ours is not None:
        endpoint.context_tokens = ours.max_model_len or 0
    requests = await _bounded(
        endpoint,
        Requests(
            model=model,
            is_vllm=is_vllm,
            reasoning_tokens=own.reasoning_tokens,
            fixed_sampling=own.fixed_sampling,
            more=own.more(),
        ),
        own,
    )
    scoring, scorer = await _scoring(endpoint, requests, own)
    return Found(
        requests=requests,
        scoring=scoring,
        scorer=scorer,
        context_tokens=endpoint.context_tokens,
    )


async def _bounded(endpoint: Endpoint, requests: Requests, own: OpenAIOptions) -> Requests:
    """With the field that bounds answers: one that a server does not know it may ignore."""
    asked = own.max_tokens_field
    fields = ("max_completion_tokens", "max_tokens") if asked == "auto" else (asked,)
    refusal: InvalidInput | None = None
    for name in fields:
        bounded = replace(requests, length_field=name)
        # greedy, as judges and critics ask: some models are drawn from in one way only
        body = bounded.chat(_COUNT, Sampling(max_tokens=_FEW, temperature=0))
        try:
            reply = await endpoint.chat(body, max_tokens=_FEW)
        except InvalidInput as error:
            refusal = refusal or error
            if any(field in str(error) for field in ("temperature", "seed")):
                raise wrong("fixed_sampling", f"true ({error})", own.fixed_sampling) from error
            if name not in str(error):
                raise
            continue
        most = _FEW + own.reasoning_tokens
        if usage(_warmed(reply, requests).usage).completion_tokens <= most:
            return bounded
    raise refusal or wrong(
        "max_tokens_field", f"a field that the endpoint heeds (tried {', '.join(fields)})", asked
    )


def _warmed(reply: Chat, requests: Requests) -> Chat:
    """The first answer, held to what every answer must have."""
    choice = reply.choice
    if requests.is_vllm:
        choice.tokens()
    if reply.usage is None:
        _LOG.warning("the endpoint reports no usage: neither tokens nor costs will be counted")
    return reply


async def _scoring(
    endpoint: Endpoint, requests: Requests, own: OpenAIOptions
) -> tuple[str, Scorer | None]:
    ways = {
        "vllm": ExactScorer(endpoint, requests).score if requests.is_vllm else None,
        "top_logprobs": TopScorer(endpoint, requests, own.top_logprobs).score,
    }
    if own.scoring == "none":
        return "none", None
    for name, scorer in ways.items():
        if scorer is None or own.scoring not in ("auto", name):
            continue
        try:
            await scorer(_ASK, _ANSWERS)
        except (InvalidInput, EngineFailed) as error:
            if own.scoring == name:
                raise wrong(
                    "scoring", f"one that the endpoint can do ({error}), or none", name
                ) from error
            _LOG.info("scoring", extra={"fields": {"cannot": name, "why": str(error)}})
            continue
        return name, scorer
    return "none", None


class TopScorer:
    """Scores continuations by ``tops``, one prompt at a time."""

    def __init__(self, endpoint: Endpoint, requests: Requests, top: int) -> None:
        """``top``: how many of the likeliest tokens to ask for."""
        self._endpoint = endpoint
        self._requests = requests
        self._top = top

    async def score(
        self, conversation: Conversation, texts: Sequence[str]
    ) -> tuple[tuple[float, ...], Usage]:
        """As ``tops.scores``.

        Raises:
            EngineFailed: The endpoint tells no log-probabilities.
            EngineError: As ``Engine.score``.
        """
        different = list(dict.fromkeys(texts))
        tokens = tops.places(different)
        reply = await self._endpoint.chat(
            self._requests.likely(conversation, tokens, self._top), max_tokens=tokens
        )
        logprobs = reply.choice.logprobs
        # an answer may be empty, but there is a first place in it: the end of the turn
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise EngineFailed("the endpoint tells no top_logprobs")
        found = dict(zip(different, tops.scores(different, logprobs.content), strict=True))
        return tuple(found[text] for text in texts), usage(reply.usage)
