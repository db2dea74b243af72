"""Refuses bodies that are no messages, for services that read their requests through gRPC.

gRPC answers such a body with UNKNOWN, as if the service had failed. ``guard`` reads the bodies of
solon.v1 itself; this stands before health and reflection. Knows nothing of what they do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, Protocol, cast

import grpc
from google.protobuf.message import DecodeError, Message

Context = grpc.aio.ServicerContext[Any, Any]


class _Handler(Protocol):
    @property
    def request_deserializer(self) -> Callable[[bytes], Message] | None: ...
    @property
    def unary_unary(self) -> Callable[[Message, Context], Awaitable[Message]]: ...
    @property
    def unary_stream(self) -> Callable[[Message, Context], Awaitable[None]]: ...
    @property
    def stream_stream(
        self,
    ) -> Callable[[AsyncIterable[Message], Context], AsyncIterable[Message]]: ...


class Bodies(grpc.aio.ServerInterceptor):
    """INVALID_ARGUMENT for what cannot be read."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See ``reading``."""
        found = await continuation(handler_call_details)
        return None if found is None else reading(found)


def reading(found: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, reading its bodies itself."""
    if found.request_deserializer is None:
        return found
    # grpc's stubs know the handlers of its synchronous server only
    handler = cast("_Handler", found)
    make, behaviour = (
        (grpc.stream_stream_rpc_method_handler, _conversing(handler))
        if found.request_streaming
        else (grpc.unary_stream_rpc_method_handler, _answering(handler, handler.unary_stream))
        if found.response_streaming
        else (grpc.unary_unary_rpc_method_handler, _answering(handler, handler.unary_unary))
    )
    return make(behaviour, request_deserializer=None, response_serializer=found.response_serializer)


def _answering(
    handler: _Handler, behaviour: Callable[[Message, Context], Awaitable[Message | None]]
) -> Callable[[bytes, Context], Any]:
    async def answer(body: bytes, context: Context) -> Message | None:
        return await behaviour(await _read(handler, body, context), context)

    return answer


def _conversing(handler: _Handler) -> Callable[[AsyncIterable[bytes], Context], Any]:
    async def answer(
        bodies: AsyncIterable[bytes], context: Context
    ) -> AsyncGenerator[Message, None]:
        requests = (await _read(handler, body, context) async for body in bodies)
        async for response in handler.stream_stream(requests, context):
            yield response

    return answer


async def _read(handler: _Handler, body: bytes, context: Context) -> Message:
    assert handler.request_deserializer is not None
    try:
        return handler.request_deserializer(body)
    except DecodeError:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "the body is no request of this method"
        )
