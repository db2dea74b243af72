"""An engine in a process of its own is the same engine, and its process ends with the server's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from solon.chat import Conversation
from solon.client import ControlClient, PolicyClient
from solon.client.errors import Unavailable
from solon.engine import Engine, EngineOptions, create
from solon.engine.base import (
    BackendUnavailable,
    ContextExceeded,
    EngineFailed,
    InvalidInput,
    Overloaded,
    Paused,
    PauseMode,
    Sampling,
)
from solon.sandbox import model_path
from solon.serving.apart.engine import ApartEngine
from solon.serving.apart.wire import Failure

ASKED = Conversation.from_user("How do I bake bread?")
SAMPLING = Sampling(max_tokens=6, seed=3)


def apart(name: str = "scripted", **extra: str) -> ApartEngine:
    return ApartEngine(name, EngineOptions(model="none", extra=extra), service="solon-test")


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("name", ["scripted", "transformers"])
async def test_it_answers_as_in_the_servers_process(name: str) -> None:
    options = EngineOptions(model=str(model_path()), threads=1)
    prompts, texts = [ASKED, Conversation.from_user("Why?")], [[" A", " B"], [" Yes", " No"]]
    async with (
        running(create(name, options)) as here,
        running(ApartEngine(name, options, service="solon-test")) as there,
    ):
        assert there.info == here.info
        assert there.weight_version == here.weight_version
        one, other = [await engine.generate(ASKED, SAMPLING) for engine in (here, there)]
        assert (other.text, other.tokens, other.finish_reason) == (
            one.text,
            one.tokens,
            one.finish_reason,
        )
        assert other.usage == one.usage
        scored, again = [await engine.score(prompts, texts) for engine in (here, there)]
        assert again.logprobs == scored.logprobs
        pieces = [piece async for piece in there.stream(ASKED, SAMPLING)]
        assert "".join(piece.text for piece in pieces) == one.text
        assert pieces[-1].final is not None
        assert pieces[-1].final.tokens == one.tokens


async def test_errors_are_those_of_the_engine() -> None:
    async with running(apart(context_tokens="20")) as engine:
        with pytest.raises(ContextExceeded, match="lower max_tokens") as caught:
            await engine.generate(ASKED, Sampling(max_tokens=1000))
        assert (caught.value.max_tokens, caught.value.context_tokens) == (1000, 20)
    async with running(apart(fail_every="1", fail_with="overloaded")) as engine:
        with pytest.raises(Overloaded) as refused:
            await engine.score([ASKED], [["A"]])
        assert refused.value.retry_after == 0.05
        assert "Overloaded" in str(refused.value.__cause__)
        with pytest.raises(Overloaded):
            [piece async for piece in engine.stream(ASKED, SAMPLING)]


def test_a_stranger_of_an_error_tells_where_it_came_from_and_not_what_it_says() -> None:
    failure = Failure.of(ValueError("the prompt was: hello"), "builtins.ValueError at model.py:3")
    assert "hello" not in str(failure.error())
    assert "model.py:3" in str(failure.error())


@pytest.mark.parametrize("name", ["scripted", "transformers"])
async def test_a_mistake_in_its_options_is_told_and_ends_the_process(name: str) -> None:
    engine = apart(name, colour="red")
    with pytest.raises(InvalidInput, match="'colour'"):
        await engine.start()
    assert "signal" in await asyncio.wait_for(engine.lost(), 60)


async def test_who_is_cancelled_leaves_when_the_place_is_free() -> None:
    async with running(apart(latency="600", concurrency="1")) as engine:
        calls = [asyncio.ensure_future(engine.generate(ASKED, SAMPLING)) for _ in range(3)]
        await until(lambda: (engine.load().running, engine.load().queued) == (1, 2))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)
        assert (engine.load().running, engine.load().queued) == (0, 0)


async def test_a_stream_that_is_left_stops_the_model() -> None:
    async with running(apart(token_latency="0.05")) as engine:
        async with aclosing(engine.stream(ASKED, Sampling(max_tokens=4000))) as pieces:
            await anext(pieces)
        assert (engine.load().running, engine.load().queued) == (0, 0)


async def test_control_is_known_as_soon_as_it_has_happened(tmp_path: Path) -> None:
    async with running(apart()) as engine:
        await engine.pause(PauseMode.WAIT)
        assert engine.load().paused
        with pytest.raises(Paused):
            await engine.generate(ASKED, SAMPLING)
        await engine.resume()
        assert not engine.load().paused
        await engine.update_weights(str(tmp_path), "second")
        assert engine.weight_version == "second"
        assert (await engine.generate(ASKED, SAMPLING)).weight_version == "second"


async def test_closing_ends_what_runs_and_the_process() -> None:
    engine = apart(latency="600")
    await engine.start()
    call = asyncio.ensure_future(engine.generate(ASKED, SAMPLING))
    await until(lambda: engine.load().running == 1)
    [child] = psutil.Process().children()
    await engine.close()
    with pytest.raises(EngineFailed):
        await call
    assert not child.is_running()
    with pytest.raises(EngineFailed, match="closed"):
        engine.load()
    await engine.close()


async def test_a_process_that_dies_fails_its_calls_and_says_how() -> None:
    engine = apart(latency="0.2", crash_after="3")
    await engine.start()
    calls = [engine.generate(ASKED, SAMPLING) for _ in range(4)]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, BackendUnavailable)
    assert await engine.lost() == "the engine's process ended with signal 9"
    with pytest.raises(BackendUnavailable, match="signal 9"):
        await engine.generate(ASKED, SAMPLING)
    with pytest.raises(BackendUnavailable, match="signal 9"):
        engine.load()
    await engine.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """A service whose engine has a process of its own, and its address."""
    ready = tmp_path / "ready.json"
    flags = ("--engine=scripted", "--engine-process=own", f"--ready-file={ready}")
    process = subprocess.Popen(
        [sys.executable, "-m", "solon.policy.server", *flags], stderr=subprocess.PIPE
    )
    try:
        await until(ready.exists)
        port = psutil.Process(process.pid).net_connections(kind="tcp")[0].laddr.port
        yield process, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


async def test_a_service_whose_engine_dies_ends_so_that_another_takes_its_place(
    served: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, address = served
    [child] = psutil.Process(process.pid).children()
    async with PolicyClient(address, retry_for=0) as client:
        await client.generate(ASKED)
        child.kill()
        await until(lambda: has_ended(child))
        with pytest.raises(Unavailable):
            await client.generate(ASKED)
    _, said = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 1
    assert b"the engine's process ended with signal 9" in said.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_engines_process_ends_with_the_servers(
    served: tuple[subprocess.Popen[bytes], str], number: signal.Signals
) -> None:
    process, address = served
    async with ControlClient(address) as control:
        assert (await control.get_load()).queued == 0
    [child] = psutil.Process(process.pid).children()
    os.kill(process.pid, number)
    await asyncio.to_thread(process.wait, 60)
    await until(lambda: has_ended(child))
