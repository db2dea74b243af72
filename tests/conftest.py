"""What all tests share: one thread for torch, the order of the long ones, a test's own spans."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from functools import cache
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult

# before torch is imported, here and in what tests start: on models as small as theirs more threads
# gain nothing, and beside other work they wait for one another (ten times as long, measured)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# where a test asks for two all the same, the one that waits leaves its core to others
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


LONG = ("end_to_end", "training")
"""Folders whose files take minutes: begun last, one would keep a single process busy at the end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without the garbage collector: what is imported stays, and looking through it takes long."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONG)


class Switch(Sampler):
    """Everything or nothing: a process has one provider, and only some tests look at spans."""

    on = False

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return (ALWAYS_ON if self.on else ALWAYS_OFF).should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "Switch"


class Spans:
    """What has ended so far."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str, kind: trace.SpanKind | None = None) -> list[ReadableSpan]:
        return [s for s in self.all if s.name == name and kind in (None, s.kind)]

    def one(self, name: str, kind: trace.SpanKind | None = None) -> ReadableSpan:
        (found,) = self.named(name, kind)
        return found


@cache
def recording() -> tuple[Switch, InMemorySpanExporter]:
    switch, exporter = Switch(), InMemorySpanExporter()
    provider = TracerProvider(switch, Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return switch, exporter


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans of this test."""
    switch, exporter = recording()
    switch.on = True
    yield Spans(exporter)
    switch.on = False
    exporter.clear()
