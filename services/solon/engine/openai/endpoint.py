"""One endpoint: the official client, whose errors become the engine's.

The client waits and tries again by itself: after 429 and 5xx as long as Retry-After says, or from
0.5 to 8 seconds, and likewise where a connection was lost. Cancelling a call closes its connection,
by which servers such as vLLM know that nobody waits. Knows nothing of conversations.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from openai import APIStatusError, AsyncOpenAI, AsyncStream, OpenAIError, Timeout

from solon.engine.base import BackendUnavailable, EngineError, EngineFailed, InvalidInput
from solon.engine.openai.failures import engine_error, mistake, what_it_said
from solon.engine.openai.options import OpenAIOptions
from solon.engine.openai.replies import (
    Chat,
    Completions,
    Detokenized,
    Models,
    ReplyT,
    Tokenized,
    read,
)

T = TypeVar("T")

_END = object()
_CONNECT_SECONDS = 10.0
_NO_KEY = "none"
"""The client must have one; endpoints that need none do not look at it."""
_NOT_THERE = (
    # keys may be good for answers alone
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_IMPLEMENTED,
)


class Endpoint:
    """See the module. Every call may raise what ``Engine.generate`` may."""

    def __init__(self, own: OpenAIOptions, model: str) -> None:
        """Connect to nothing yet. ``model``: what the endpoint calls it."""
        self._own = own
        self._base_url = own.base_url.rstrip("/")
        self._client = AsyncOpenAI(
            api_key=self._key if own.api_key_file else own.key() or _NO_KEY,
            # else the client would take it from the environment
            admin_api_key="",
            base_url=self._base_url,
            timeout=Timeout(own.timeout, connect=min(_CONNECT_SECONDS, own.timeout)),
            max_retries=own.retries,
        )
        self._model = model
        self.known: Sequence[str] = ()
        """Names of its models, if it told any."""
        self.context_tokens = own.context_tokens
        """Of the model; 0 while it is not known."""
        self.started = False
        """Until then a wrong key or model is a mistake of whoever starts the engine."""

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def models(self) -> Models | None:
        """What it serves; None if it has no such list."""
        body = await self._told(self._listed())
        return None if body is None else read(Models, body)

    async def chat(self, body: Mapping[str, Any], *, max_tokens: int) -> Chat:
        """An answer. ``max_tokens``: those that were asked for, for errors."""
        create = self._client.chat.completions.with_raw_response.create
        return read(Chat, (await self._told(create(**body), max_tokens)).content)

    async def stream(
        self, body: Mapping[str, Any], *, max_tokens: int
    ) -> AsyncGenerator[Chat, None]:
        """An answer, a piece at a time, the usage last; ``aclose`` closes the connection."""
        asked: dict[str, Any] = {**body, "stream_options": {"include_usage": True}, "stream": True}
        # by its type the client tells an answer from a stream, which a dict of keywords hides
        create: Any = self._client.chat.completions.create
        chunks: AsyncStream[Any] = await self._told(create(**asked), max_tokens)
        async with chunks:
            chunk: Any
            while (chunk := await self._told(_following(chunks), max_tokens)) is not _END:
                yield read(Chat, chunk)

    async def complete(self, body: Mapping[str, Any]) -> Completions:
        """What follows tokens, by ``/completions``."""
        create = self._client.completions.with_raw_response.create
        return read(Completions, (await self._told(create(**body))).content)

    async def tokenize(self, body: Mapping[str, Any]) -> Tokenized:
        """Tokens of a text or a conversation, by vLLM."""
        return await self._beside("tokenize", body, Tokenized)

    async def detokenize(self, body: Mapping[str, Any]) -> Detokenized:
        """The text of tokens, by vLLM."""
        return await self._beside("detokenize", body, Detokenized)

    async def _beside(self, name: str, body: Mapping[str, Any], kind: type[ReplyT]) -> ReplyT:
        """Ask vLLM what stands beside the standard's paths."""
        url = f"{self._base_url.removesuffix('/v1')}/{name}"
        return read(kind, await self._told(self._client.post(url, cast_to=object, body=dict(body))))

    async def _listed(self) -> bytes | None:
        try:
            return (await self._client.models.with_raw_response.list()).content
        except APIStatusError as error:
            if error.status_code in _NOT_THERE:
                return None
            raise

    async def _key(self) -> str:
        try:
            return self._own.key()
        except InvalidInput as error:
            raise BackendUnavailable(str(error)) from error

    async def _told(self, call: Awaitable[T], max_tokens: int = 1) -> T:
        """What a call of the client gives; its errors become the engine's."""
        try:
            return await call
        except OpenAIError as error:
            failure = self._failure(error, max_tokens)
        except json.JSONDecodeError:
            failure = EngineFailed("the endpoint's answer is no JSON")
        # outside of the block: endpoints may quote the key, and the log shows what caused an error
        raise failure

    def _failure(self, error: OpenAIError, max_tokens: int) -> EngineError:
        key = "" if self._client.api_key == _NO_KEY else self._client.api_key
        if not self.started and isinstance(error, APIStatusError):
            said = what_it_said(error, key)
            found = mistake(error.status_code, said, self._own, self._model, self.known)
            if found is not None:
                return found
        return engine_error(
            error,
            key=key,
            timeout=self._own.timeout,
            max_tokens=max_tokens,
            context_tokens=self.context_tokens,
        )


async def _following(chunks: AsyncStream[Any]) -> object:
    """The next piece, or ``_END``."""
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        return _END
