"""The vllm engine keeps the promises of ``promises``, and some of its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event

import pytest
import pytest_asyncio

from solon.engine import Engine, EngineOptions, create
from solon.engine.base import EngineFailed, InvalidInput, Sampling, WeightsNotLoaded
from solon.engine.vllm.engine import VllmEngine
from solon.sandbox import model_path
from tests.engine.promises import *  # noqa: F403
from tests.engine.promises import GREEDY, LONG, PROMPT, Plain, begun, ids_of

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM's own imports warn
    pytest.mark.filterwarnings("default"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Engine]:
    """One for all of them: it takes most of a minute to start."""
    extra = {"enforce_eager": "true", "kv_cache_memory_bytes": str(2**28)}
    extra |= {"enable_lora": "true", "max_lora_rank": "8"}
    model = str(model_path())
    started = create(
        "vllm",
        EngineOptions(model=model, threads=1, max_batch=8, queue_capacity=16, extra=extra),
    )
    await started.start()
    yield started
    await started.close()


async def test_a_temperature_that_vllm_does_not_take_is_the_callers_mistake(
    engine: Engine,
) -> None:
    with pytest.raises(InvalidInput, match="temperature must be in"):
        await engine.generate(PROMPT, Sampling(temperature=2.5))


async def test_weights_that_vllm_cannot_load_leave_the_old_ones_at_work(
    engine: VllmEngine, plain: Plain, other: Plain, tmp_path: Path
) -> None:
    serving = engine._ready
    path = shutil.copytree(other.path, tmp_path / "vanishing")
    prepared = serving.weights.prepare(str(path), Event())
    # as if the disk failed between the check and the load
    (path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(WeightsNotLoaded, match="vLLM cannot load these weights"):
        await serving.weights.load(prepared, serving.backend)
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == plain.greedy(PROMPT)


async def test_closing_ends_requests_with_an_error(engine: Engine, never_ending: Plain) -> None:
    await engine.update_weights(str(never_ending.path), "never ending")
    runs = [
        await begun(engine),
        *(asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in "abc"),
    ]
    await asyncio.sleep(0)
    await engine.close()
    for task in runs:
        with pytest.raises(EngineFailed, match="was closed while this request waited or ran"):
            await task
    with pytest.raises(EngineFailed, match="closed"):
        await engine.generate(PROMPT, LONG)
