"""The client of PolicyService: text from the model that is being trained."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from solon.chat import Conversation
from solon.client import replies, requests
from solon.client.base import ServiceClient
from solon.client.errors import BadReply
from solon.client.types import Generated, Piece, Sampling
from solon.tracing import Span
from solon.v1 import policy_pb2, policy_pb2_grpc


class PolicyClient(ServiceClient):
    """Answers conversations. Every method raises ``SolonError``; see ``errors`` for the tree."""

    HEALTH_NAME = "solon.v1.PolicyService"

    @property
    def _stub(self) -> policy_pb2_grpc.PolicyServiceStub:
        return self._stub_of(policy_pb2_grpc.PolicyServiceStub)

    async def generate(
        self,
        conversation: Conversation,
        *,
        sampling: Sampling | None = None,
        n: int = 1,
        return_tokens: bool = False,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Generated:
        """Answer a conversation n times; continue it, if it ends with the assistant.

        Args:
            conversation: What was said.
            sampling: How to draw. With a seed, completion 0 is drawn with the seed itself.
            n: Completions, 1 to 64.
            return_tokens: Return tokens and their log-probabilities.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of one attempt, seconds. None: the client's.

        Raises:
            WeightVersionMismatch: The server runs other weights than demanded.
            SolonError: Any other failure.
        """
        request = policy_pb2.GenerateRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            sampling=requests.sampling_message(sampling),
            n=n,
            return_tokens=return_tokens,
            weight_version=requests.text("weight_version", weight_version),
        )
        method = self._stub.Generate
        result = await self._call(method, request, replies.generated, timeout)
        if len(result.completions) != n:
            raise BadReply(
                f"completions: expected {n}, got {len(result.completions)}",
                request_id=request.request_id,
            )
        return result

    async def stream(
        self,
        conversation: Conversation,
        *,
        sampling: Sampling | None = None,
        return_tokens: bool = False,
        weight_version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Answer a conversation once, piece by piece; the last piece has ``final`` set.

        Leaving the iteration stops the model. An attempt that fails before its first piece is
        repeated; later, what was yielded cannot be taken back, so the error is raised.

        Args:
            conversation: What was said.
            sampling: How to draw.
            return_tokens: Return tokens and their log-probabilities with the pieces.
            weight_version: Refuse to be answered by any other weights.
            request_id: Names the request in logs. None: a random one.
            timeout: Deadline of the whole stream, seconds. None: the client's.

        Raises:
            SolonError: As ``generate``.
        """
        request = policy_pb2.StreamGenerateRequest(
            request_id=requests.request_id(request_id),
            conversation=requests.conversation_message(conversation),
            sampling=requests.sampling_message(sampling),
            return_tokens=return_tokens,
            weight_version=requests.text("weight_version", weight_version),
        )
        attempts = self._stream_with_retries(
            request, lambda span: self._pieces(request, timeout, span), resumes=False
        )
        async with aclosing(attempts) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(
        self, request: policy_pb2.StreamGenerateRequest, timeout: float | None, span: Span
    ) -> AsyncGenerator[Piece, None]:
        method = self._stub.StreamGenerate
        ended = False
        stream = self._stream(method, request, replies.piece, timeout, span)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                ended = piece.final is not None
                yield piece
        if not ended:
            raise BadReply(
                "expected the stream's last piece to have a finish_reason, got none",
                request_id=request.request_id,
            )
