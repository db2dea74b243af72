"""Why a call failed, as a tree of exceptions.

Built from the google.rpc.Status that every Solon service sends with an error (see
``protos/solon/v1/errors.proto``), and from the bare status code where a proxy or gRPC itself
answered. Knows nothing of channels or retries, except which errors are worth one.

::

    SolonError
    ├── InvalidArgument              a field breaks its rule: ``fields``
    │   ├── ContextExceeded          prompt and max_tokens do not fit the model
    │   ├── ContentFiltered          a filter in front of the model withholds the answer
    │   └── UnknownPrinciple
    ├── UnknownConstitution
    ├── FailedPrecondition
    │   ├── DigestMismatch           the server's constitution is another one
    │   ├── WeightVersionMismatch    the server runs other weights
    │   ├── WeightsNotLoaded         an update failed; the old weights are in use
    │   └── Unsupported              this engine cannot do that
    ├── Overloaded                   the queue is full: ``retry_after``           (retried)
    ├── Unavailable                  nobody answers: ``retry_after``              (retried)
    │   ├── NotServing               the model is loading, or the server drains
    │   ├── Paused                   paused by the control plane
    │   └── BackendUnavailable       the engine's backend cannot be reached
    ├── DeadlineExceeded             no result in time
    │   └── DeadlineInQueue          the queue was too long to begin: ``retry_after`` (retried)
    ├── NotAuthorized
    ├── RequestIdReused
    ├── MessageTooLarge              above the client's or the server's bound
    ├── ServerError                  a defect: ``error_id`` is in the server's log
    │   └── EngineFailed             the model failed on this request
    ├── UnexpectedStatus             a status that Solon does not send: is it a Solon service?
    └── BadReply                     a reply that breaks the contract
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "solon.v1"
"""The domain of every ErrorInfo of a Solon service."""

_STATUS_TRAILER = "grpc-status-details-bin"


class FieldViolation(NamedTuple):
    """One field that breaks its rule."""

    field: str
    """Its path in the request, such as ``sampling.top_p``."""
    description: str


class SolonError(Exception):
    """Anything that a call to a Solon service can fail with."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        fields: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        """Keep what the status said; see the attributes."""
        self.message = message
        """What the server said."""
        self.code = code
        """The status code; UNKNOWN if the call itself went well."""
        self.reason = reason
        """Name of an ErrorReason without its prefix; empty if no Solon service answered."""
        self.metadata = dict(metadata or {})
        """The ErrorInfo's metadata."""
        self.request_id = request_id
        """Names the request in the server's log."""
        self.fields = fields
        """The fields that break their rules, for ``InvalidArgument``."""
        self.retry_after = retry_after
        """Seconds after which the server said that trying again makes sense."""
        super().__init__(message)

    def __str__(self) -> str:
        """The message, broken fields that it leaves out, the reason and the request's id."""
        unsaid = [violation for violation in self.fields if violation[1] not in self.message]
        broken = "".join(f"; {field}: {text}" for field, text in unsaid)
        coded = self.code is not grpc.StatusCode.UNKNOWN
        kind = self.reason or (self.code.name if coded else "")
        named = f"request {self.request_id}" if self.request_id else ""
        origin = ", ".join(part for part in (kind, named) if part)
        return f"{self.message}{broken}" + (f" [{origin}]" if origin else "")


class InvalidArgument(SolonError):
    """A field breaks its rule: ``fields`` says which."""


class ContextExceeded(InvalidArgument):
    """Prompt and ``max_tokens`` do not fit the model's context; ``metadata`` has the sizes."""


class ContentFiltered(InvalidArgument):
    """A filter in front of the model refuses the conversation, or withholds the answer."""


class UnknownPrinciple(InvalidArgument):
    """The constitution has no such principle, or it lacks what the call needs."""


class UnknownConstitution(SolonError):
    """The server was not started with a constitution of that name."""


class FailedPrecondition(SolonError):
    """The server is not in the state that the request needs."""


class _Mismatch(FailedPrecondition):
    @property
    def expected(self) -> str:
        """What the request demanded."""
        return self.metadata.get("expected", "")

    @property
    def actual(self) -> str:
        """What the server has."""
        return self.metadata.get("actual", "")


class DigestMismatch(_Mismatch):
    """The server's constitution has another digest than the request demanded."""


class WeightVersionMismatch(_Mismatch):
    """The server runs other weights than the request demanded."""


class WeightsNotLoaded(FailedPrecondition):
    """The new weights could not be loaded; the old ones are still in use."""


