"""Whether a request's text depends on what else is in the batch: counted, over many tokens.

Run by hand::

    python tests/benchmarks/batch_invariance.py --tokens 100000

The same requests with the same seeds go through the transformers engine again and again, each time
in another order, with other company and another batch size; every answer is compared with the
first run's. Beside it stands what ``generate`` does: greedy, since its seeds are of whole batches,
one prompt at a time against batches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
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
from solon.engine.base import Generation, Sampling
from solon.sandbox import model_path
from solon.sandbox.asking import prompts as sandbox_prompts

COMPANY = ((64, 64), (23, 17), (5, 64), (1, 1))
"""Callers, and the engine's largest batch, of each run; the first is compared with the others."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    name: str
    requests: int
    tokens: int
    other_texts: int
    """Requests whose text differs from the first run's."""
    other_logprobs: int | None = None
    """Tokens whose log-probability differs in any bit, among equal texts; None: not looked at."""


def requests(count: int) -> list[tuple[Conversation, Sampling]]:
    """Requests and critiques, greedy, sampled and truncated; the same every time."""
    constitution = load(resolve("sandbox"))
    principles = [p for p in constitution.principles if p.critique_request is not None]
    asked = [p.conversation for p in sandbox_prompts("harmful", "train", 1000, 0)]
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 0.0},
        {"top_p": 0.9},
        {"top_k": 20, "temperature": 1.3},
    )
    made = []
    for index in range(count):
        conversation = asked[index % len(asked)]
        if index % 2:
            principle = principles[index % len(principles)]
            response = "First, find a quiet place. Then do it with care."
            conversation = critique_prompt(constitution, principle, conversation, response)
        sampling = Sampling(max_tokens=64, seed=index, **ways[index % len(ways)])
        made.append((conversation, sampling))
    return made


async def answer(
    engine: Engine, wanted: Sequence[tuple[Conversation, Sampling]], callers: int, seed: int
) -> dict[int, Generation]:
    """All answers, in a shuffled order, by so many callers at a time."""
    waiting = list(range(len(wanted)))
    random.Random(seed).shuffle(waiting)
    found = {}

    async def caller() -> None:
        while waiting:
            place = waiting.pop()
            found[place] = await engine.generate(*wanted[place])

    await asyncio.gather(*(caller() for _ in range(callers)))
    return found


async def ours(args: argparse.Namespace) -> list[Row]:
    """A row for every company but the first."""
    wanted = requests(args.tokens // 20)
    first: dict[int, Generation] = {}
    rows = []
    for number, (callers, largest) in enumerate(COMPANY):
        options = EngineOptions(model=args.model, threads=args.threads, max_batch=largest)
        engine = create("transformers", options)
        await engine.start()
        try:
            # one request at a time is slow: a part of them tells enough
            part = wanted if callers > 1 else wanted[: len(wanted) // 8]
            found = await answer(engine, part, callers, number)
        finally:
            await engine.close()
        if not first:
            first = found
            continue
        name = f"engine: {callers} callers, batches of {largest}"
        rows.append(compare(name, found, first))
    return rows


def compare(name: str, found: dict[int, Generation], first: dict[int, Generation]) -> Row:
    """Count what differs."""
    same = [place for place in found if found[place].text == first[place].text]
    return Row(
        name=name,
        requests=len(found),
        tokens=sum(len(made.tokens) for made in found.values()),
        other_texts=len(found) - len(same),
        other_logprobs=sum(
            a.logprob != b.logprob
            for place in same
            for a, b in zip(found[place].tokens, first[place].tokens, strict=True)
        ),
    )


@torch.inference_mode()
def peer(args: argparse.Namespace) -> Row:
    """Greedy ``generate``: batches of 64 against one prompt at a time."""
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(args.model).eval()
    texts = [
        tokenizer.apply_chat_template(c.as_dicts(), tokenize=False, add_generation_prompt=True)
        for c, _ in requests(args.tokens // 160)
    ]

    def run(size: int) -> list[list[int]]:
        rows: list[list[int]] = []
        for begin in range(0, len(texts), size):
            inputs = tokenizer(
                texts[begin : begin + size],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
                return_token_type_ids=False,
            )
            made = model.generate(**inputs, max_new_tokens=64, do_sample=False)
            rows += [
                [i for i in row if i != tokenizer.pad_token_id]
                for row in made[:, inputs["input_ids"].shape[1] :].tolist()
            ]
        return rows

    alone, batched = run(1), run(64)
    return Row(
        name="generate, greedy: one at a time, batches of 64",
        requests=len(texts),
        tokens=sum(map(len, alone)),
        other_texts=sum(a != b for a, b in zip(alone, batched, strict=True)),
    )


def main() -> None:
    """Run everything and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(model_path()), help="a directory or hub name")
    parser.add_argument("--tokens", type=int, default=100_000, help="about so many in a run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [*asyncio.run(ours(args)), peer(args)]
    table = Table(title=f"{args.threads} threads, float32")
    for heading in ("", "requests", "tokens", "other texts", "other log-probabilities"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        logprobs = "" if row.other_logprobs is None else f"{row.other_logprobs:,}"
        table.add_row(
            row.name, f"{row.requests:,}", f"{row.tokens:,}", f"{row.other_texts:,}", logprobs
        )
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
