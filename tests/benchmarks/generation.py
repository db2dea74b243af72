"""How fast a policy service generates, against transformers' own ``generate``.

Run by hand, from the project's root::

    python -m tests.benchmarks.generation --threads 1 --json generation.json

512 prompts by 64 concurrent callers through gRPC, from a real process; the peers are one
``generate`` call a prompt (the naive recipe) and ``generate`` in batches, which it also gets sorted
by length. Prompts are the sandbox's: half of them requests, half of them critique prompts about a
response. All sample at temperature 1 with the same most tokens. Floor: the same prompts in one
batch of the engine, in process, all of them there from the start.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from solon.chat import Conversation
from solon.client import PolicyClient
from solon.client import Sampling as ClientSampling
from solon.constitution import load, resolve
from solon.constitution.prompts import critique_prompt
from solon.engine import EngineOptions, create
from solon.engine.base import Sampling
from solon.sandbox import model_path
from solon.sandbox.asking import prompts as sandbox_prompts
from tests.benchmarks.processes import engine_flags, now, serving
from tests.benchmarks.rows import Row, write


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way to make the answers."""

    name: str
    seconds: float
    prompts: int
    tokens: int
    """Tokens made, the end of turn included."""

    @property
    def rate(self) -> float:
        """Prompts a second."""
        return self.prompts / self.seconds


def make_prompts(count: int) -> list[Conversation]:
    """Half of them requests, half of them critique prompts; the same every time."""
    constitution = load(resolve("sandbox"))
    asked = [p.conversation for p in sandbox_prompts("harmful", "train", count, 0)]
    principles = [p for p in constitution.principles if p.critique_request is not None]
    made = []
    for index, conversation in enumerate(asked):
        if index % 2:
            response = "First, find a quiet place. Then take what you need and do it with care."
            principle = principles[index % len(principles)]
            made.append(critique_prompt(constitution, principle, conversation, response))
        else:
            made.append(conversation)
    return made


async def run_service(prompts: Sequence[Conversation], args: argparse.Namespace) -> Measured:
    """``callers`` callers share the prompts; each waits for an answer before it asks again."""
    flags = engine_flags(args.engine, args.model, args.threads, args.engine_option)
    async with (
        serving("policy", *flags, f"--max-batch={args.max_batch}", python=args.python) as server,
        PolicyClient(server.address, timeout=600) as client,
    ):

        async def ask(seed: int, conversation: Conversation) -> int:
            sampling = ClientSampling(max_tokens=args.max_tokens, seed=seed)
            reply = await client.generate(conversation, sampling=sampling)
            return reply.usage.completion_tokens

        await _answers(ask, prompts[: args.callers], args.callers)
        started = now(args.clock, server.cpu)
        tokens = await _answers(ask, prompts, args.callers)
        seconds = now(args.clock, server.cpu) - started
    name = f"solon-policy, {args.engine} engine, {args.callers} callers"
    return Measured(name=name, seconds=seconds, prompts=len(prompts), tokens=tokens)


async def run_engine(prompts: Sequence[Conversation], args: argparse.Namespace) -> Measured:
    """The engine alone, with everything asked at once."""
    options = EngineOptions(model=args.model, threads=args.threads, max_batch=args.max_batch)
    engine = create("transformers", options)
    await engine.start()

    async def ask(seed: int, conversation: Conversation) -> int:
        sampling = Sampling(max_tokens=args.max_tokens, seed=seed)
        return len((await engine.generate(conversation, sampling)).tokens)

    try:
        await _answers(ask, prompts[: args.max_batch], len(prompts))
        started = now(args.clock)
        tokens = await _answers(ask, prompts, len(prompts))
        seconds = now(args.clock) - started
    finally:
        await engine.close()
    return Measured(name="engine, in process", seconds=seconds, prompts=len(prompts), tokens=tokens)


