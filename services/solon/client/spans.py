"""The span of each call: which method, each attempt that failed, how it ended.

Knows nothing of how a call is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import grpc
from google.protobuf.descriptor import Descriptor

from solon import tracing
from solon.client.errors import SolonError
from solon.tracing import Span


class Named(Protocol):
    """A request of any method."""

    request_id: str
    DESCRIPTOR: Descriptor


@contextmanager
def calling(request: Named, address: str) -> Iterator[Span]:
    """The span of a call with all its attempts."""
    span = tracing.call(_method(request.DESCRIPTOR))
    if not span.is_recording():
        yield span
        return
    span.set_attributes({"server.address": address, "solon.request_id": request.request_id})
    try:
        yield span
    except SolonError as error:
        tracing.ended(span, error.code.value[0], _reason(error), failed=True)
        raise
    except asyncio.CancelledError:
        tracing.ended(span, grpc.StatusCode.CANCELLED.value[0], "CANCELLED", failed=True)
        raise
    else:
        tracing.ended(span, grpc.StatusCode.OK.value[0])
    finally:
        span.end()


def attempt_failed(span: Span, error: SolonError) -> None:
    """Say that an attempt failed; another may follow."""
    if span.is_recording():
        code: int = error.code.value[0]
        span.add_event(
            "attempt failed", {"error.type": _reason(error), "rpc.grpc.status_code": code}
        )


def _reason(error: SolonError) -> str:
    return error.reason or type(error).__name__


@cache
def _method(request: Descriptor) -> str:
    """Service and method by the type of the request: each method has one of its own."""
    (name,) = (
        f"{service.full_name}/{method.name}"
        for service in request.file.services_by_name.values()
        for method in service.methods
        if method.input_type is request
    )
    return name
