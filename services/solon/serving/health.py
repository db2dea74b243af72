"""grpc.health.v1: whether the model answers.

grpcio-health-checking's own servicer forgets every watcher of a service when one of them leaves
(1.80), and its watchers outlive the server's grace; so this one. Knows nothing of engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import Enum
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


class Phase(Enum):
    """Where a process is in its life."""

    LOADING = "loading"
    """The socket is bound; the model is not ready."""
    SERVING = "serving"
    """The model answers."""
    DRAINING = "draining"
    """What runs is finished; clients are asked to go elsewhere."""


class Health(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch for the whole process (``""``) and for each of its services."""

    def __init__(self, services: Iterable[str]) -> None:
        """``services``: full names, such as ``solon.v1.JudgeService``."""
        self._services = frozenset({"", *services})
        self._phase = Phase.LOADING
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def phase(self) -> Phase:
        """Where the process is."""
        return self._phase

    def enter(self, phase: Phase) -> None:
        """Tell every watcher. A process that drains serves no more."""
        if self._phase is not Phase.DRAINING:
            self._phase = phase
            self._wake()

    def close(self) -> None:
        """End every watch, so that none holds up the server's stop."""
        self._closed = True
        self._wake()

    async def Check(  # noqa: N802 (gRPC's name)
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """The status of a service; NOT_FOUND for one that this process does not have."""
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service {request.service[:128]!r} here: it has {sorted(self._services)}",
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 (gRPC's name)
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """The status of a service now and whenever it changes."""
        last = None
        while True:
            # taken before the status is read: a change during the write is then not missed
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
            if self._closed:
                return
            last = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._phase is Phase.SERVING:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
