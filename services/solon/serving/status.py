"""From an exception to a google.rpc.Status with details: which code, which reason, what to show.

One row a class of exception. The reasons are those of ``protos/solon/v1/errors.proto``. What no row
knows is INTERNAL and shows an error id only: its text and traceback may hold a prompt. Knows
nothing of calls or servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from solon.engine import base
from solon.serving import errors
from solon.serving.errors import Violation
from solon.v1 import errors_pb2

DOMAIN = "solon.v1"
"""The domain of every ErrorInfo."""
DETAILS_KEY = "grpc-status-details-bin"
"""The trailer that carries the google.rpc.Status."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""The trailer that gRPC's own retry policy waits for."""

# all of a status travels in trailers, and HTTP/2 peers refuse header lists above 8 KiB
_MOST_TEXT = 512
_MOST_VIOLATIONS = 12
_MOST_VIOLATION_TEXT = 128

_ROWS: tuple[tuple[type[Exception], StatusCode, errors_pb2.ErrorReason.ValueType], ...] = (
    (errors.InvalidFields, StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_FIELD),
    (
        errors.UnknownConstitution,
        StatusCode.NOT_FOUND,
        errors_pb2.ERROR_REASON_UNKNOWN_CONSTITUTION,
    ),
    (
        errors.UnknownPrinciple,
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_UNKNOWN_PRINCIPLE,
    ),
    (
        errors.DigestMismatch,
        StatusCode.FAILED_PRECONDITION,
        errors_pb2.ERROR_REASON_DIGEST_MISMATCH,
    ),
    (
        errors.WeightVersionMismatch,
        StatusCode.FAILED_PRECONDITION,
        errors_pb2.ERROR_REASON_WEIGHT_VERSION_MISMATCH,
    ),
    (errors.NotServing, StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_NOT_SERVING),
    (errors.DeadlinePassed, StatusCode.DEADLINE_EXCEEDED, errors_pb2.ERROR_REASON_DEADLINE),
    (errors.DeadlineInQueue, StatusCode.DEADLINE_EXCEEDED, errors_pb2.ERROR_REASON_DEADLINE),
    (
        errors.RequestIdReused,
        StatusCode.ALREADY_EXISTS,
        errors_pb2.ERROR_REASON_REQUEST_ID_REUSED,
    ),
    (
        errors.NotAuthenticated,
        StatusCode.UNAUTHENTICATED,
        errors_pb2.ERROR_REASON_NOT_AUTHORIZED,
    ),
    (
        errors.NotPermitted,
        StatusCode.PERMISSION_DENIED,
        errors_pb2.ERROR_REASON_NOT_AUTHORIZED,
    ),
    # a subclass stands before its base: the first row that fits counts
    (base.ContextExceeded, StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_CONTEXT_EXCEEDED),
    (base.ContentFiltered, StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_CONTENT_FILTERED),
    (base.InvalidInput, StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_FIELD),
    (base.Overloaded, StatusCode.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_OVERLOADED),
    (base.Paused, StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_PAUSED),
    (
        base.BackendUnavailable,
        StatusCode.UNAVAILABLE,
        errors_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
    ),
    (
        base.Unsupported,
        StatusCode.FAILED_PRECONDITION,
        errors_pb2.ERROR_REASON_UNSUPPORTED_BY_ENGINE,
    ),
    (
        base.WeightsNotLoaded,
        StatusCode.FAILED_PRECONDITION,
        errors_pb2.ERROR_REASON_WEIGHTS_NOT_LOADED,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Everything that a client is told of a call that failed."""

    code: StatusCode
    reason: errors_pb2.ErrorReason.ValueType
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_after: float | None = None
    """Seconds; None where trying again the same way is pointless."""
    error_id: str | None = None
    """Set where the cause stands in the log only."""

    @property
    def reason_name(self) -> str:
        """The reason as ErrorInfo spells it: without the enum's prefix."""
        return errors_pb2.ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")

    def rich(self, request_id: str) -> status_pb2.Status:
        """The google.rpc.Status with its details."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason_name, domain=DOMAIN)
        for key, value in {**self.metadata, "request_id": request_id}.items():
            info.metadata[key] = _shortened(value, _MOST_TEXT)
        status.details.add().Pack(info)
        if self.violations:
            status.details.add().Pack(_bad_request(self.violations))
        if self.retry_after is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status

    def trailers(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata: the rich status, and the pushback where a retry makes sense."""
        rich = (DETAILS_KEY, self.rich(request_id).SerializeToString())
        if self.retry_after is None:
            return (rich,)
        return (rich, (PUSHBACK_KEY, str(round(self.retry_after * 1000))))


def failure_of(error: Exception) -> Failure:
    """What to tell the client of the exception that ended its call."""
    for kind, code, reason in _ROWS:
        if isinstance(error, kind):
            text = _shortened(str(error), _MOST_TEXT)
            return Failure(
                code=code,
                reason=reason,
                message=text,
                metadata=_metadata(error),
                violations=_violations(error, text),
                retry_after=_retry_after(error),
            )
    if isinstance(error, base.EngineError):
        return _hidden(errors_pb2.ERROR_REASON_ENGINE_FAILED, "the engine failed on this request")
    return _hidden(errors_pb2.ERROR_REASON_INTERNAL, "the service failed on this request")


def _metadata(error: Exception) -> Mapping[str, str]:
    if isinstance(error, base.ContextExceeded):
        return {
            "prompt_tokens": str(error.prompt_tokens),
            "max_tokens": str(error.max_tokens),
            "context_tokens": str(error.context_tokens),
        }
    return error.metadata if isinstance(error, errors.ServiceError) else {}


def _violations(error: Exception, text: str) -> Sequence[Violation]:
    if isinstance(error, (base.ContextExceeded, base.ContentFiltered)):
        return (Violation("conversation", text),)
    if isinstance(error, base.InvalidInput):
        # an engine knows values, not fields
        return (Violation("", text),)
    return error.violations if isinstance(error, errors.ServiceError) else ()


def _retry_after(error: Exception) -> float | None:
    if isinstance(error, (base.Paused, base.BackendUnavailable)):
        return 1.0
    if isinstance(error, (base.Overloaded, errors.ServiceError)):
        return error.retry_after
    return None


def _hidden(reason: errors_pb2.ErrorReason.ValueType, text: str) -> Failure:
    error_id = uuid4().hex
    return Failure(
        code=StatusCode.INTERNAL,
        reason=reason,
        message=f"{text}: the server's log has the cause, under error_id {error_id}",
        metadata={"error_id": error_id},
        error_id=error_id,
    )


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for path, text in violations[:_MOST_VIOLATIONS]:
        bad.field_violations.add(field=path, description=_shortened(text, _MOST_VIOLATION_TEXT))
    left = len(violations) - _MOST_VIOLATIONS
    if left > 0:
        bad.field_violations.add(field="", description=f"and {left} more")
    return bad


def _shortened(text: str, most: int) -> str:
    encoded = text.encode(errors="replace")
    cut = encoded if len(encoded) <= most else encoded[: most - 3] + b"..."
    return cut.decode(errors="ignore")
