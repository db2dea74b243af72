"""Services as processes: started, watched, called, stopped, and started wrongly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from solon.v1 import common_pb2, control_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc

ASKED = policy_pb2.GenerateRequest(
    conversation=common_pb2.Conversation(
        messages=[common_pb2.Message(role=common_pb2.ROLE_USER, content="Hello.")]
    )
)
CONSTITUTION = """
name: mine
version: "2"
principles:
  - id: kind
    comparison_instruction: Which is kinder?
"""


class Service:
    """A service process whose log lines are read as they come."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        """The next log line of this event; fails if the process ends before."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"no {event!r} before the end: {self.lines}")

    def end(self, *signals: int) -> int:
        """Send signals, read the log to its end, give the exit code."""
        for number in signals:
            self.process.send_signal(number)
        assert self.process.stderr is not None
        self.lines += [json.loads(text) for text in self.process.stderr]
        return self.process.wait(timeout=300)


@pytest.fixture
def start() -> Iterator[Any]:
    """Start a service; what is left of it is killed at the end."""
    started: list[Service] = []

    def begin(role: str, *flags: str) -> Service:
        if role == "-c":
            started.append(Service(role, *flags))
        else:
            started.append(Service("-m", f"solon.{role}.server", "--settle-seconds=0", *flags))
        return started[-1]

    yield begin
    for service in started:
        service.process.kill()
        service.process.wait()
        assert service.process.stderr is not None
        service.process.stderr.close()


def run(role: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"solon.{role}.server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


async def test_a_service_starts_serves_tells_where_and_stops_cleanly(
    start: Any, tmp_path: Path
) -> None:
    ready, constitution = tmp_path / "ready.json", tmp_path / "mine.yaml"
    ready.write_text('{"port": 1}', "utf-8")
    constitution.write_text(CONSTITUTION, "utf-8")
    service = start(
        "judge", "--engine=scripted", f"--ready-file={ready}", f"--constitution={constitution}"
    )
    serving = service.until("serving")
    told = json.loads(ready.read_text("utf-8"))
    assert told == {
        "host": "127.0.0.1",
        "port": serving["port"],
        "instance_id": serving["instance_id"],
        "pid": service.process.pid,
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ] = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        request = health_pb2.HealthCheckRequest(service="solon.v1.JudgeService")
        assert (await check(request)).status == health_pb2.HealthCheckResponse.SERVING
        control = control_pb2_grpc.ControlServiceStub(channel)
        info = await control.GetServerInfo(control_pb2.GetServerInfoRequest())
    assert info.instance_id == told["instance_id"]
    assert (info.engine, info.weight_version) == ("scripted", "initial")
    assert [(c.name, c.version) for c in info.constitutions] == [("mine", "2")]
    assert service.end(signal.SIGTERM) == 0
    assert [line["event"] for line in service.lines][-2:] == ["draining", "stopped"]
    assert not ready.exists()


async def test_a_stopping_service_finishes_what_runs(start: Any) -> None:
    service = start("policy", "--engine=scripted", "--engine-option=latency=0.5")
    port = service.until("serving")["port"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(ASKED)
        control = control_pb2_grpc.ControlServiceStub(channel)
        while not (await control.GetLoad(control_pb2.GetLoadRequest())).running:
            pass
        service.process.send_signal(signal.SIGTERM)
        assert (await call).completions[0].text
    assert service.end() == 0


async def test_a_second_signal_stops_at_once(start: Any) -> None:
    service = start("policy", "--engine=scripted", "--engine-option=latency=600")
    port = service.until("serving")["port"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(ASKED)
        control = control_pb2_grpc.ControlServiceStub(channel)
        while not (await control.GetLoad(control_pb2.GetLoadRequest())).running:
            pass
        service.process.send_signal(signal.SIGTERM)
        service.until("draining")
        assert service.end(signal.SIGINT) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_running_calls_are_given_up_when_the_time_to_drain_is_over(start: Any) -> None:
    service = start(
        "policy", "--engine=scripted", "--engine-option=latency=600", "--drain-seconds=0.1"
    )
    port = service.until("serving")["port"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(ASKED)
        control = control_pb2_grpc.ControlServiceStub(channel)
        while not (await control.GetLoad(control_pb2.GetLoadRequest())).running:
            pass
        assert service.end(signal.SIGTERM) == 0
        with pytest.raises(grpc.aio.AioRpcError):
            await call


SLOW = """
import asyncio, logging, time
from solon.policy.server import ROLE
from solon.serving import logs
from solon.serving.constitutions import Library
from solon.serving.options import ServerOptions
from solon.serving.process import serve
from solon.serving.server import Resources
from solon.serving.testing import FunctionEngine

class Slow(FunctionEngine):
    async def start(self):
        await asyncio.to_thread(time.sleep, 600)

logs.configure("INFO")
resources = Resources(engine=Slow(), library=Library(), max_tokens_default=8)
asyncio.run(serve(ROLE, ServerOptions(), lambda options: resources))
"""


def test_a_signal_while_the_model_loads_does_not_wait_for_it(start: Any) -> None:
    service = start("-c", SLOW)
    service.until("listening")
    assert service.end(signal.SIGTERM) == 0
    assert service.lines[-1]["event"] == "stopped while loading"


def test_a_port_in_use_is_the_users_mistake() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run("policy", "--engine=scripted", f"--port={port}")
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"solon-policy: error: cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("role", "flags", "said"),
    [
        ("policy", ["--port=http"], "--port: expected 0 to 65535, got 'http'"),
        ("policy", ["--host=0.0.0.0"], "--insecure-bind"),
        ("policy", ["--constitution=core"], "--constitution"),
        ("policy", ["--engine=steam"], "expected one of"),
        ("policy", ["--engine=scripted", "--engine-option=steam=1"], "'steam'"),
        ("judge", ["--engine=scripted", "--constitution=nowhere.yaml"], "nowhere.yaml"),
        ("judge", ["--engine=scripted", *["--constitution=core"] * 2], "two constitutions"),
        ("critic", ["--engine=scripted", "--ready-file=/nowhere/ready"], "--ready-file"),
        ("critic", ["--engine=transformers", "--model=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(role: str, flags: list[str], said: str) -> None:
    ended = run(role, *flags)
    assert ended.returncode == 2
    *logged, complaint = ended.stderr.splitlines()
    assert complaint.startswith(f"solon-{role}: error: ")
    assert said in complaint
    assert "Traceback" not in ended.stderr
    assert all(json.loads(line)["level"] == "INFO" for line in logged)
    assert ended.stdout == ""


def test_help_answers_without_a_heavy_import() -> None:
    code = (
        "import sys\n"
        "from solon.judge.server import main\n"
        "sys.argv = ['solon-judge', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'vllm'} & sys.modules.keys()\n"
        "sys.exit(1 if heavy or code else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert "--constitution NAME_OR_PATH" in ended.stdout


def test_the_console_scripts_are_installed() -> None:
    for role in ("policy", "critic", "judge"):
        script = Path(sys.executable).with_name(f"solon-{role}")
        assert os.access(script, os.X_OK)
