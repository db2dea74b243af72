"""A training stage runs in a process of its own, and whatever it ends with is told."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from solon.trainer.launch.local import Done, Note, Progress, StageEvent, StageFailed, run_stage
from solon.trainer.launch.stages import run_worker
from solon.trainer.steps import Step


class Stage:
    """Runs scripts as workers and keeps what they tell."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "logs" / "stage.log"
        self.events: list[StageEvent] = []

    async def run(
        self, script: str, *more: str, threads: int | None = None, processes: int = 1
    ) -> None:
        await run_worker(
            "rl",
            ("-c", dedent(script), *more),
            log=self.log,
            on_event=self.events.append,
            threads=threads,
            processes=processes,
        )

    async def failure_of(self, script: str, *more: str, processes: int = 1) -> StageFailed:
        with pytest.raises(StageFailed) as caught:
            await self.run(script, *more, processes=processes)
        return caught.value


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_events_arrive_typed_and_in_order_and_chatter_goes_to_the_log(stage: Stage) -> None:
    await stage.run(
        """
        import sys
        print('{"event": "message", "text": "resuming at step 8"}')
        print('a library says hello')
        print("{'not': 'json'}")
        print('{"json": "but no event"}')
        print('to stderr', file=sys.stderr)
        print('{"event": "progress", "stage": "rl", "done": 1, "total": 2,'
              ' "metrics": {"lr": 0.5, "loss/value_avg": NaN}}')
        print('{"event": "done", "metrics": {"eps": 3}}')
        """
    )
    note, progress, done = stage.events
    assert note == Note(text="resuming at step 8")
    assert isinstance(progress, Progress)
    assert (progress.stage, progress.done, progress.total) == ("rl", 1, 2)
    assert progress.metrics["lr"] == 0.5
    assert done == Done(metrics={"eps": 3})
    lines = stage.log.read_text().splitlines()
    assert sorted(lines) == [
        "a library says hello",
        "to stderr",
        '{"json": "but no event"}',
        "{'not': 'json'}",
    ]


async def test_a_users_mistake_is_told_as_one(stage: Stage) -> None:
    error = await stage.failure_of(
        """
        print('{"event": "error", "kind": "user", "at": 1.5,'
              ' "text": "rl.lr: expected above 0, got -1.0"}')
        raise SystemExit(2)
        """
    )
    assert error.user_error
    assert str(error).startswith("stage rl: rl.lr: expected above 0, got -1.0 (log: ")


async def test_a_defect_is_told_with_the_traceback_in_the_log(stage: Stage) -> None:
    error = await stage.failure_of("raise KeyError('no such column')")
    assert not error.user_error
    assert "ended (exit code 1), without a result: KeyError: 'no such column'" in str(error)
    assert "Traceback" in stage.log.read_text()


