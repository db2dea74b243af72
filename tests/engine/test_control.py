"""Weights and pauses of the transformers engine, under traffic."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from solon.chat import Conversation
from solon.engine import Engine, EngineOptions
from solon.engine.base import (
    EngineFailed,
    FinishReason,
    Generation,
    InvalidInput,
    Paused,
    PauseMode,
    Sampling,
    WeightsNotLoaded,
)
from solon.engine.hf.decoding import DecodeBatch
from solon.engine.hf.jobs import WeightsJob
from solon.engine.hf.kept import Kept
from solon.engine.hf.loading import load
from solon.engine.hf.runner import Runner
from solon.engine.hf.worker import Worker
from solon.engine.text import Codec
from tests.engine.conftest import make_model, running

PROMPT = Conversation.from_user("How do I bake bread?")
LONG = Sampling(temperature=0.0, max_tokens=120)


async def begun(engine: Engine, sampling: Sampling = LONG) -> asyncio.Task[Generation]:
    """A request that is in the batch."""
    first = asyncio.Event()

    async def follow() -> Generation:
        async for piece in engine.stream(PROMPT, sampling):
            first.set()
            if piece.final is not None:
                return piece.final
        raise AssertionError("the stream ended without its final piece")

    task = asyncio.create_task(follow())
    await first.wait()
    return task


async def test_weights_change_between_requests_and_never_within_one(
    model_path: Path, other_path: Path
) -> None:
    texts = {}
    for name, path in (("initial", model_path), ("step-1", other_path)):
        async with running(path) as engine:
            texts[name] = (await engine.generate(PROMPT, LONG)).text
    assert texts["initial"] != texts["step-1"]
    async with running(model_path) as engine:
        before = await begun(engine)
        update = asyncio.create_task(engine.update_weights(str(other_path), "step-1"))
        traffic = [asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in range(6)]
        await update
        assert engine.weight_version == "step-1"
        after = await engine.generate(PROMPT, LONG)
        answers = [await before, *await asyncio.gather(*traffic), after]
        scored = await engine.score([PROMPT], [["(A)"]])
    assert answers[0].weight_version == "initial"
    assert after.weight_version == scored.weight_version == "step-1"
    assert all(answer.text == texts[answer.weight_version] for answer in answers)


async def test_a_model_that_runs_does_not_follow_its_file(
    model_path: Path, other_path: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(model_path, tmp_path / "model")
    async with running(path) as engine:
        expected = await engine.generate(PROMPT, LONG)
        # in place, as save_pretrained does it too
        shutil.copy(other_path / "model.safetensors", path)
        assert (await engine.generate(PROMPT, LONG)).tokens == expected.tokens


async def test_weights_that_do_not_fit_leave_the_old_ones_at_work(
    model_path: Path, tmp_path: Path
) -> None:
    wider = make_model(tmp_path / "wider", hidden=64)
    damaged = make_model(tmp_path / "damaged")
    model = LlamaForCausalLM.from_pretrained(damaged)
    model.lm_head.weight.data[3, 3] = torch.inf
    model.save_pretrained(damaged)
    worded = make_model(tmp_path / "worded")
    config = json.loads((worded / "config.json").read_text())
    (worded / "config.json").write_text(json.dumps(config | {"hidden_size": "many"}))
    cut = make_model(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    async with running(model_path) as engine:
        expected = await engine.generate(PROMPT, LONG)
        for path, said in (
            (tmp_path / "nowhere", "expected a directory"),
            (wider, "hidden_size 64"),
            (damaged, "lm_head.weight holds NaN or infinity"),
            (worded, "'hidden_size' expected int, got str"),
            (cut, str(cut)),
        ):
            with pytest.raises(WeightsNotLoaded) as caught:
                await engine.update_weights(str(path), "step-1")
            assert said in str(caught.value)
        assert engine.weight_version == "initial"
        assert (await engine.generate(PROMPT, LONG)).tokens == expected.tokens


@pytest.mark.parametrize("path", ["gpt2", "org/model", "\0", ".", "/" + "a" * 300, "loop"])
async def test_weights_come_from_a_directory_and_never_from_the_hub_unless_it_is_named(
    path: str, model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = str(tmp_path / path) if path == "loop" else path
    async with running(model_path) as engine:
        with pytest.raises((WeightsNotLoaded, InvalidInput), match=r"expected (a |what save)"):
            await engine.update_weights(path, "next")
        assert engine.weight_version == "initial"


async def test_abort_ends_what_runs_and_waits_and_refuses_new_requests(model_path: Path) -> None:
    async with running(model_path, max_batch=1) as engine:
        whole = await engine.generate(PROMPT, LONG)
        runs = await begun(engine)
        waits = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0)
        assert await engine.pause(PauseMode.ABORT) == 2
        assert engine.load().paused
        cut, empty = await runs, await waits
        with pytest.raises(Paused):
            await engine.generate(PROMPT, LONG)
        with pytest.raises(Paused):
            await engine.score([PROMPT], [["(A)"]])
        await engine.resume()
        again = await engine.generate(PROMPT, LONG)
    assert cut.finish_reason is empty.finish_reason is FinishReason.ABORT
    assert (empty.text, empty.tokens) == ("", ())
    assert 0 < len(cut.tokens) < len(whole.tokens)
    assert whole.tokens[: len(cut.tokens)] == cut.tokens
    assert again.tokens == whole.tokens


async def test_wait_lets_accepted_requests_finish_and_refuses_new_ones(model_path: Path) -> None:
    async with running(model_path, max_batch=1) as engine:
        runs = await begun(engine)
        waits = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0)
        pausing = asyncio.create_task(engine.pause(PauseMode.WAIT))
        await asyncio.sleep(0)
        with pytest.raises(Paused):
            await engine.generate(PROMPT, LONG)
        assert await pausing == 0
        assert runs.done() or (await runs)
        assert engine.load().running == engine.load().queued == 0
        assert (await runs).tokens == (await waits).tokens
        await engine.resume()
        await engine.resume()
        assert (await engine.generate(PROMPT, LONG)).tokens == (await runs).tokens


async def test_keep_holds_requests_where_they_are_until_resumed(
    model_path: Path, other_path: Path
) -> None:
    async with running(model_path) as engine:
        whole = await engine.generate(PROMPT, LONG)
        runs = await begun(engine)
        assert await engine.pause(PauseMode.KEEP) == 0
        new = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0)
        load = engine.load()
        assert (load.running, load.queued, load.paused) == (1, 1, True)
        with pytest.raises(WeightsNotLoaded, match="1 requests are held"):
            await engine.update_weights(str(other_path), "step-1")
        await engine.resume()
        assert (await runs).tokens == (await new).tokens == whole.tokens


async def test_weights_that_nobody_waits_for_any_more_are_not_taken_into_use(
    model_path: Path, other_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    loaded = load(EngineOptions(model=str(model_path), threads=1), None)
    runner = Runner(loaded)
    kept = Kept(runner, 0)
    worker = Worker(
        runner=runner,
        batch=DecodeBatch(runner, Codec(loaded.tokenizer), loaded.eos_ids, kept),
        kept=kept,
        max_batch=1,
        score_keys=1,
        weight_version="initial",
        loop=loop,
    )
    before = loaded.model.lm_head.weight.clone()
    waited_for: asyncio.Future[None] = loop.create_future()
    abandoned = threading.Event()
    abandoned.set()
    job = WeightsJob(
        weights=LlamaForCausalLM.from_pretrained(other_path).state_dict(),
        weight_version="step-1",
        abandoned=abandoned,
        done=waited_for.set_result,
        fail=waited_for.set_exception,
    )
    worker.control(job)
    worker.start()
    with pytest.raises(WeightsNotLoaded, match="nobody waits"):
        await waited_for
    worker.close()
    assert worker.weight_version == "initial"
    assert torch.equal(loaded.model.lm_head.weight, before)


async def test_weights_can_change_while_paused_with_nothing_held(
    model_path: Path, other_path: Path
) -> None:
    async with running(model_path) as engine:
        for mode in PauseMode:
            await engine.pause(mode)
            await engine.update_weights(str(other_path), f"after {mode.value}")
            await engine.resume()
            answer = await engine.generate(PROMPT, Sampling(max_tokens=1))
            assert answer.weight_version == f"after {mode.value}"


async def test_closing_ends_requests_with_an_error(model_path: Path) -> None:
    async with running(model_path, max_batch=1) as engine:
        runs = await begun(engine)
        waits = asyncio.create_task(engine.generate(PROMPT, LONG))
        await engine.pause(PauseMode.KEEP)
        await engine.close()
        for task in (runs, waits):
            with pytest.raises(EngineFailed, match="was closed while this request waited or ran"):
                await task
        with pytest.raises(EngineFailed, match="closed"):
            await engine.generate(PROMPT, LONG)
