"""The revisions stage end to end, against the same calls by a loop over transformers' pipeline.

    python -m tests.benchmarks.revisions_end_to_end [--prompts N] [--json FILE] [--profile FOLDER]

By hand. Ours is the command ``solon revisions`` with a policy and a critic service, all processes
of this machine: a response, four rounds of critique and revision, records and the export. The peer
is what one would write first: for each prompt a call of the pipeline for the response, then one for
each critique and revision, with the same model, prompts, sampling and limits. Loading is left out
on both sides. The peer runs before and after ours, with one thread and with all, and its best
counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import pipeline
from transformers.utils.logging import set_verbosity_error

from solon.chat import Conversation
from solon.constitution import Constitution, derive_seed, draw, load, resolve
from solon.constitution.prompts import critique_prompt, revision_prompt
from solon.sandbox import model_path
from solon.sandbox.asking import prompts as sandbox_prompts
from solon.trainer.launch.local import LocalServices, Role, ServiceSpec
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory
from tests.benchmarks.coordinator import coordinate
from tests.benchmarks.rows import Row, write

ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way to make the records."""

    name: str
    prompts: int
    seconds: float
    processor: float
    """Seconds of processor, of all processes."""


class Loop:
    """One call of the pipeline after the other."""

    def __init__(self, model: str, max_tokens: int) -> None:
        # of each call it would say that max_new_tokens goes before max_length
        set_verbosity_error()
        self._ask: Any = pipeline("text-generation", model=model, device="cpu", dtype="float32")
        self._constitution: Constitution = load(resolve("sandbox"))
        self._max_tokens = max_tokens

    def run(self, prompts: Sequence[Conversation], threads: int) -> Measured:
        """All records of these prompts."""
        torch.set_num_threads(threads)
        started, used = time.perf_counter(), time.process_time()
        for number, conversation in enumerate(prompts):
            self._record(conversation, number)
        return Measured(
            name=f"pipeline, one call after the other, {threads} threads",
            prompts=len(prompts),
            seconds=time.perf_counter() - started,
            processor=time.process_time() - used,
        )

    def _record(self, conversation: Conversation, seed: int) -> None:
        response = self._text(conversation)
        principles = self._constitution.for_revision
        for number in range(ROUNDS):
            (principle,) = draw(principles, 1, derive_seed(seed, number))
            asked = critique_prompt(self._constitution, principle, conversation, response)
            critique = self._text(asked)
            asked = revision_prompt(
                self._constitution, principle, conversation, response, critique or None
            )
            response = self._text(asked) or response

    def _text(self, conversation: Conversation) -> str:
        (made,) = self._ask(
            conversation.as_dicts(),
            max_new_tokens=self._max_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            return_full_text=False,
        )
        return str(made["generated_text"])


async def ours(prompts: Sequence[Conversation], args: argparse.Namespace) -> Measured:
    """The stage, its services started before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        roles: tuple[Role, ...] = ("policy", "critic")
        specs = [
            ServiceSpec(
                role=role,
                model=args.model,
                constitutions=() if role == "policy" else ("sandbox",),
                threads=max(1, args.threads // 2),
            )
            for role in roles
        ]
        async with LocalServices(specs, log_dir=folder) as services:
            config = write_config(folder, prompts, services.addresses, args)
            trees = [psutil.Process(pid) for pid in services.pids.values()]
            spies = watch(trees, args.profile) if args.profile else []
            before = sum(map(processor, trees))
            coordinator = await asyncio.to_thread(coordinate, "revisions", config, None)
            used = sum(map(processor, trees)) - before
            for spy in spies:
                spy.wait()
        run = RunDirectory(str(folder / "run"))
        return Measured(
            name="solon revisions",
            prompts=len(prompts),
            seconds=RunState(run).seconds("revisions"),
            processor=used + coordinator,
        )


def watch(trees: Sequence[psutil.Process], folder: Path) -> list[subprocess.Popen[bytes]]:
    """py-spy on the services, their engines included, for half a minute."""
    folder.mkdir(parents=True, exist_ok=True)
    how = ("py-spy", "record", "--rate=100", "--duration=30", "--subprocesses", "--native")
    return [
        subprocess.Popen(
            [*how, "--format=raw", f"--pid={one.pid}", f"--output={folder / str(place)}.txt"],
            stderr=subprocess.DEVNULL,
        )
        for place, one in enumerate(trees)
    ]


def processor(tree: psutil.Process) -> float:
    """Seconds of processor that a process and those that it started have used."""
    times = [one.cpu_times() for one in (tree, *tree.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def write_config(
    folder: Path,
    prompts: Sequence[Conversation],
    addresses: Mapping[str, str],
    args: argparse.Namespace,
) -> Path:
    """The sandbox's configuration with these prompts and services."""
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": one.as_dicts()}) for one in prompts))
    limits = {"max_tokens": args.max_tokens}
    settings: dict[str, Any] = {
        "constitution": "sandbox",
        "run_dir": str(folder / "run"),
        "models": dict.fromkeys(("policy", "critic", "judge", "base_for_sft"), args.model),
        "services": {role: {"address": address} for role, address in addresses.items()},
        "prompts": {"red_team": [str(file)]},
        "revisions": {
            "rounds": ROUNDS,
            "response": limits,
            "critic": limits,
            "max_unusable_share": 1,
        },
    }
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    return path


def show(solon: Measured, peers: Sequence[Measured]) -> None:
    """The table."""
    load_now = psutil.getloadavg()[0]
    table = Table(title=f"{ROUNDS} rounds, {psutil.cpu_count()} cores, load {load_now:.1f}")
    for heading in ("", "prompts", "prompts/s", "solon is", "processor, s a prompt", "solon is"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in (solon, *peers):
        rate = one.prompts / one.seconds
        used = one.processor / one.prompts
        table.add_row(
            one.name,
            str(one.prompts),
            f"{rate:.2f}",
            f"{solon.prompts / solon.seconds / rate:.1f}x",
            f"{used:.4f}",
            f"{used / (solon.processor / solon.prompts):.1f}x",
        )
    Console().print(table)


def compare(solon: Measured, peers: Sequence[Measured]) -> list[Row]:
    """By the clock and by processor, against the peer's best."""
    rate = solon.prompts / solon.seconds
    best = max(one.prompts / one.seconds for one in peers)
    used = solon.processor / solon.prompts
    least = min(one.processor / one.prompts for one in peers)
    return [
        Row(
            name="revisions, 4 rounds",
            ours=rate,
            peer=best,
            floor=None,
            ratio=rate / best,
            unit="prompts/s",
        ),
        Row(
            name="revisions, 4 rounds, processor",
            ours=used,
            peer=least,
            floor=None,
            ratio=least / used,
            unit="s/prompt",
        ),
    ]


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(model_path()), help="a directory")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--peer-prompts", type=int, default=8, help="of each of the peer's turns")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count())
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="with py-spy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    args = parser.parse_args()
    prompts = [p.conversation for p in sandbox_prompts("harmful", "train", args.prompts, 0)]
    loop = Loop(args.model, args.max_tokens)
    few = prompts[: args.peer_prompts]
    loop.run(few[:1], 1)
    peers = [loop.run(few, threads) for threads in (1, args.threads)]
    solon = asyncio.run(ours(prompts, args))
    peers += [loop.run(few, threads) for threads in (1, args.threads)]
    show(solon, peers)
    write(args.json, compare(solon, peers))


if __name__ == "__main__":
    main()
