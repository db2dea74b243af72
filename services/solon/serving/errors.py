"""Why a service refuses a call, beside what an engine refuses it for.

Exceptions::

    ServiceError
    ├── InvalidFields           fields break their rules: which, and how
    ├── UnknownConstitution     no constitution of that name
    ├── UnknownPrinciple        no such principle, or it lacks what the call needs
    ├── DigestMismatch          the constitution is another one than the caller expects
    ├── WeightVersionMismatch   the weights are others than the caller expects
    ├── NotServing              the model is not loaded yet
    ├── DeadlinePassed          nobody waits for the answer any more
    ├── DeadlineInQueue         nobody would wait any more when work could begin
    ├── RequestIdReused         the request_id names another body
    ├── NotAuthenticated        no credential, or a wrong one
    └── NotPermitted            the credential lacks the scope

``status`` turns these and the engines' errors (``solon.engine.base``) into status codes. Knows
nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Violation(NamedTuple):
    """One field that breaks its rule."""

    field: str
    """Its path in the request, such as ``conversation.messages[2].role``."""
    description: str
    """What was expected and what was found; never the text of a prompt."""


class ServiceError(Exception):
    """A call that a service refuses."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        """Keep what the client is told; see the attributes."""
        self.metadata = dict(metadata or {})
        """The ErrorInfo's metadata, as errors.proto lists it for the reason."""
        self.violations = tuple(violations)
        """The fields to blame."""
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None where it never does."""
        super().__init__(message)


class InvalidFields(ServiceError):
    """Fields of the request break their rules."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        """``violations``: at least one."""
        first = violations[0]
        more = len(violations) - 1
        further = f" (and {more} more)" if more else ""
        text = ": ".join(filter(None, first))
        super().__init__(f"{text}{further}", violations=violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidFields:
        """One field."""
        return cls([Violation(field, description)])


class UnknownConstitution(ServiceError):
    """The server was started without a constitution of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """``known``: the names that would have worked."""
        super().__init__(
            f"no constitution is named {name!r}: this server was started with "
            f"{', '.join(map(repr, known)) or 'none'}; send it inline, or start the server with "
            "--constitution",
            metadata={"known": ",".join(known)},
        )


class UnknownPrinciple(ServiceError):
    """The constitution has no such principle, or it lacks what the call needs."""

    def __init__(self, principle_id: str, known: Sequence[str], *, field: str, needs: str) -> None:
        """``needs``: what a principle must have here. ``known``: the ids that have it."""
        wanted = f"no principle {principle_id!r}" if principle_id else "no principle"
        text = f"{wanted} with {needs}: the constitution's are {', '.join(known) or 'none'}"
        super().__init__(
            text,
            metadata={"principle_id": principle_id, "known": ",".join(known)},
            violations=[Violation(field, text)],
        )


class DigestMismatch(ServiceError):
    """The constitution has another digest than the caller expects."""

    def __init__(self, name: str, *, expected: str, actual: str) -> None:
        """Both digests, 64 hex digits."""
        super().__init__(
            f"constitution {name!r} has digest {actual}, not {expected}: it was changed; "
            "send the digest of the one that is meant, or give the server that one",
            metadata={"expected": expected, "actual": actual},
        )


class WeightVersionMismatch(ServiceError):
    """The weights are others than the caller expects."""

    def __init__(self, *, expected: str, actual: str) -> None:
        """Both versions."""
        super().__init__(
            f"the weights in use are {actual!r}, not {expected!r}: call UpdateWeights, "
            "or ask for the weights in use",
            metadata={"expected": expected, "actual": actual},
        )


class NotServing(ServiceError):
    """The model is still loading."""

    def __init__(self) -> None:
        """Nothing to say but that."""
        super().__init__(
            "the model is still loading: wait until grpc.health.v1 says SERVING", retry_after=1.0
        )


class DeadlinePassed(ServiceError):
    """The caller's deadline has passed."""

    def __init__(self) -> None:
        """Nothing to say but that."""
        super().__init__("the deadline had passed before any work began: allow more time")


class DeadlineInQueue(ServiceError):
    """The caller's deadline would pass before work could begin: too much waits already."""

    def __init__(self, wait: float, *, retry_after: float) -> None:
        """``wait``: seconds until work could begin. ``retry_after``: until it would in time."""
        super().__init__(
            f"the deadline would pass in the queue, where the work would wait {wait:.1f} s: have "
            "fewer calls in flight, or allow more time",
            metadata={"queue_seconds": f"{wait:.3f}"},
            retry_after=retry_after,
        )


class RequestIdReused(ServiceError):
    """The same request_id was lately used for another request."""

    def __init__(self, request_id: str) -> None:
        """``request_id``: the caller's."""
        super().__init__(
            f"request_id {request_id!r} was lately used for a request with another body: give "
            "every request an id of its own"
        )


class NotAuthenticated(ServiceError):
    """The call brings no credential, or none that the server knows."""

    def __init__(self, problem: str) -> None:
        """``problem``: what is wrong; never the credential."""
        super().__init__(f"{problem}: send 'authorization: Bearer TOKEN' with every call")


class NotPermitted(ServiceError):
    """The credential is known but does not reach so far."""

    def __init__(self, caller: str, scope: str) -> None:
        """``caller``: the token's name. ``scope``: the one that is needed."""
        super().__init__(
            f"token {caller!r} lacks scope {scope!r}: use one that has it",
            metadata={"scope": scope},
        )