class Unsupported(FailedPrecondition):
    """This engine cannot do that."""


class Overloaded(SolonError):
    """The server's queue is full."""


class Unavailable(SolonError):
    """Nobody serves the call at this moment."""


class NotServing(Unavailable):
    """The model is still loading, or the server is draining."""


class Paused(Unavailable):
    """Generation is paused by the control plane."""


class BackendUnavailable(Unavailable):
    """The engine's backend cannot be reached."""


class DeadlineExceeded(SolonError):
    """No result within the call's ``timeout``."""


class DeadlineInQueue(DeadlineExceeded):
    """No work was begun: ``metadata["queue_seconds"]`` of waiting are more than the ``timeout``."""


class NotAuthorized(SolonError):
    """No credential, a wrong one, or one without the scope."""


class RequestIdReused(SolonError):
    """The ``request_id`` was used for another body."""


class MessageTooLarge(SolonError):
    """A request above the server's bound, or a reply above the client's ``max_message_bytes``."""


class ServerError(SolonError):
    """A defect in the service."""

    @property
    def error_id(self) -> str:
        """To be found in the server's log."""
        return self.metadata.get("error_id", "")


class EngineFailed(ServerError):
    """The model failed on this request."""


class UnexpectedStatus(SolonError):
    """A status that no Solon service sends."""


class BadReply(SolonError):
    """The server's reply breaks the contract."""


BY_REASON: Mapping[str, type[SolonError]] = {
    "INVALID_FIELD": InvalidArgument,
    "CONTEXT_EXCEEDED": ContextExceeded,
    "UNKNOWN_CONSTITUTION": UnknownConstitution,
    "UNKNOWN_PRINCIPLE": UnknownPrinciple,
    "DIGEST_MISMATCH": DigestMismatch,
    "WEIGHT_VERSION_MISMATCH": WeightVersionMismatch,
    "OVERLOADED": Overloaded,
    "NOT_SERVING": NotServing,
    "PAUSED": Paused,
    "DEADLINE": DeadlineExceeded,
    "WEIGHTS_NOT_LOADED": WeightsNotLoaded,
    "UNSUPPORTED_BY_ENGINE": Unsupported,
    "ENGINE_FAILED": EngineFailed,
    "INTERNAL": ServerError,
    "NOT_AUTHORIZED": NotAuthorized,
    "REQUEST_ID_REUSED": RequestIdReused,
    "BACKEND_UNAVAILABLE": BackendUnavailable,
    "CONTENT_FILTERED": ContentFiltered,
}
"""The class of every ErrorReason of errors.proto; a test holds that none is missing."""

_BY_CODE: Mapping[grpc.StatusCode, type[SolonError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # the server ended the call, not the caller: that is how gRPC reports a server that stops
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthorized,
    grpc.StatusCode.PERMISSION_DENIED: NotAuthorized,
}


def from_rpc_error(error: grpc.aio.AioRpcError, *, request_id: str = "") -> SolonError:
    """The typed error for a failed call.

    A reason that this client does not know (a newer server's) is classed by its status code.
    """
    details = _Details.of(error)
    return _class_of(error, details)(
        details.message or error.details() or error.code().name,
        code=error.code(),
        reason=details.reason,
        metadata=details.metadata,
        request_id=request_id,
        fields=details.fields,
        retry_after=details.retry_after,
    )


def _class_of(error: grpc.aio.AioRpcError, details: _Details) -> type[SolonError]:
    if details.reason == "DEADLINE" and "queue_seconds" in details.metadata:
        return DeadlineInQueue
    if details.reason in BY_REASON:
        return BY_REASON[details.reason]
    # gRPC reports an oversized message and a full server by one code; only the text tells
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in (
        error.details() or ""
    ):
        return MessageTooLarge
    return _BY_CODE.get(error.code(), UnexpectedStatus)


class _Details(NamedTuple):
    message: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = {}
    fields: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> _Details:
        status = _rich_status(error)
        info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
        retry_after = None
        for detail in status.details:
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
            elif not detail.Unpack(info):
                detail.Unpack(bad)
        ours = info.domain == DOMAIN
        return cls(
            message=status.message,
            reason=info.reason if ours else "",
            metadata=dict(info.metadata) if ours else {},
            fields=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations),
            retry_after=retry_after,
        )


def _rich_status(error: grpc.aio.AioRpcError) -> Status:
    status = Status()
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_TRAILER and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                # some proxy's own trailer: the bare status code still tells the class
                return Status()
    return status
