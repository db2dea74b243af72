"""Spans: begun, made current, ended and marked, so that none quotes what it must not.

Knows nothing of where they are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import TypeVar

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

Item = TypeVar("Item")

_TRACER = trace.get_tracer("solon")


def current() -> Span:
    """The span that is being worked in; one that does nothing if there is none."""
    return trace.get_current_span()


def ids() -> dict[str, str]:
    """``trace_id`` and ``span_id`` of the current span, in hex; empty without one."""
    context = current().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def span(name: str) -> AbstractContextManager[Span]:
    """A piece of work as a span, the current one in the block; an exception marks it by type.

    Not in a generator, which would leave it to its caller with every ``yield``: see ``within``.
    """
    begun = _TRACER.start_span(name)
    return nullcontext(begun) if _is_idle(begun) else _worked_in(begun)


def continued(name: str, received: Mapping[str, str]) -> AbstractContextManager[Span]:
    """As ``span``, of work that another process asked for; none if it does not trace.

    ``received``: its ``headers``.
    """
    if not received:
        return nullcontext(current())
    return _worked_in(_TRACER.start_span(name, propagate.extract(received)))


async def within(name: str, items: AsyncIterator[Item]) -> AsyncGenerator[tuple[Span, Item], None]:
    """Items that are made in a span, as ``span`` has it, each with the span.

    It is current for whoever makes the items, and not for whoever takes them.
    """
    begun = _TRACER.start_span(name)
    if _is_idle(begun):
        async for item in items:
            yield begun, item
        return
    with _marked(begun):
        while True:
            try:
                with _entered(begun):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            yield begun, item


def call(method: str) -> Span:
    """The span of a call to a service, to be ended; not the current one: generators may use it.

    ``method``: such as ``solon.v1.JudgeService/Compare``.
    """
    return _rpc(method, SpanKind.CLIENT, None)


def serving(method: str, received: Mapping[str, str | bytes]) -> AbstractContextManager[Span]:
    """The span of a call that a service answers, the current one in the block.

    Args:
        method: As for ``call``.
        received: The call's metadata, which may name the caller's span.
    """
    untold = _propagated().isdisjoint(received)
    begun = _rpc(method, SpanKind.SERVER, None if untold else propagate.extract(received))
    return nullcontext(begun) if _is_idle(begun) else _entered(begun, end_on_exit=True)


def headers(begun: Span) -> tuple[tuple[str, str], ...]:
    """Metadata of a call that let the service's span be this one's child."""
    if _is_idle(begun):
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(begun))
    return tuple(carrier.items())


def ended(begun: Span, code: int, reason: str | None = None, *, failed: bool = False) -> None:
    """Say how a call ended.

    Args:
        begun: Its span.
        code: The gRPC status code.
        reason: Why it is not OK, in one word.
        failed: Whether that is the fault of the span's own side.
    """
    if not begun.is_recording():
        return
    begun.set_attribute("rpc.grpc.status_code", code)
    if reason is not None:
        begun.set_attribute("error.type", reason)
    if failed:
        begun.set_status(Status(StatusCode.ERROR, reason))


def batch(kind: str, spans: Iterable[Span], *, sequences: int) -> AbstractContextManager[None]:
    """The span of what the model does for several requests at once, linked with that of each.

    A span keeps as many links as the SDK allows: 128, unless the environment says otherwise.

    Args:
        kind: What that is, such as ``prefill``.
        spans: Those of the requests, from whatever thread.
        sequences: How many are computed.
    """
    traced = [one for one in dict.fromkeys(spans) if one.is_recording()]
    if not traced:
        return nullcontext()
    size = {"solon.batch.sequences": sequences}
    begun = _TRACER.start_span(
        "engine.batch",
        # the child of a request that is sampled, so as to be sampled with it
        trace.set_span_in_context(traced[0], Context()),
        links=[Link(one.get_span_context()) for one in traced],
        attributes={"solon.batch.kind": kind, **size},
    )
    for one in traced:
        one.add_link(begun.get_span_context(), size)
    return _marked(begun)


# as a block in which the span is the current one
_entered = partial(trace.use_span, record_exception=False, set_status_on_exception=False)


def _is_idle(begun: Span) -> bool:
    """Whether neither this process nor its caller traces."""
    return not begun.get_span_context().is_valid


@cache
def _propagated() -> set[str]:
    """Metadata that may name a caller's span."""
    return propagate.get_global_textmap().fields


@contextmanager
def _worked_in(begun: Span) -> Iterator[Span]:
    with _marked(begun), _entered(begun):
        yield begun


@contextmanager
def _marked(begun: Span) -> Iterator[None]:
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        reason = type(error).__name__
        begun.set_attribute("error.type", reason)
        begun.set_status(Status(StatusCode.ERROR, reason))
        raise
    finally:
        begun.end()


def _rpc(method: str, kind: SpanKind, parent: Context | None) -> Span:
    begun = _TRACER.start_span(method, parent, kind)
    if begun.is_recording():
        service, _, name = method.partition("/")
        begun.set_attributes({"rpc.system": "grpc", "rpc.service": service, "rpc.method": name})
    return begun