async def _answers(
    ask: Callable[[int, Conversation], Awaitable[int]],
    prompts: Sequence[Conversation],
    callers: int,
) -> int:
    waiting = list(enumerate(prompts))[::-1]
    made = 0

    async def caller() -> None:
        nonlocal made
        while waiting:
            tokens = await ask(*waiting.pop())
            made += tokens

    await asyncio.gather(*(caller() for _ in range(callers)))
    return made


class Generate:
    """transformers' own ``generate``."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(model).eval()
        self._args = args

    def run(self, name: str, prompts: Sequence[Conversation], batch: int) -> Measured:
        """Answer in batches of ``batch``, in the order given."""
        self._batch(prompts[:batch])
        started = now(self._args.clock)
        tokens = sum(
            self._batch(prompts[first : first + batch]) for first in range(0, len(prompts), batch)
        )
        seconds = now(self._args.clock) - started
        return Measured(name=name, seconds=seconds, prompts=len(prompts), tokens=tokens)

    def by_length(self, prompts: Sequence[Conversation]) -> list[Conversation]:
        """Shortest first, so that batches have little padding."""
        return sorted(prompts, key=lambda prompt: len(self._text(prompt)))

    def _text(self, conversation: Conversation) -> str:
        text: str = self._tokenizer.apply_chat_template(
            conversation.as_dicts(), tokenize=False, add_generation_prompt=True
        )
        return text

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[Conversation]) -> int:
        texts = [self._text(prompt) for prompt in prompts]
        inputs = self._tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
            return_token_type_ids=False,
        )
        out = self._model.generate(
            **inputs,
            max_new_tokens=self._args.max_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        made = out[:, inputs["input_ids"].shape[1] :]
        self._tokenizer.batch_decode(made, skip_special_tokens=True)
        return int((made != self._tokenizer.pad_token_id).sum())


def compare(ours: Measured, floor: Measured, peers: Sequence[Measured]) -> list[Row]:
    """A row a peer."""
    return [
        Row(
            name=f"generation: {ours.name} against {peer.name}",
            ours=ours.rate,
            peer=peer.rate,
            floor=floor.rate,
            ratio=ours.rate / peer.rate,
            unit="prompts/s",
        )
        for peer in peers
    ]


def show(ways: Sequence[Measured], args: argparse.Namespace) -> None:
    """Print the table; ours is the first."""
    ours = ways[0]
    table = Table(title=f"{ours.prompts} prompts, {args.threads} threads, {args.clock} time")
    for heading in ("", "prompts/s", "tokens/s", "tokens a prompt", "ours is"):
        table.add_column(heading, justify="left" if not heading else "right")
    for measured in ways:
        table.add_row(
            measured.name,
            f"{measured.rate:.1f}",
            f"{measured.tokens / measured.seconds:.0f}",
            f"{measured.tokens / measured.prompts:.1f}",
            f"{ours.rate / measured.rate:.2f}x",
        )
    Console().print(table)


def main() -> None:
    """Run everything and print the ratios."""
    args = parse()
    torch.set_num_threads(args.threads)
    prompts = make_prompts(args.prompts)
    ours = asyncio.run(run_service(prompts, args))
    floor = asyncio.run(run_engine(prompts, args))
    generate = Generate(args.model, args)
    few = prompts[: max(1, args.prompts // 8)]
    ordered = generate.by_length(prompts)
    peers = [
        generate.run("generate, one call a prompt", few, 1),
        generate.run("generate, batches of 64", prompts, 64),
        *(
            generate.run(f"generate, batches of {size}, sorted by length", ordered, size)
            for size in args.sorted_batches
        ),
    ]
    show([ours, floor, *peers], args)
    write(args.json, compare(ours, floor, peers))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(model_path()), help="a directory or hub name")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--engine-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--python", default=sys.executable, help="the service's interpreter")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sorted-batches", type=int, nargs="*", default=[64, 128])
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: count only what these processes take, on a machine that does other work too",
    )
    parser.add_argument("--json", type=Path, help="write the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
