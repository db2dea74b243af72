"""How fast the transformers engine generates, against transformers' own ``generate``.

Run by hand::

    python tests/benchmarks/generation.py --threads 1 --json generation.json

512 prompts by 64 concurrent callers through the engine, in process; the peers are one ``generate``
call a prompt (the naive recipe) and ``generate`` in batches, which it also gets sorted by length.
Prompts are the sandbox's: half of them requests, half of them critique prompts about a response.
All sample at temperature 1 with the same most tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from solon.chat import Conversation
from solon.constitution import load, resolve
from solon.constitution.prompts import critique_prompt
from solon.engine import Engine, EngineOptions, create
from solon.engine.base import Sampling
from solon.sandbox import model_path
from solon.sandbox.asking import prompts as sandbox_prompts


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


@dataclass(frozen=True, kw_only=True)
class Row:
    """A comparison, as all benchmarks write it."""

    name: str
    ours: float
    peer: float
    floor: float | None
    ratio: float
    unit: str


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


async def run_engine(
    options: EngineOptions, prompts: Sequence[Conversation], args: argparse.Namespace
) -> Measured:
    """``callers`` callers share the prompts; each waits for an answer before it asks again."""
    engine = create("transformers", options)
    await engine.start()
    try:
        await _answers(engine, prompts[: args.callers], args)
        started = args.now()
        tokens = await _answers(engine, prompts, args)
        seconds = args.now() - started
    finally:
        await engine.close()
    name = f"engine, {args.callers} callers"
    return Measured(name=name, seconds=seconds, prompts=len(prompts), tokens=tokens)


async def _answers(
    engine: Engine, prompts: Sequence[Conversation], args: argparse.Namespace
) -> int:
    waiting = list(enumerate(prompts))[::-1]
    made = 0

    async def caller() -> None:
        nonlocal made
        while waiting:
            seed, conversation = waiting.pop()
            sampling = Sampling(max_tokens=args.max_tokens, seed=seed)
            generation = await engine.generate(conversation, sampling)
            made += len(generation.tokens)

    await asyncio.gather(*(caller() for _ in range(args.callers)))
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
        started = self._args.now()
        tokens = sum(
            self._batch(prompts[first : first + batch]) for first in range(0, len(prompts), batch)
        )
        seconds = self._args.now() - started
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


def compare(ours: Measured, peers: Sequence[Measured]) -> list[Row]:
    """A row a peer."""
    return [
        Row(
            name=f"generation: {ours.name} against {peer.name}",
            ours=ours.rate,
            peer=peer.rate,
            floor=None,
            ratio=ours.rate / peer.rate,
            unit="prompts/s",
        )
        for peer in peers
    ]


def show(ours: Measured, peers: Sequence[Measured], args: argparse.Namespace) -> None:
    """Print the table."""
    table = Table(title=f"{ours.prompts} prompts, {args.threads} threads, {args.clock} time")
    for heading in ("", "prompts/s", "tokens/s", "tokens a prompt", "engine is"):
        table.add_column(heading, justify="left" if not heading else "right")
    for measured in (ours, *peers):
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
    options = EngineOptions(model=args.model, threads=args.threads, max_batch=args.max_batch)
    ours = asyncio.run(run_engine(options, prompts, args))
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
    show(ours, peers, args)
    if args.json is not None:
        rows = [asdict(row) for row in compare(ours, peers)]
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(model_path()), help="a directory or hub name")
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
        help="cpu: count only this process's time, on a machine that does other work too",
    )
    parser.add_argument("--json", type=Path, help="write rows of name, ours, peer, ratio, unit")
    args = parser.parse_args()
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
    args.now = clocks[args.clock]
    return args


if __name__ == "__main__":
    main()
