"""A gRPC server around one engine: bound first, serving once the model answers, drained at the end.

The order at the end is the one that loses no call of clients that watch health (measured: 0 of
8,802 in a rolling restart): NOT_SERVING, settle, accept no more, finish, close the engine. Knows
nothing of processes and signals (see ``process``), nor of what its role does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection

from solon.engine.base import Engine
from solon.serving.answers import Answers
from solon.serving.bodies import Bodies
from solon.serving.constitutions import Library
from solon.serving.control import ControlServicer
from solon.serving.guard import Guard
from solon.serving.health import Health, Phase
from solon.serving.metrics import Metrics, Scrapes
from solon.serving.options import ServerOptions, UsageError
from solon.serving.tls import TlsError, TlsFiles, server_credentials
from solon.serving.tokens import ENVIRONMENT, TokenError, Tokens
from solon.v1 import control_pb2, control_pb2_grpc

_WINDOW_BYTES = 1024 * 1024
_LOG = logging.getLogger(__name__)
_CONTROL = control_pb2.DESCRIPTOR.services_by_name["ControlService"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a role's servicer works with."""

    engine: Engine
    library: Library
    max_tokens_default: int
    """max_tokens of requests that bring none."""
    lost: Callable[[], Awaitable[str]] | None = None
    """Returns, when the engine can answer nothing any more, why. None: it never comes to that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One of the services, as far as a server must know it."""

    name: str
    """Such as ``judge``: the program is then solon-judge."""
    service: ServiceDescriptor
    service_role: control_pb2.ServiceRole.ValueType
    takes_constitutions: bool
    register: Callable[[grpc.aio.Server, Resources], None]
    """Adds the role's servicer to a server."""

    @property
    def program(self) -> str:
        """The console script."""
        return f"solon-{self.name}"


class Server:
    """One role over one engine on one socket."""

    def __init__(self, role: Role, resources: Resources, options: ServerOptions) -> None:
        """Nothing is bound or loaded yet.

        Raises:
            UsageError: The tokens cannot be read.
        """
        self.instance_id = uuid4().hex
        """Different in each process: tells a restart."""
        self._engine = resources.engine
        self._lost = resources.lost
        self._options = options
        self._health = Health([role.service.full_name, _CONTROL.full_name])
        try:
            tokens = Tokens(options.token_file, os.environ)
        except TokenError as error:
            raise UsageError(f"--token-file or ${ENVIRONMENT}: {error}") from error
        answers = Answers(window=options.idempotency_seconds, most_bytes=options.idempotency_bytes)
        self._metrics = Metrics(self._engine)
        self._guard = Guard(
            self._health,
            self._engine,
            answers,
            tokens,
            self._metrics,
            max_in_flight=options.max_in_flight,
        )
        self._server = grpc.aio.server(
            interceptors=[self._guard], options=_channel_options(options)
        )
        self._health_server: grpc.aio.Server | None = None
        self._scrapes: Scrapes | None = None
        role.register(self._server, resources)
        control = ControlServicer(
            resources.engine,
            resources.library,
            service_role=role.service_role,
            instance_id=self.instance_id,
            weights_from=options.weights_from,
        )
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [role.service.full_name, _CONTROL.full_name, HEALTH_SERVICE]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)

    async def bind(self) -> int:
        """Listen; health says NOT_SERVING. Returns the port.

        Raises:
            UsageError: The address cannot be bound, or the TLS files cannot be used.
        """
        credentials = None
        if self._options.tls_certificate is not None and self._options.tls_key is not None:
            files = TlsFiles(
                certificate=self._options.tls_certificate,
                key=self._options.tls_key,
                client_ca=self._options.tls_client_ca,
            )
            try:
                credentials = server_credentials(files)
            except TlsError as error:
                raise UsageError(
                    f"--tls-certificate, --tls-key, --tls-client-ca: {error}"
                ) from error
        port = self._listen(self._server, "--port", self._options.port, credentials)
        await self._server.start()
        return port

    async def bind_health(self) -> int | None:
        """Listen for health alone, in plain text, if the options ask for it. Returns the port.

        For probes, which know neither certificates nor tokens.

        Raises:
            UsageError: The address cannot be bound.
        """
        if self._options.health_port is None:
            return None
        self._health_server = grpc.aio.server(interceptors=[Bodies()])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
        port = self._listen(self._health_server, "--health-port", self._options.health_port, None)
        await self._health_server.start()
        return port

    def bind_metrics(self) -> int | None:
        """Answer Prometheus, if the options ask for it. Returns the port.

        Raises:
            UsageError: The address cannot be bound.
        """
        port = self._options.metrics_port
        if port is None:
            return None
        try:
            self._scrapes = Scrapes(self._metrics, self._options.host, port)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {self._options.host}:{port}: {error.strerror}; choose another "
                "--metrics-port (0: any free one) or --host"
            ) from error
        return self._scrapes.port

    def _listen(
        self,
        server: grpc.aio.Server,
        flag: str,
        port: int,
        credentials: grpc.ServerCredentials | None,
    ) -> int:
        host = self._options.host
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:  # grpcio's only sign; its text says nothing more
            raise UsageError(
                f"cannot listen on {host}:{port}: the port is in use, or the address is not this "
                f"machine's; choose another {flag} (0: any free one) or --host"
            ) from error

    async def load(self) -> None:
        """Load the model; health says SERVING once it has answered its warm-up.

        Raises:
            EngineError: The engine cannot start.
        """
        await self._engine.start()
        self._health.enter(Phase.SERVING)

    def in_flight(self) -> int:
        """Calls that are being answered, those of the control plane left out."""
        return self._guard.in_flight

    def most_in_flight(self) -> int:
        """The most there were at once since this was last asked."""
        return self._guard.most_in_flight()

    async def lost(self) -> str:
        """Return, when the engine can answer nothing any more, why; most never do."""
        if self._lost is None:
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")
        return await self._lost()

    async def drain(self) -> None:
        """Stop without losing a call: NOT_SERVING, settle, accept no more, finish, close."""
        self._health.enter(Phase.DRAINING)
        await asyncio.sleep(self._options.settle_seconds)
        self._health.close()
        await self._server.stop(self._options.drain_seconds)
        await self._engine.close()
        await self._stop_beside()

    async def stop(self) -> None:
        """Stop at once; calls that run are cancelled."""
        self._health.close()
        await self._server.stop(None)
        await self._stop_beside()

    async def _stop_beside(self) -> None:
        if self._scrapes is not None:
            await asyncio.to_thread(self._scrapes.close)
            self._scrapes = None
        if self._health_server is not None:
            await self._health_server.stop(None)


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    # admission is the engine's queue: gRPC's own bounds cancel calls at a few thousand in flight
    unbounded = 2**31 - 1
    return [
        ("grpc.server.max_pending_requests", unbounded),
        ("grpc.server.max_pending_requests_hard_limit", unbounded),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # a second server on the same port must fail, not share its calls
        ("grpc.so_reuseport", 0),
        # gRPC spreads it by a tenth, so that clients do not all come back at once; the calls of an
        # old connection have no limit of their own
        ("grpc.max_connection_age_ms", round(options.max_connection_age * 1000)),
        # windows of a fixed size, larger than most messages: to measure what the line holds takes
        # pings beside every call
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        # clients may ping idle connections this often, in ms
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
