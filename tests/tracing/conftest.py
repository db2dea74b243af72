"""A collector of traces that speaks OTLP, and programs that may send to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[ResourceSpans] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        add = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.received += request.resource_spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(None).wait()

    def named(self, name: str) -> list[Span]:
        """In the order received."""
        return [
            span
            for resource in self.received
            for scope in resource.scope_spans
            for span in scope.spans
            if span.name == name
        ]

    def one(self, name: str) -> Span:
        (found,) = self.named(name)
        return found

    @property
    def resources(self) -> list[dict[str, str]]:
        return [
            {item.key: item.value.string_value for item in one.resource.attributes}
            for one in self.received
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


class Program:
    """A process of ours, its environment without any word on traces but those given."""

    def __init__(self, *command: str, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if "OTEL_" not in name}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "no_proxy": "127.0.0.1", **variables},
        )
        self.lines: list[str] = []

    def port(self) -> int:
        """Where a service serves, once it does."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if json.loads(line)["event"] == "serving":
                return int(json.loads(line)["port"])
        raise AssertionError(f"it does not serve: {self.lines}")

    def end(self, *signals: int) -> int:
        """Send signals, read what it says to the end, give the exit code."""
        for number in signals:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=300)
        self.lines += said.splitlines()
        return self.process.returncode

    def logged(self, event: str) -> dict[str, Any]:
        (line,) = (one for one in map(json.loads, self.lines) if one["event"] == event)
        assert isinstance(line, dict)
        return line


@pytest.fixture
def judge() -> Iterator[Any]:
    """Start judges; what is left of them is killed at the end."""
    started: list[Program] = []

    def start(*more: str, **variables: str) -> Program:
        flags = ("--engine=scripted", "--constitution=core", "--settle-seconds=0", *more)
        started.append(Program("-m", "solon.judge.server", *flags, **variables))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
