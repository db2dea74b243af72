"""The client of ControlService: what one replica runs, how busy it is, which weights it has."""

from __future__ import annotations

from solon.client import replies, requests
from solon.client.base import ServiceClient
from solon.client.types import Load, PauseMode, ServerInfo, WeightsUpdated
from solon.v1 import control_pb2, control_pb2_grpc


class ControlClient(ServiceClient):
    """Looks at and changes one replica: give it a replica's address, not a balanced one.

    Every method raises ``SolonError``; see ``errors`` for the tree. All may be repeated safely.
    """

    HEALTH_NAME = ""
    BALANCED = False

    async def get_server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the process is."""
        request = control_pb2.GetServerInfoRequest(request_id=requests.new_request_id())
        return await self._call(self._stub.GetServerInfo, request, replies.server_info, timeout)

    async def get_load(self, *, timeout: float | None = None) -> Load:
        """How busy it is at this moment."""
        request = control_pb2.GetLoadRequest(request_id=requests.new_request_id())
        return await self._call(self._stub.GetLoad, request, replies.load, timeout)

    async def update_weights(
        self, path: str, weight_version: str, *, timeout: float | None = None
    ) -> WeightsUpdated:
        """Replace the weights, all or nothing; the old ones serve until the new ones are checked.

        Args:
            path: Directory as the server sees it, or URL, of full weights in Hugging Face format
                (safetensors) or of a LoRA adapter, which is merged into the full weights that were
                loaded last.
            weight_version: What to call the weights from now on.
            timeout: Deadline of one attempt, seconds; must allow for fetching and loading. None:
                the client's. Nothing is replaced after it, unless that had begun.

        Raises:
            WeightsNotLoaded: The old weights are still in use; the text says why.
            InvalidArgument: The server takes no weights from there.
            Unsupported: This engine cannot.
        """
        request = control_pb2.UpdateWeightsRequest(
            request_id=requests.new_request_id(),
            path=requests.text("path", path),
            weight_version=requests.text("weight_version", weight_version),
        )
        return await self._call(self._stub.UpdateWeights, request, replies.weights_updated, timeout)

    async def pause(self, mode: PauseMode = PauseMode.WAIT, *, timeout: float | None = None) -> int:
        """Stop the model until ``resume``; the number of requests that were ended early."""
        request = control_pb2.PauseGenerationRequest(
            request_id=requests.new_request_id(), mode=requests.pause_mode(mode)
        )
        return await self._call(
            self._stub.PauseGeneration, request, lambda reply: reply.aborted, timeout
        )

    async def resume(self, *, timeout: float | None = None) -> None:
        """Let the model go on. Harmless if it was not paused."""
        request = control_pb2.ResumeGenerationRequest(request_id=requests.new_request_id())
        await self._call(self._stub.ResumeGeneration, request, lambda reply: reply, timeout)

    @property
    def _stub(self) -> control_pb2_grpc.ControlServiceStub:
        return self._stub_of(control_pb2_grpc.ControlServiceStub)
