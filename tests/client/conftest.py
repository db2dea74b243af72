"""Real gRPC servers on port 0 for the client to talk to, and the errors they answer with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Protocol

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2_grpc

from solon.chat import Conversation
from solon.serving.health import Health, Phase
from solon.v1 import control_pb2_grpc, critic_pb2_grpc, judge_pb2_grpc, policy_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
SERVICES = ("solon.v1.PolicyService", "solon.v1.CriticService", "solon.v1.JudgeService")


class Server:
    """A gRPC server with health, whose servicer the test defines."""

    def __init__(self, add: Callable[[grpc.aio.Server], None], port: int) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._health = Health(SERVICES)
        add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"

    async def start(self, *, serving: bool) -> None:
        if serving:
            self.report_serving()
        await self._server.start()

    def report_serving(self) -> None:
        self._health.enter(Phase.SERVING)

    async def stop(self) -> None:
        self._health.close()
        await self._server.stop(None)


class Serve(Protocol):
    def __call__(
        self, add: Callable[[grpc.aio.Server], None], *, port: int = 0, serving: bool = True
    ) -> Awaitable[Server]: ...


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers; they stop with the test."""
    servers: list[Server] = []

    async def start(
        add: Callable[[grpc.aio.Server], None], *, port: int = 0, serving: bool = True
    ) -> Server:
        server = Server(add, port)
        await server.start(serving=serving)
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


async def _refuse(
    context: Context,
    code: grpc.StatusCode,
    reason: str,
    *,
    message: str = "refused by the test",
    domain: str = "solon.v1",
    metadata: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    retry_after: float | None = None,
) -> NoReturn:
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    if fields is not None:
        bad = BadRequest()
        for field, description in fields.items():
            bad.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad)
    if retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_after * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    trailer = ("grpc-status-details-bin", status.SerializeToString())
    await context.abort(code, message, trailing_metadata=(trailer,))
    raise AssertionError("abort returned")


class Refuse(Protocol):
    def __call__(
        self,
        context: Context,
        code: grpc.StatusCode,
        reason: str,
        *,
        message: str = ...,
        domain: str = ...,
        metadata: dict[str, str] | None = ...,
        fields: dict[str, str] | None = ...,
        retry_after: float | None = ...,
    ) -> Awaitable[NoReturn]: ...


@pytest.fixture
def refuse() -> Refuse:
    """Ends a call as a Solon service does: with a google.rpc.Status in the trailers."""
    return _refuse


@pytest.fixture
def question() -> Conversation:
    return Conversation.from_user("How do I bake bread?")


class Recorder:
    """Answers one method with the test's reply, and keeps the request."""

    def __init__(self, service: str, method: str, reply: Any) -> None:
        self.request: Any = None
        self._reply = reply
        module: Any = {
            "Policy": policy_pb2_grpc,
            "Critic": critic_pb2_grpc,
            "Judge": judge_pb2_grpc,
            "Control": control_pb2_grpc,
        }[service]
        base: Any = getattr(module, f"{service}ServiceServicer")
        streaming = method in ("StreamGenerate", "Refine")
        # the generated bases are abstract in every method; only one is asked here
        namespace = {name: None for name in dir(base) if name[0].isupper()}
        servicer: Any = type(service, (base,), namespace)()
        setattr(servicer, method, self._stream if streaming else self._unary)
        add = getattr(module, f"add_{service}ServiceServicer_to_server")
        self.add = lambda server: add(servicer, server)

    async def _unary(self, request: Any, context: Any) -> Any:
        self.request = request
        return self._reply

    async def _stream(self, request: Any, context: Any) -> Any:
        self.request = request
        for reply in self._reply:
            yield reply


@pytest.fixture
def record() -> type[Recorder]:
    """``record(service, method, reply)``: a servicer with that reply, which keeps the request."""
    return Recorder
