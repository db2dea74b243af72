"""What Prometheus sees of a server, scraped as Prometheus does."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from solon.client import ControlClient, Conversation, JudgeClient, PauseMode, PolicyClient, errors
from solon.engine import base
from solon.sandbox import model_path
from solon.serving.metrics import Metrics, Scrapes
from solon.serving.testing import FunctionEngine

HELLO = Conversation.from_user("Hello.")


class Served:
    """A service process and its metrics."""

    def __init__(self, ready: Path, role: str, *flags: str) -> None:
        self._ready = ready
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"solon.{role}.server", "--settle-seconds=0"),
                *("--metrics-port=0", f"--ready-file={ready}", *flags),
            ],
            stderr=subprocess.DEVNULL,
        )

    async def address(self) -> str:
        """Where it serves, once it does."""
        async with asyncio.timeout(300):
            while not self._ready.exists():
                assert self.process.poll() is None
                await asyncio.sleep(0.05)
        told = json.loads(self._ready.read_text("utf-8"))
        self._url = f"http://127.0.0.1:{told['metrics_port']}/metrics"
        return f"127.0.0.1:{told['port']}"

    async def scrape(self) -> dict[str, float]:
        """Samples by name and labels."""
        return await asyncio.to_thread(samples, self._url)


def samples(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def begin(role: str, *flags: str) -> Served:
        started.append(Served(tmp_path / f"{len(started)}.json", role, *flags))
        return started[-1]

    yield begin
    for served in started:
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0


async def test_calls_are_counted_by_method_and_code_with_what_they_cost(
    serve: Callable[..., Served],
) -> None:
    served = serve("policy", f"--model={model_path()}", "--threads=1")
    async with PolicyClient(await served.address(), retry_for=0) as client:
        made = await client.generate(HELLO, n=3, request_id="1")
        await client.generate(HELLO, n=3, request_id="1")
        with pytest.raises(errors.WeightVersionMismatch):
            await client.generate(HELLO, weight_version="other")
    seen = await served.scrape()
    method = "method=PolicyService/Generate"
    assert seen[f"solon_request_duration_seconds_count{{code=OK,{method}}}"] == 2
    assert seen[f"solon_request_duration_seconds_count{{code=FAILED_PRECONDITION,{method}}}"] == 1
    assert seen[f"solon_requests_failed_total{{{method},reason=WEIGHT_VERSION_MISMATCH}}"] == 1
    assert seen[f"solon_requests_replayed_total{{{method}}}"] == 1
    assert seen[f"solon_requests_in_flight{{{method}}}"] == 0
    assert seen[f"solon_queue_seconds_count{{{method}}}"] == 1
    completed = seen[f"solon_tokens_total{{kind=completion,{method}}}"]
    assert completed == made.usage.completion_tokens
    assert seen[f"solon_tokens_total{{kind=prompt,{method}}}"] == made.usage.prompt_tokens
    assert seen["solon_weights{version=initial}"] == 1
    assert seen["solon_engine_up{}"] == 1
    # the three sequences shared their steps
    assert 0 < seen["solon_batches_total{}"] < seen["solon_batched_sequences_total{}"]


async def test_a_queue_and_a_pause_are_seen_while_they_last(serve: Callable[..., Served]) -> None:
    served = serve("judge", "--engine=scripted", "--constitution=core")
    address = await served.address()
    async with ControlClient(address) as control, JudgeClient(address, retry_for=0) as judge:
        await control.pause(PauseMode.KEEP)
        calls = [
            asyncio.ensure_future(judge.compare(HELLO, "Hi.", "Go.", constitution="core"))
            for _ in range(3)
        ]
        method = "method=JudgeService/Compare"
        async with asyncio.timeout(60):
            while (seen := await served.scrape()).get(
                f"solon_requests_in_flight{{{method}}}"
            ) != 3 or not seen["solon_queue_depth{}"]:
                await asyncio.sleep(0.05)
        assert seen["solon_paused{}"] == 1
        assert seen["solon_queue_capacity{}"] > 0
        await control.resume()
        await asyncio.gather(*calls)
    seen = await served.scrape()
    assert (seen["solon_paused{}"], seen["solon_queue_depth{}"]) == (0, 0)


def test_an_engine_that_has_no_state_is_shown_as_down() -> None:
    class Down(FunctionEngine):
        def load(self) -> base.Load:
            raise base.EngineFailed("not started")

    scrapes = Scrapes(Metrics(Down()), "127.0.0.1", 0)
    try:
        seen = samples(f"http://127.0.0.1:{scrapes.port}/metrics")
    finally:
        scrapes.close()
    assert seen == {"solon_engine_up{}": 0}


def test_a_port_in_use_is_one_clear_message() -> None:
    scrapes = Scrapes(Metrics(FunctionEngine()), "127.0.0.1", 0)
    command = (sys.executable, "-m", "solon.policy.server", "--engine=scripted")
    try:
        done = subprocess.run(
            [*command, f"--metrics-port={scrapes.port}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        scrapes.close()
    assert done.returncode == 2
    assert "--metrics-port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
