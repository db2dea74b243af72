"""The scripted engine: what it says, and how it fails on purpose."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solon.chat import Conversation
from solon.engine import Engine, EngineOptions, create
from solon.engine.base import (
    BackendUnavailable,
    ContextExceeded,
    EngineFailed,
    FinishReason,
    InvalidInput,
    Overloaded,
    Paused,
    PauseMode,
    Sampling,
    WeightsNotLoaded,
)

HELLO = Conversation.from_user("Hello there, how are you?")
SLOW = {"latency": "3600"}


def scripted(*, queue_capacity: int = 8192, **extra: str) -> Engine:
    return create(
        "scripted", EngineOptions(model="fake", queue_capacity=queue_capacity, extra=extra)
    )


async def settled(task: asyncio.Task[object]) -> None:
    """Let a task run up to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


async def test_replies_depend_on_conversation_and_seed_only() -> None:
    first, second = scripted(), scripted()
    answers = [await e.generate(HELLO, Sampling(seed=3)) for e in (first, second)]
    other = await first.generate(HELLO, Sampling(seed=4))
    greedy = [await first.generate(HELLO, Sampling(seed=s, temperature=0.0)) for s in (1, 2)]
    assert answers[0].text == answers[1].text != other.text
    assert greedy[0].text == greedy[1].text
    assert "".join(token.text for token in other.tokens) == other.text
    assert all(token.logprob < 0 for token in other.tokens)
    assert other.usage.completion_tokens == len(other.tokens)


async def test_a_script_decides_replies_and_logprobs(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(
        "- match: 'how are (you|they)'\n  reply: [Fine., Well.]\n"
        "- match: '^user: Hello'\n  logprobs: {(A): -0.25, (B): -1.5}\n"
    )
    engine = scripted(script=str(script))
    texts = [(await engine.generate(HELLO, Sampling(seed=seed))).text for seed in (0, 1, 2)]
    scored = await engine.score([HELLO], [["(B)", "(A)"]])
    assert texts == ["Fine.", "Well.", "Fine."]
    assert scored.logprobs == ((-1.5, -0.25),)
    with pytest.raises(InvalidInput, match=r"'\(C\)'.*'\(A\)', '\(B\)' only"):
        await engine.score([HELLO], [["(C)"]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "expected a list of rules"),
        ('[{"reply": "x"}]', "rule 0: expected a mapping with a text 'match'"),
        ('[{"match": "a", "reply": "x"}, {"match": "("}]', "rule 1"),
        ('[{"match": "(", "reply": "x"}]', "is no regex"),
        ('[{"match": "a", "repyl": "x"}]', "repyl"),
        ('[{"match": "a", "logprobs": {"A": "x"}}]', "logprobs: expected"),
        ('[{"match": "a", "reply": [1]}]', "reply: expected"),
        ("[", "cannot read"),
    ],
)
def test_a_wrong_script_names_file_and_rule(tmp_path: Path, content: str, said: str) -> None:
    script = tmp_path / "script.json"
    script.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        scripted(script=str(script))
    assert said in str(caught.value)
    assert str(script) in str(caught.value)


async def test_stop_texts_and_max_tokens_end_replies(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"match": "", "reply": "one two three END four"}]))
    engine = scripted(script=str(script), context_tokens="12")
    stopped = await engine.generate(HELLO, Sampling(max_tokens=6, stop=("END", " three")))
    cut = await engine.generate(HELLO, Sampling(max_tokens=2))
    assert (stopped.text, stopped.finish_reason) == ("one two", FinishReason.STOP)
    assert (cut.text, cut.finish_reason) == ("one two", FinishReason.LENGTH)
    with pytest.raises(ContextExceeded):
        await engine.generate(HELLO, Sampling(max_tokens=7))


async def test_a_stream_gives_a_word_at_a_time() -> None:
    engine = scripted()
    whole = await engine.generate(HELLO, Sampling(seed=1))
    pieces = [piece async for piece in engine.stream(HELLO, Sampling(seed=1))]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert len(pieces) == len(whole.tokens) + 1
    assert pieces[-1].final is not None
    assert pieces[-1].final.text == whole.text


@pytest.mark.parametrize(
    ("kind", "error"),
    [("failed", EngineFailed), ("overloaded", Overloaded), ("unavailable", BackendUnavailable)],
)
async def test_every_nth_call_fails_as_asked(kind: str, error: type[Exception]) -> None:
    engine = scripted(fail_every="3", fail_with=kind)
    results = await asyncio.gather(
        *(engine.generate(HELLO, Sampling()) for _ in range(6)), return_exceptions=True
    )
    assert [isinstance(result, error) for result in results] == [False, False, True] * 2


