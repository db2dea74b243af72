"""A policy service on vLLM: a process that answers over gRPC, and whose vLLM dies."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from solon.client import ControlClient, Conversation, PolicyClient, Sampling
from solon.client.errors import Unavailable
from solon.sandbox import model_path

ASKED = Conversation.from_user("How do I kill the process?")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not true():
            await asyncio.sleep(0.05)


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """A process that serves, and its address."""
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "solon.policy.server", "--engine=vllm", "--threads=1"),
            *(f"--model={model_path()}", f"--ready-file={ready}", "--max-batch=4"),
            "--engine-option=enforce_eager=true",
            f"--engine-option=kv_cache_memory_bytes={2**28}",
        ],
        stderr=subprocess.PIPE,
    )
    try:
        await until(lambda: ready.exists() or process.poll() is not None)
        yield process, f"127.0.0.1:{json.loads(ready.read_text())['port']}"
    finally:
        process.kill()
        process.communicate()


async def test_a_service_answers_until_its_vllm_dies_and_then_ends(
    service: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, address = service
    workers = psutil.Process(process.pid).children(recursive=True)
    async with PolicyClient(address, retry_for=0) as client, ControlClient(address) as control:
        assert (await control.get_server_info()).engine == "vllm"
        drawn = Sampling(temperature=1.3, max_tokens=20, seed=5)
        made = await client.generate(ASKED, sampling=drawn, n=3, return_tokens=True)
        again = await client.generate(ASKED, sampling=drawn, n=3)
        texts = [one.text for one in made.completions]
        assert len(set(texts)) > 1
        assert texts == [one.text for one in again.completions]
        assert (await control.get_load()).running == 0
        below = psutil.Process(process.pid).children()
        [core] = [one for one in below if "EngineCore" in " ".join(one.cmdline())]
        # more than can be in vLLM at once: those before it are to be told too
        many = asyncio.create_task(client.generate(ASKED, n=64))
        while not (await control.get_load()).queued:
            assert not many.done()
        core.kill()
        with pytest.raises(Unavailable, match="vLLM's core has died"):
            await many
    _, said = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 1
    assert b"vLLM's core has died" in said
    await until(lambda: all(map(has_ended, workers)))
