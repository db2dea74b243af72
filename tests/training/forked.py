"""Training stages as one or several processes, forked from one that has imported what they need.

Reads requests as JSON lines, {"stage", "run", "processes", "kill_after"}, and answers each with the
ranks' exit codes and the first one's events. What is forked runs the worker's own ``main`` with the
variables that a launcher sets; only the imports, which take seconds, are made once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import torch

from solon.trainer.stages import dpo, reward, rl, sft, worker

__all__ = ["dpo", "reward", "rl", "sft"]


def main() -> None:
    # a thread of torch's would not be there in what is forked
    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def answer(stage: str, run: str, processes: int, kill_after: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as meeting:
        arguments = [stage, "--run", run]
        if processes > 1:
            arguments += ["--rendezvous", f"file://{meeting}/store"]
        told, written = os.pipe()
        pids = [start(arguments, number, processes, written) for number in range(processes)]
        os.close(written)
        events = []
        with os.fdopen(told) as lines:
            for line in lines:
                events.append(json.loads(line))
                if kill_after is not None and events[-1].get("done") == kill_after:
                    os.kill(pids[-1], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        return {"codes": codes, "events": events}


def start(arguments: list[str], number: int, processes: int, written: int) -> int:
    pid = os.fork()
    if pid == 0:
        be(arguments, number, processes, written)
    return pid


def be(arguments: list[str], number: int, processes: int, written: int) -> NoReturn:
    code = 70
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(written if number == 0 else quiet, 1)
        os.close(written)
        log = Path(arguments[2]) / f"rank{number}.log"
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        values = (number, processes, number, processes)
        if processes > 1:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            os.environ |= {n: str(value) for n, value in zip(names, values, strict=True)}
        code = worker.main(arguments)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
