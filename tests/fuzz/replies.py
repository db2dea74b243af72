"""What any reply of a Solon server must be, whatever it was asked.

Raises ``Finding`` where one is not. Knows nothing of how requests are made or sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from solon.v1 import errors_pb2

DEFECTS = frozenset({"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS", "ABORTED"})
"""Codes that no body may lead to."""
SHARES = frozenset({"probability_a", "probabilities", "win_rate"})
"""Fields that are probabilities; an ``option_mass`` of answers that overlap may be above 1."""
MAY_BE_NAN = frozenset({"logprob_a", "logprob_b", "option_mass"})
"""Fields of what has no verdict."""

_REASONS = {name.removeprefix("ERROR_REASON_") for name, _ in errors_pb2.ErrorReason.items()}


class Finding(AssertionError):
    """A reply that no request may get."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended."""

    code: str
    responses: tuple[Message, ...] = ()
    details: str = ""
    trailers: Mapping[str, str | bytes] | None = None
    """None: the call never reached the server, or the server's library answered by itself."""


def check(reply: Reply, *, ours: bool) -> None:
    """Hold a reply to the contract.

    Args:
        reply: What came.
        ours: Whether the method is of ``solon.v1``, whose errors have details.

    Raises:
        Finding: It breaks the contract.
    """
    if reply.code in DEFECTS:
        raise Finding(f"{reply.code}: {reply.details}")
    if reply.code != "OK" and ours:
        _check_details(reply)
    for response in reply.responses:
        for field, value in _leaves(response):
            _check_value(field, value)


def _check_details(reply: Reply) -> None:
    raw = (reply.trailers or {}).get("grpc-status-details-bin")
    if not isinstance(raw, bytes):
        raise Finding(f"{reply.code} without details: {reply.details}")
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    if not (status.details and status.details[0].Unpack(info)):
        raise Finding(f"{reply.code} without an ErrorInfo: {reply.details}")
    if info.domain != "solon.v1" or info.reason not in _REASONS:
        raise Finding(f"{reply.code} with the reason {info.reason!r} of {info.domain!r}")
    if (grpc.StatusCode[reply.code].value[0], reply.details) != (status.code, status.message):
        raise Finding(f"{reply.code} {reply.details!r} differs from its details: {status}")


def _check_value(field: FieldDescriptor, value: Any) -> None:
    if field.enum_type is not None and value not in field.enum_type.values_by_number:
        raise Finding(f"{field.full_name}: {value} is no {field.enum_type.name}")
    if not isinstance(value, float):
        return
    if not math.isfinite(value) and not (math.isnan(value) and field.name in MAY_BE_NAN):
        raise Finding(f"{field.full_name} is {value}")
    if field.name in SHARES and not 0 <= value <= 1:
        raise Finding(f"{field.full_name} is {value}, which is no probability")


def _leaves(message: Message) -> Iterator[tuple[FieldDescriptor, Any]]:
    """Every value that is set, with its field; of a map, with the map's."""
    for field, value in message.ListFields():
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            yield from ((field, one) for one in value.values())
        elif entry is not None:
            for part in value if field.is_repeated else (value,):
                yield from _leaves(part)
        else:
            yield from ((field, one) for one in (value if field.is_repeated else (value,)))
