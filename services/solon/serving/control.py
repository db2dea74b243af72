"""ControlService: what this process runs, how busy it is, which weights it has.

Translates between messages and the engine; every process serves it. Knows nothing of roles beyond
the name of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from solon.engine.base import Engine, PauseMode
from solon.engine.sources import Source
from solon.serving.constitutions import Library
from solon.serving.errors import InvalidFields
from solon.v1 import control_pb2, control_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_PAUSE_MODES = {
    control_pb2.PAUSE_MODE_UNSPECIFIED: PauseMode.WAIT,
    control_pb2.PAUSE_MODE_ABORT: PauseMode.ABORT,
    control_pb2.PAUSE_MODE_WAIT: PauseMode.WAIT,
    control_pb2.PAUSE_MODE_KEEP: PauseMode.KEEP,
}


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """The control plane of one process."""

    def __init__(
        self,
        engine: Engine,
        library: Library,
        *,
        service_role: control_pb2.ServiceRole.ValueType,
        instance_id: str,
        weights_from: Sequence[Source] = (),
    ) -> None:
        """Remember what to show, and what to refuse.

        Args:
            engine: Shown and changed.
            library: The constitutions that calls may name.
            service_role: What this process serves besides.
            instance_id: Different in each process.
            weights_from: Weights are loaded only from beneath these. Empty: from anywhere.
        """
        self._engine = engine
        self._library = library
        self._service_role = service_role
        self._instance_id = instance_id
        self._weights_from = weights_from
        self._start_time = Timestamp()
        self._start_time.FromDatetime(datetime.now(UTC))
        # two updates at once would each name the other's weights as the previous ones
        self._updating = asyncio.Lock()

    async def GetServerInfo(  # noqa: N802
        self, request: control_pb2.GetServerInfoRequest, context: Context
    ) -> control_pb2.GetServerInfoResponse:
        """See the contract."""
        info = self._engine.info
        return control_pb2.GetServerInfoResponse(
            request_id=request.request_id,
            service_role=self._service_role,
            solon_version=version("solon"),
            engine=info.engine,
            model=info.model,
            weight_version=self._engine.weight_version,
            context_tokens=info.context_tokens,
            constitutions=[
                control_pb2.ConstitutionInfo(
                    name=constitution.name,
                    version=constitution.version,
                    digest=constitution.digest,
                    principle_ids=[p.id for p in constitution.principles],
                )
                for constitution in self._library
            ],
            start_time=self._start_time,
            supports_logprobs=info.supports_logprobs,
            supports_weight_update=info.supports_weight_update,
            instance_id=self._instance_id,
        )

    async def GetLoad(  # noqa: N802
        self, request: control_pb2.GetLoadRequest, context: Context
    ) -> control_pb2.GetLoadResponse:
        """See the contract."""
        load = self._engine.load()
        return control_pb2.GetLoadResponse(
            request_id=request.request_id,
            queued=load.queued,
            running=load.running,
            queue_capacity=load.queue_capacity,
            paused=load.paused,
            weight_version=self._engine.weight_version,
        )

    async def UpdateWeights(  # noqa: N802
        self, request: control_pb2.UpdateWeightsRequest, context: Context
    ) -> control_pb2.UpdateWeightsResponse:
        """See the contract."""
        path = await asyncio.to_thread(self._permitted, request.path)
        async with self._updating:
            previous = self._engine.weight_version
            await self._engine.update_weights(path, request.weight_version)
        return control_pb2.UpdateWeightsResponse(
            request_id=request.request_id,
            weight_version=request.weight_version,
            previous_weight_version=previous,
        )

    async def PauseGeneration(  # noqa: N802
        self, request: control_pb2.PauseGenerationRequest, context: Context
    ) -> control_pb2.PauseGenerationResponse:
        """See the contract."""
        aborted = await self._engine.pause(_PAUSE_MODES[request.mode])
        return control_pb2.PauseGenerationResponse(request_id=request.request_id, aborted=aborted)

    async def ResumeGeneration(  # noqa: N802
        self, request: control_pb2.ResumeGenerationRequest, context: Context
    ) -> control_pb2.ResumeGenerationResponse:
        """See the contract."""
        await self._engine.resume()
        return control_pb2.ResumeGenerationResponse(request_id=request.request_id)

    def _permitted(self, path: str) -> str:
        """The path to load, in the very spelling that was compared."""
        if not self._weights_from:
            return path
        source = Source.parse(path)
        if not any(source.lies_beneath(prefix) for prefix in self._weights_from):
            known = ", ".join(repr(str(prefix)) for prefix in self._weights_from)
            raise InvalidFields.of(
                "path", f"expected a path or URL beneath {known} (--weights-from)"
            )
        return source.text
