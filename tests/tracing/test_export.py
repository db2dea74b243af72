"""Processes that send their traces where the environment says, or say why they cannot."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from solon.chat import Conversation
from solon.client import JudgeClient, errors
from solon.tracing.export import TracingError, exporting
from tests.conftest import Spans
from tests.tracing.conftest import Collector, Program

COMPARE = "solon.v1.JudgeService/Compare"
SECRET = "sesame"
ASKED = Conversation.from_user(f"What opens with {SECRET}?")

WITHOUT_THE_EXTRA = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from solon.{module} import main
sys.exit(main())
"""
SDK_LOADED = """
import os, sys
from solon.tracing.export import exporting

for asked, *settings in (
    (False,),
    (False, "OTEL_TRACES_EXPORTER=none"),
    (False, "OTEL_TRACES_EXPORTER="),
    (False, "OTEL_EXPORTER_OTLP_ENDPOINT=http://a:1", "OTEL_TRACES_EXPORTER=none"),
    (False, "OTEL_EXPORTER_OTLP_ENDPOINT=http://a:1", "OTEL_SDK_DISABLED=true"),
    (True, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://a:1"),
):
    os.environ.update(setting.split("=", 1) for setting in settings)
    with exporting("test"):
        assert ("opentelemetry.sdk" in sys.modules) is asked, settings
    for setting in settings:
        del os.environ[setting.split("=")[0]]
"""


async def compare(program: Program, constitution: str = "core") -> None:
    async with JudgeClient(f"127.0.0.1:{program.port()}", retry_for=0) as client:
        await client.compare(ASKED, SECRET, "Go.", constitution=constitution)


async def test_a_service_sends_its_part_of_the_trace_and_logs_its_id(
    spans: Spans, collector: Collector, judge: Any
) -> None:
    program = judge(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    await compare(program)
    assert program.end(signal.SIGTERM) == 0
    called = spans.one(COMPARE)
    assert called.context is not None
    served, scored = collector.one(COMPARE), collector.one("engine.score")
    batch = collector.one("engine.batch")
    assert served.parent_span_id == called.context.span_id.to_bytes(8)
    assert scored.parent_span_id == served.span_id
    assert {span.trace_id for span in (served, scored, batch)} == {
        called.context.trace_id.to_bytes(16)
    }
    assert [link.span_id for link in batch.links] == [scored.span_id]
    assert [link.span_id for link in scored.links] == [batch.span_id]
    line = program.logged("call")
    assert line["trace_id"] == trace.format_trace_id(called.context.trace_id)
    assert line["span_id"] == served.span_id.hex()
    (resource,) = collector.resources
    assert resource["service.name"] == "solon-judge"
    assert resource["service.instance.id"] == program.logged("listening")["instance_id"]
    assert SECRET not in str(collector.received)


async def test_the_engines_own_process_sends_its_part_of_the_same_trace(
    spans: Spans, collector: Collector, judge: Any
) -> None:
    program = judge("--engine-process=own", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    await compare(program)
    assert program.end(signal.SIGTERM) == 0
    called = spans.one(COMPARE)
    assert called.context is not None
    scored, asked = collector.one("engine.score"), collector.one("engine.request")
    batch = collector.one("engine.batch")
    assert asked.parent_span_id == scored.span_id
    assert {scored.trace_id, asked.trace_id, batch.trace_id} == {
        called.context.trace_id.to_bytes(16)
    }
    assert [link.span_id for link in batch.links] == [asked.span_id]
    assert {one["service.name"] for one in collector.resources} == {"solon-judge"}
    assert SECRET not in str(collector.received)


async def test_a_failed_call_has_its_code_and_reason(
    spans: Spans, collector: Collector, judge: Any
) -> None:
    program = judge(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="judge-of-mine"
    )
    with pytest.raises(errors.UnknownConstitution):
        await compare(program, "nowhere")
    assert program.end(signal.SIGTERM) == 0
    said = {item.key: item.value for item in collector.one(COMPARE).attributes}
    assert said["error.type"].string_value == "UNKNOWN_CONSTITUTION"
    assert said["rpc.grpc.status_code"].int_value == 5
    # by OpenTelemetry's conventions this one is the caller's mistake, not the server's
    assert collector.one(COMPARE).status.code == Status.STATUS_CODE_UNSET
    assert [one["service.name"] for one in collector.resources] == ["judge-of-mine"]


async def test_a_service_that_sends_nothing_still_logs_its_callers_trace(
    spans: Spans, judge: Any
) -> None:
    program = judge()
    await compare(program)
    assert program.end(signal.SIGTERM) == 0
    called = spans.one(COMPARE).context
    assert called is not None
    assert program.logged("call")["trace_id"] == trace.format_trace_id(called.trace_id)


async def test_what_its_caller_does_not_sample_a_service_does_not_send(
    collector: Collector, judge: Any
) -> None:
    program = judge(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    await compare(program)
    assert program.end(signal.SIGTERM) == 0
    assert collector.received == []


async def test_a_collector_that_is_gone_keeps_no_service_from_stopping(
    spans: Spans, judge: Any
) -> None:
    with socket.socket() as taken:
        # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        program = judge(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        await compare(program)
        assert program.end(signal.SIGTERM) == 0


async def test_the_command_line_sends_its_part_too(collector: Collector, judge: Any) -> None:
    service = judge(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    asked = (f"127.0.0.1:{service.port()}", "--constitution=core", "--prompt=Hi.", "--a=Go.")
    called = Program(
        *("-m", "solon.trainer.cli", "judge", *asked, "--b=Stay."),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
    )
    assert called.end() == 0
    assert service.end(signal.SIGTERM) == 0
    client, server = collector.named(COMPARE)
    assert (server.trace_id, server.parent_span_id) == (client.trace_id, client.span_id)
    assert [one["service.name"] for one in collector.resources] == ["solon", "solon-judge"]


@pytest.mark.parametrize(
    ("module", "arguments", "variables"),
    [
        ("judge.server", ["--engine=scripted"], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}),
        ("trainer.cli", ["status", "127.0.0.1:1"], {"OTEL_TRACES_EXPORTER": "console"}),
    ],
)
def test_traces_without_the_extra_are_a_mistake_that_names_it(
    module: str, arguments: list[str], variables: dict[str, str]
) -> None:
    program = Program("-c", WITHOUT_THE_EXTRA.format(module=module), *arguments, **variables)
    assert program.end() == 2
    assert "pip install 'solon[otel]'" in program.lines[-1]
    assert "error: " in program.lines[-1]
    assert "Traceback" not in "".join(program.lines)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "steam"}, "an exporter 'steam' is not installed"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "'smoke'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "'soon'"),
    ],
)
def test_settings_that_cannot_work_are_a_mistake(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TracingError, match=said), exporting("test"):
        pass


def test_the_sdk_is_loaded_only_where_the_environment_asks() -> None:
    program = Program("-c", SDK_LOADED)
    assert program.end() == 0, program.lines
