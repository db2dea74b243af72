"""The vllm engine through gRPC, against ``LLM.generate`` offline on the same prompts.

Run by hand, from the project's root, where vLLM is installed (or laid beside, as the README does)::

    PYTHONPATH=$PWD:$PWD/.vllm python -m tests.benchmarks.vllm_generation --json vllm.json

512 prompts, those of ``generation``, by 64 concurrent callers. The peer gets all prompts at once,
as token ids, with the same model, cache, batch and most tokens; it makes no log-probabilities. Both
are started once and run in turn; each one's best round counts, for other work on the machine only
slows one down. The floor is what the peer's forward passes alone take: vLLM's core and workers,
without whoever asks them (CPU seconds).

On 2026-11-22, on two cores of an AMD EPYC with other work (load 9), eager, the best of 8 rounds::

                                 tokens/s    CPU s asking    CPU s computing
    vllm engine through gRPC        2,672             0.9                3.7
    LLM.generate offline            3,304             0.1                3.8

That is 0.81, where the goal is 0.9. vLLM's own work is the same. Of the service's 1.8 ms a call,
1.0 is what any gRPC call costs it (``serving_cost``); the rest is the tokenizer and AsyncLLM's
bookkeeping. With both cores full, what the service and the callers take is missing to vLLM; it is
hidden behind vLLM's work only where a core is free.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from solon.chat import Conversation
from solon.client import PolicyClient, Sampling
from solon.engine.pretrained import read_tokenizer
from solon.engine.text import Codec
from solon.sandbox import model_path
from tests.benchmarks.generation import make_prompts
from tests.benchmarks.processes import serving
from tests.benchmarks.rows import Row, write

CACHE_BYTES = 2**30
BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Round:
    """All prompts, once."""

    seconds: float
    tokens: int
    asking: float
    """CPU seconds of the process that asks vLLM's core: the service, or the script around LLM."""
    computing: float
    """CPU seconds of vLLM's core and workers."""


class Cpu:
    """CPU seconds of a process, and of all below it."""

    def __init__(self, pid: int) -> None:
        self._top = psutil.Process(pid)

    def __call__(self) -> tuple[float, float]:
        below = sum(map(_cpu, self._top.children(recursive=True)))
        return _cpu(self._top), below


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def ours(
    client: PolicyClient, cpu: Cpu, asked: Sequence[Conversation], args: argparse.Namespace
) -> Round:
    """Callers that wait for an answer before they ask again."""
    waiting = list(enumerate(asked))[::-1]
    made = 0

    async def caller() -> None:
        nonlocal made
        while waiting:
            seed, conversation = waiting.pop()
            sampling = Sampling(temperature=1.0, max_tokens=args.max_tokens, seed=seed)
            answer = await client.generate(conversation, sampling=sampling)
            made += answer.usage.completion_tokens

    before, began = cpu(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(args.callers)))
    seconds, after = time.perf_counter() - began, cpu()
    return Round(
        seconds=seconds, tokens=made, asking=after[0] - before[0], computing=after[1] - before[1]
    )


class Offline:
    """``LLM`` in a process of its own, which runs a round whenever it is told to."""

    def __init__(self, args: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.vllm_generation", "--offline"]
        command += [f"--model={args.model}", f"--prompts={args.prompts}"]
        command += [f"--max-tokens={args.max_tokens}", f"--max-batch={args.max_batch}"]
        command += [f"--{name}" for name in ("eager", "gpu") if getattr(args, name)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._cpu = Cpu(self._process.pid)

    def round(self) -> Round:
        """One round, without what the process did before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = self._cpu()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                told, after = json.loads(line), self._cpu()
                return Round(**told, asking=after[0] - before[0], computing=after[1] - before[1])
        raise RuntimeError(f"the offline side ended with {self._process.wait()}")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def offline(args: argparse.Namespace) -> None:
    """The other side of ``Offline``."""
    from vllm import LLM, SamplingParams

    codec = Codec(read_tokenizer(args.model, None))
    prompts: Any = [
        {"prompt_token_ids": codec.encode(codec.prompt(p))} for p in make_prompts(args.prompts)
    ]
    parameters = [
        SamplingParams(temperature=1.0, max_tokens=args.max_tokens, seed=seed)
        for seed in range(len(prompts))
    ]
    llm = LLM(
        model=args.model,
        max_num_seqs=args.max_batch,
        enforce_eager=args.eager,
        dtype="auto" if args.gpu else "float32",
        **({} if args.gpu else {"kv_cache_memory_bytes": CACHE_BYTES, "block_size": BLOCK}),
    )
    for _ in sys.stdin:
        began = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


async def run(args: argparse.Namespace) -> list[tuple[Round, Round]]:
    """Rounds of both, in turn; the first, which fills the prefix cache, is not kept."""
    asked = make_prompts(args.prompts)
    flags = ["--engine=vllm", f"--model={args.model}", f"--max-batch={args.max_batch}"]
    flags += [f"--engine-process={args.engine_process}"]
    flags += [f"--engine-option=enforce_eager={str(args.eager).lower()}"]
    if not args.gpu:
        flags += [f"--threads={args.threads}", f"--engine-option=block_size={BLOCK}"]
        flags += [f"--engine-option=kv_cache_memory_bytes={CACHE_BYTES}"]
    peer = Offline(args)
    try:
        async with (
            serving("policy", *flags) as server,
            PolicyClient(server.address, timeout=600) as client,
        ):
            cpu = Cpu(server.pid)
            rounds = [
                (await ours(client, cpu, asked, args), peer.round()) for _ in range(args.rounds + 1)
            ]
            return rounds[1:]
    finally:
        peer.close()


def report(rounds: Sequence[tuple[Round, Round]], args: argparse.Namespace) -> list[Row]:
    """Print the table, and the rows of it."""
    table = Table(title=f"{args.prompts} prompts, {args.callers} callers, {args.rounds} rounds")
    for heading in ("", "prompts/s", "tokens/s", "CPU s asking", "CPU s computing"):
        table.add_column(heading, justify="left" if not heading else "right")
    best = [
        max(side, key=lambda one: one.tokens / one.seconds) for side in zip(*rounds, strict=True)
    ]
    for name, one in zip(("vllm engine through gRPC", "LLM.generate offline"), best, strict=True):
        figures = (args.prompts / one.seconds, one.tokens / one.seconds, one.asking, one.computing)
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    Console().print(table)
    # by tokens: draws differ, and so does how much is said
    ours_rate, peer_rate = (one.tokens / one.seconds for one in best)
    print(f"gRPC against offline, tokens/s: {ours_rate / peer_rate:.3f}")
    return [
        Row(
            name="generation: vllm engine through gRPC against LLM.generate offline",
            ours=ours_rate,
            peer=peer_rate,
            floor=best[1].tokens / best[1].computing,
            ratio=ours_rate / peer_rate,
            unit="tokens/s",
        )
    ]


def main() -> None:
    """Run both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(model_path()), help="a directory or hub name")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="compile nothing, on both sides")
    parser.add_argument("--engine-process", choices=("auto", "own", "shared"), default="auto")
    parser.add_argument("--gpu", action="store_true", help="each side gets half of a GPU's memory")
    parser.add_argument("--json", type=Path, help="write rows of name, ours, peer, floor, ratio")
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.offline:
        offline(args)
    else:
        write(args.json, report(asyncio.run(run(args)), args))


if __name__ == "__main__":
    main()
