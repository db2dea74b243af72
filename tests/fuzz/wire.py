"""Sends bytes to a server and says how the call ended, and whether the server is well.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from solon.v1 import control_pb2, control_pb2_grpc
from tests.fuzz.corpus import Method
from tests.fuzz.replies import Finding, Reply

PATIENCE = 120.0
"""Seconds after which a call hangs."""
_ENDLESS = "/grpc.health.v1.Health/Watch"

Metadata = Sequence[tuple[str, str | bytes]]


class Wire:
    """A channel to one server. Use inside its event loop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """``channel``: to any role's server."""
        self._channel = channel
        self._control = control_pb2_grpc.ControlServiceStub(channel)
        # grpc's stubs of the health service know its synchronous clients only
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    async def send(
        self,
        method: Method,
        body: bytes,
        *,
        metadata: Metadata = (),
        timeout: float | None = PATIENCE,
    ) -> Reply:
        """Call a method with any body; errors are replies."""
        call = self._call(method, body, metadata=metadata, timeout=timeout)
        responses: list[bytes] = []
        try:
            async for response in _responses(call):
                responses.append(response)
                if method.path == _ENDLESS:
                    break
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            code, details = error.code().name, error.details() or ""
        else:
            code, details, trailers = "OK", "", {}
        finally:
            call.cancel()
        return Reply(code, method.responses(responses), details, trailers)

    async def check_well(self) -> None:
        """The server serves, and nothing is left of the calls before.

        Raises:
            Finding: It does not serve, or holds work that nobody waits for.
        """
        await self._control.ResumeGeneration(control_pb2.ResumeGenerationRequest())
        health = await self._health.Check(health_pb2.HealthCheckRequest())
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            raise Finding(f"health is {health.status}")
        try:
            async with asyncio.timeout(PATIENCE):
                while (load := await self._load()).queued or load.running:
                    pass
        except TimeoutError:
            raise Finding(f"left behind: {load.queued} queued, {load.running} running") from None

    async def _load(self) -> control_pb2.GetLoadResponse:
        return await self._control.GetLoad(control_pb2.GetLoadRequest())

    def _call(self, method: Method, body: bytes, **options: Any) -> Any:
        channel: Any = self._channel
        asks, answers = method.descriptor.client_streaming, method.descriptor.server_streaming
        kind = f"{'stream' if asks else 'unary'}_{'stream' if answers else 'unary'}"
        request = iter([body]) if asks else body
        return getattr(channel, kind)(method.path)(request, **options)


async def _responses(call: Any) -> AsyncIterator[bytes]:
    if isinstance(call, grpc.aio.Call) and hasattr(call, "__aiter__"):
        async for response in call:
            yield response
    else:
        yield await call
