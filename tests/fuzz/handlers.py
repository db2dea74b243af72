"""A role's methods without sockets: its servicers behind the guard, called with bytes.

What gRPC does around them is left out, so that a fuzzer sees nothing but Solon's own code. Knows
nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc

from solon.engine import EngineOptions, create
from solon.engine.base import Engine
from solon.serving.answers import Answers
from solon.serving.constitutions import Library
from solon.serving.control import ControlServicer
from solon.serving.guard import Guard
from solon.serving.health import Health, Phase
from solon.serving.metrics import Metrics
from solon.serving.server import Resources, Role
from solon.serving.tokens import Tokens
from solon.v1 import control_pb2_grpc
from tests.fuzz.corpus import CORE, Method, methods
from tests.fuzz.replies import Finding, Reply


class Handlers:
    """The methods of solon.v1 of one role, over a scripted engine. Use inside one event loop."""

    def __init__(self, role: Role) -> None:
        """Nothing is bound."""
        self._engine: Engine = create("scripted", EngineOptions(model=""))
        self._recorder = _Recorder()
        self._guard = _guard(self._engine)
        library = Library([CORE])
        resources = Resources(engine=self._engine, library=library, max_tokens_default=256)
        control = ControlServicer(
            self._engine, library, service_role=role.service_role, instance_id="fuzzed"
        )
        server: Any = self._recorder
        role.register(server, resources)
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, server)
        self.methods = [m for m in methods() if m.role is role and m.is_ours]

    async def send(self, method: Method, body: bytes) -> Reply:
        """Call a method; resume the engine if that paused it.

        Raises:
            Finding: Work was left behind.
        """
        found = self._recorder.handlers[method.path]

        async def continuation(details: grpc.HandlerCallDetails) -> Any:
            return found

        details: Any = _Details(method.path)
        handler: Any = await self._guard.intercept_service(continuation, details)
        context = _Context()
        try:
            if method.descriptor.server_streaming:
                await handler.unary_stream(body, context)
            else:
                context.written.append(await handler.unary_unary(body, context))
        except _Aborted as aborted:
            written = method.responses(context.written)
            reply = Reply(aborted.code, written, aborted.details, aborted.trailers)
        else:
            reply = Reply("OK", method.responses(context.written))
        await self._engine.resume()
        if (load := self._engine.load()).queued or load.running:
            raise Finding(f"left behind: {load.queued} queued, {load.running} running")
        return reply


def _guard(engine: Engine) -> Guard:
    health = Health([])
    health.enter(Phase.SERVING)
    answers = Answers(window=0, most_bytes=0)
    return Guard(health, engine, answers, Tokens(None, {}), Metrics(engine), max_in_flight=1000)


class _Recorder:
    """What servicers register with, in place of a server."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """For servers that know no registered methods."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class _Details:
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Aborted(Exception):
    def __init__(self, code: str, details: str, trailers: dict[str, str | bytes]) -> None:
        self.code = code
        self.details = details
        self.trailers = trailers


class _Context:
    """A call without headers or deadline."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    async def write(self, response: bytes) -> None:
        self.written.append(response)

    async def abort(self, code: grpc.StatusCode, details: str, trailers: Any) -> NoReturn:
        raise _Aborted(code.name, details, dict(trailers))


def all_handlers() -> Iterator[tuple[Handlers, Method]]:
    """Every method of solon.v1, with what answers it."""
    roles = {method.role.name: method.role for method in methods()}
    for role in roles.values():
        handlers = Handlers(role)
        yield from ((handlers, method) for method in handlers.methods)


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop for them."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop
