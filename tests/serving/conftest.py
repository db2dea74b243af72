"""A policy server over an engine of functions, and what its errors hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from solon.policy.server import ROLE
from solon.serving.testing import FunctionEngine, running
from solon.v1 import common_pb2, policy_pb2


class Told(NamedTuple):
    """What a client is told of a failed call."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    retry_after: float | None
    pushback: str | None
    message: str


def read_error(error: grpc.aio.AioRpcError) -> Told:
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "solon.v1"
    for detail in status.details[1:]:
        assert detail.Unpack(bad) or detail.Unpack(retry)
    return Told(
        code=error.code(),
        reason=info.reason,
        metadata=dict(info.metadata),
        fields={v.field: v.description for v in bad.field_violations},
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() or None,
        pushback=trailers.get("grpc-retry-pushback-ms"),
        message=status.message,
    )


@pytest.fixture
def told() -> Callable[[grpc.aio.AioRpcError], Told]:
    """Read an error's details, holding them to what every error has."""
    return read_error


@pytest.fixture
def engine() -> FunctionEngine:
    return FunctionEngine()


@pytest.fixture
async def channel(engine: FunctionEngine) -> AsyncIterator[grpc.aio.Channel]:
    """To a policy over ``engine``."""
    async with running(ROLE, engine) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def request_of() -> Callable[..., policy_pb2.GenerateRequest]:
    """A GenerateRequest that asks a text."""

    def make(text: str = "Hello.", **fields: object) -> policy_pb2.GenerateRequest:
        message = common_pb2.Message(role=common_pb2.ROLE_USER, content=text)
        conversation = common_pb2.Conversation(messages=[message])
        return policy_pb2.GenerateRequest(conversation=conversation, **fields)  # type: ignore[arg-type]

    return make