async def test_a_killed_stage_is_told_as_killed(stage: Stage) -> None:
    error = await stage.failure_of(
        """
        import os, signal
        print('{"event": "progress", "stage": "rl", "done": 1, "total": 2}', flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert "killed by SIGKILL (out of memory?)" in str(error)
    assert len(stage.events) == 1


async def test_a_stage_that_ends_well_without_a_result_has_failed(stage: Stage) -> None:
    error = await stage.failure_of("print('bye')")
    assert "without a result" in str(error)


async def test_a_stage_that_says_done_and_then_crashes_has_failed(stage: Stage) -> None:
    error = await stage.failure_of(
        """
        print('{"event": "done"}')
        raise OSError("no space left on device")
        """
    )
    assert "no space left on device" in str(error)
    assert "without a result" not in str(error)


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "progres", "stage": "rl", "done": 1, "total": 2}',
        '{"event": "progress", "stage": "rl", "total": 2}',
        '{"event": "progress", "stage": "rl", "done": "1", "total": 2}',
        '{"event": "done", "metrics": {"lr": "low"}}',
        '{"event": "message"}',
        '{"event": "error", "kind": "user", "text": "when?"}',
    ],
)
async def test_an_event_that_breaks_the_protocol_is_no_chatter(stage: Stage, line: str) -> None:
    error = await stage.failure_of(f"print('''{line}''')")
    assert "expected a progress, message, error or done event" in str(error)
    assert line in str(error)


async def test_threads_are_those_asked_for(stage: Stage) -> None:
    script = """
        import json, os
        print(json.dumps({"event": "message", "text": os.environ["OMP_NUM_THREADS"]}))
        print('{"event": "done"}')
    """
    await stage.run(script, threads=3)
    assert stage.events[0] == Note(text="3")


async def test_ranks_know_which_they_are_and_the_first_alone_is_heard(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as of a run that is itself a process of many: it is not what its stages are
    monkeypatch.setenv("RANK", "7")
    script = """
        import json, os
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
        print(json.dumps({"event": "message", "text": repr([os.environ.get(n) for n in names])}))
        print(f"chatter of {os.environ.get('RANK')}")
        print('{"event": "done"}')
    """
    await stage.run(script, threads=4, processes=2)
    assert stage.events == [Note(text="['0', '0', '2', '2', '2']"), Done()]
    assert stage.log.read_text() == "chatter of 0\n"
    assert stage.log.with_name("stage.rank1.log").read_text() == "chatter of 1\n"
    await stage.run(script, threads=4)
    assert stage.events[2] == Note(text="[None, None, None, None, '4']")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 of 2 ended (killed by SIGKILL"),
        ("fail('a defect')", "rank 1 of 2: a defect"),
    ],
)
async def test_the_rank_that_failed_first_is_told_not_the_one_that_lost_it(
    stage: Stage, tmp_path: Path, end: str, told: str
) -> None:
    # a rank sees the end of another as the end of what it reads from it
    os.mkfifo(tmp_path / "fifo")
    script = """
        import json, os, signal, sys, time

        def fail(text):
            print(json.dumps({"event": "error", "kind": "internal", "text": text,
                              "at": time.monotonic()}), flush=True)
            os._exit(1)

        fifo, end = sys.argv[1:]
        if os.environ["RANK"] == "1":
            out = open(fifo, "w")
            print('{"event": "message", "text": "not heard"}', flush=True)
            exec(end)
        open(fifo).read()
        fail("connection closed by peer")
    """
    error = await stage.failure_of(script, str(tmp_path / "fifo"), end, processes=2)
    assert told in str(error)
    assert stage.events == []


WAITS = """
    import json, os, signal
    print(json.dumps({"event": "message", "text": str(os.getpid())}), flush=True)
    signal.pause()
"""


async def test_a_cancelled_stage_is_stopped(stage: Stage) -> None:
    running = asyncio.create_task(stage.run(WAITS, processes=2))
    pid = await pid_told_by(stage)
    ranks = psutil.Process().children()
    assert len(ranks) == 2
    assert pid in [rank.pid for rank in ranks]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(rank.is_running() for rank in ranks)


async def test_ctrl_c_in_the_terminal_does_not_reach_the_stage(stage: Stage) -> None:
    running = asyncio.create_task(stage.run(WAITS))
    pid = await pid_told_by(stage)
    assert os.getsid(pid) == pid != os.getsid(0)
    running.cancel()
    await asyncio.wait({running})


async def pid_told_by(stage: Stage) -> int:
    while not stage.events:
        await asyncio.sleep(0.01)
    note = stage.events[0]
    assert isinstance(note, Note)
    return int(note.text)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_a_stage_dies_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    coordinator = dedent(
        f"""
        import asyncio, pathlib
        from solon.trainer.launch.stages import run_worker

        asyncio.run(run_worker(
            "rl", ("-c", {dedent(WAITS)!r}), log=pathlib.Path({str(tmp_path / "log")!r}),
            on_event=lambda note: print(note.text, flush=True), processes=2,
        ))
        """
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", coordinator, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    await parent.stdout.readline()
    ranks = [os.pidfd_open(rank.pid) for rank in psutil.Process(parent.pid).children()]
    assert len(ranks) == 2
    parent.send_signal(signal.SIGKILL)
    await parent.communicate()
    for rank in ranks:
        # readable once the process has ended, though nobody may have reaped it yet
        ended, _, _ = select.select([rank], [], [], 30)
        os.close(rank)
        assert ended


async def test_a_stage_is_a_worker_process_with_its_log_in_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        await run_stage(Step("evaluate"), tmp_path, on_event=lambda event: None)
    assert str(tmp_path / "logs" / "evaluate.log") in str(caught.value)