async def test_logprobs_can_be_nan_and_texts_empty() -> None:
    nan, empty = (
        scripted(fail_every="1", fail_with="nan"),
        scripted(fail_every="1", fail_with="empty"),
    )
    assert all(math.isnan(v) for v in (await nan.score([HELLO], [["a", "b"]])).logprobs[0])
    assert all(math.isnan(t.logprob) for t in (await nan.generate(HELLO, Sampling())).tokens)
    assert (await empty.generate(HELLO, Sampling())).text == ""
    with pytest.raises(InvalidInput, match="fail_with"):
        scripted(fail_with="sulking")


def test_a_crash_kills_the_process_after_so_many_calls() -> None:
    code = """if True:
        import asyncio
        from solon.chat import Conversation
        from solon.engine import EngineOptions, create
        from solon.engine.base import Sampling
        async def main():
            engine = create("scripted", EngineOptions(model="m", extra={"crash_after": "2"}))
            for _ in range(3):
                await engine.generate(Conversation.from_user("Hi"), Sampling())
                print("answered", flush=True)
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["answered", "answered"]


async def test_ten_thousand_requests_fly_at_once() -> None:
    engine = scripted(latency="0.05", queue_capacity=20_000)
    tasks = [asyncio.create_task(engine.generate(HELLO, Sampling(seed=i))) for i in range(10_000)]
    await asyncio.sleep(0)
    assert engine.load().running == 10_000
    answers = await asyncio.gather(*tasks)
    assert len({answer.text for answer in answers}) == 10_000
    assert (engine.load().running, engine.load().queued) == (0, 0)


async def test_concurrency_and_queue_are_bounded_and_cancelling_frees_them() -> None:
    engine = scripted(queue_capacity=1, concurrency="1", **SLOW)
    runs = asyncio.create_task(engine.generate(HELLO, Sampling()))
    waits = asyncio.create_task(engine.generate(HELLO, Sampling()))
    await settled(waits)
    assert (engine.load().running, engine.load().queued) == (1, 1)
    with pytest.raises(Overloaded) as caught:
        await engine.generate(HELLO, Sampling())
    assert caught.value.retry_after > 0
    runs.cancel()
    await settled(waits)
    assert (engine.load().running, engine.load().queued) == (1, 0)
    waits.cancel()
    await asyncio.gather(runs, waits, return_exceptions=True)
    assert engine.load().running == 0


async def test_abort_ends_and_wait_refuses_and_keep_holds() -> None:
    engine = scripted(queue_capacity=8192, **SLOW)
    runs = asyncio.create_task(engine.generate(HELLO, Sampling()))
    scores = asyncio.create_task(engine.score([HELLO], [["a"]]))
    await settled(runs)
    assert await engine.pause(PauseMode.ABORT) == 2
    assert (await runs).finish_reason is FinishReason.ABORT
    with pytest.raises(Paused):
        await scores
    for mode in (PauseMode.ABORT, PauseMode.WAIT):
        assert await engine.pause(mode) == 0
        with pytest.raises(Paused):
            await engine.generate(HELLO, Sampling())
    await engine.resume()

    quick = scripted()
    assert await quick.pause(PauseMode.KEEP) == 0
    held = asyncio.create_task(quick.generate(HELLO, Sampling()))
    await settled(held)
    assert quick.load().paused
    await quick.resume()
    assert (await held).finish_reason is FinishReason.STOP


async def test_weights_change_once_what_runs_has_finished(tmp_path: Path) -> None:
    engine = scripted(latency="0.01")
    with pytest.raises(WeightsNotLoaded, match="nowhere"):
        await engine.update_weights(str(tmp_path / "nowhere"), "step-1")
    runs = asyncio.create_task(engine.generate(HELLO, Sampling()))
    await settled(runs)
    await engine.update_weights(str(tmp_path), "step-1")
    assert (await runs).weight_version == "initial"
    assert (await engine.generate(HELLO, Sampling())).weight_version == "step-1"
    await engine.update_weights("s3://bucket/step-2", "step-2")
    assert engine.weight_version == "step-2"


async def test_closing_ends_requests_with_an_error() -> None:
    engine = scripted(queue_capacity=8192, **SLOW)
    runs = asyncio.create_task(engine.generate(HELLO, Sampling()))
    await settled(runs)
    await engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        await runs


@pytest.mark.parametrize("path", ["/" + "a" * 300, "a" * 4096, "\n"])
async def test_a_path_that_cannot_be_is_not_there(path: str) -> None:
    engine = create("scripted", EngineOptions(model=""))
    with pytest.raises(WeightsNotLoaded, match="is not there"):
        await engine.update_weights(path, "next")
