"""Making prompts by few-shot with a policy service, to be gone on with after any interruption.

::

    FILE.jsonl                      the prompts, once there are as many as asked for
    FILE.jsonl.samples/             settings.json, report.json
    FILE.jsonl.samples/samples/     part-*.parquet: every answer, with what it was asked

Samples are numbered, and taken in that order however they come: the prompts are the same whatever
the concurrency, and however often it was interrupted. Knows nothing of the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from solon.chat import Conversation
from solon.client import PolicyClient, ServerInfo
from solon.trainer.errors import CallError, StageFailed
from solon.trainer.fewshot import Ask, Asker, Sieve
from solon.trainer.importers import content_id
from solon.trainer.lock import exclusive
from solon.trainer.prompt_settings import WrittenKind
from solon.trainer.prompts import Prompt
from solon.trainer.schemas import PROMPT_SAMPLES
from solon.trainer.stages import rows
from solon.trainer.stages.settings import SamplingSettings, StoreConfig
from solon.trainer.stages.work import make_records
from solon.trainer.store import Record, RunDirectory
from solon.trainer.survey import Survey

FOLDER = "samples"
SETTINGS_NAME = "settings.json"
REPORT_NAME = "report.json"
_WAVE = 16
"""Samples are made in waves of at most so many times the concurrency: each ends with a part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be made."""

    kind: WrittenKind
    count: int
    """New prompts, 1 or more."""
    most_samples: int
    """Answers after which it is given up, ``count`` or more."""
    seed: int
    shots: int
    near_duplicate: float
    """See ``fewshot.Sieve``."""
    sampling: SamplingSettings
    in_flight: int
    """Answers asked for at the same time, 1 or more; changes no prompt."""


class Progress(Protocol):
    """Where it is shown."""

    def start(self, total: float, done: float) -> None:
        """So many prompts are wanted, of which ``done`` are there."""

    def advance(self) -> None:
        """One more."""


class _Samples:
    """Answers on disk, judged in the order of their numbers."""

    def __init__(self, run: RunDirectory, wanted: Wanted, examples: Sequence[Prompt]) -> None:
        self.parts = run.parts(FOLDER, PROMPT_SAMPLES)
        self._wanted = wanted
        self._sieve = Sieve(examples, near_duplicate=wanted.near_duplicate)
        self._waiting: dict[int, Record] = {}
        self.judged = 0
        self.kept: list[dict[str, Any]] = []

    @property
    def is_enough(self) -> bool:
        return len(self.kept) >= self._wanted.count

    @property
    def dropped(self) -> Mapping[str, int]:
        return dict(self._sieve.dropped.most_common())

    def add(self, record: Record) -> int:
        """Take an answer; returns how many prompts there are more."""
        before = len(self.kept)
        self._waiting[int(record["id"])] = record
        while not self.is_enough and self.judged in self._waiting:
            self._judge(self._waiting.pop(self.judged))
            self.judged += 1
        return len(self.kept) - before

    def next_wave(self) -> list[int]:
        """Numbers of the samples to make now; none: there are enough, or as many as allowed."""
        if self.is_enough:
            return []
        share = max(len(self.kept), 1) / max(self.judged, 1)
        likely = math.ceil((self._wanted.count - len(self.kept)) / share)
        size = min(max(likely, self._wanted.in_flight), _WAVE * self._wanted.in_flight)
        end = min(self.judged + size, self._wanted.most_samples)
        return [n for n in range(self.judged, end) if n not in self._waiting]

    def _judge(self, record: Record) -> None:
        answer = record["completion"]
        text = self._sieve.take(answer["text"], answer["finish_reason"])
        if text is None:
            return
        self.kept.append(
            {
                "id": content_id(Conversation.from_user(text)),
                "prompt": text,
                "category": record["topic"],
                "sample": int(record["id"]),
                "seed": answer["seed"],
                "examples": record["examples"],
                "model": record["policy"]["model"],
                "weight_version": record["policy"]["weight_version"],
            }
        )


async def generate(
    policy: PolicyClient,
    info: ServerInfo,
    examples: Sequence[Prompt],
    wanted: Wanted,
    *,
    to: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Make prompts and write them, going on with what an earlier attempt has made.

    Args:
        policy: Open; answers.
        info: What it runs.
        examples: Seed prompts.
        wanted: What is to be made.
        to: The .jsonl file.
        progress: Told of every new prompt.

    Returns:
        ``report.json``: ``Survey.figures`` with ``samples``, ``dropped`` (reason -> answers), and
        the settings.

    Raises:
        CallError: The file is there and not of this command, or was begun with other settings.
        StageFailed: Too few of the answers are new prompts.
        PromptError: No example can be shown.
        SolonError: The service failed.
        StoreError: A file cannot be written or read.
    """
    asker = Asker(wanted.kind, examples, shots=wanted.shots, seed=wanted.seed)
    run = _open(to)
    settings = _identity(wanted, examples, info)
    with exclusive(run.storage):
        run.storage.remove_leftovers("", FOLDER)
        _require_same(run, settings)
        samples = _Samples(run, wanted, examples)
        for record in samples.parts.records():
            samples.add(record)
        progress.start(wanted.count, len(samples.kept))
        await _make(policy, info, asker, samples, wanted, progress)
        report = {**_figures(samples), **settings}
        run.write_json(REPORT_NAME, report)
        if not samples.is_enough:
            raise _too_few(samples, wanted, run)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in samples.kept)
        RunDirectory(str(to.parent)).storage.write(to.name, "".join(lines).encode())
    return report


def _open(to: Path) -> RunDirectory:
    run = RunDirectory(f"{to}.samples")
    if to.exists() and not run.storage.exists(SETTINGS_NAME):
        raise CallError(f"--to: {str(to)!r} is there already; choose another file, or remove it")
    return run


async def _make(
    policy: PolicyClient,
    info: ServerInfo,
    asker: Asker,
    samples: _Samples,
    wanted: Wanted,
    progress: Progress,
) -> None:
    async def make(number: int) -> Record:
        asked = asker.ask(number)
        reply = await policy.generate(
            asked.conversation,
            sampling=rows.sampling(wanted.sampling, asked.seed),
            weight_version=info.weight_version,
        )
        return {
            "id": f"{number:08d}",
            **_asked(asked),
            "completion": rows.completion(reply.completions[0]),
            "policy": rows.answered(reply, info, wanted.sampling),
        }

    def on_record(record: Record) -> None:
        for _ in range(samples.add(record)):
            progress.advance()

    while wave := samples.next_wave():
        await make_records(
            wave,
            make,
            parts=samples.parts,
            in_flight=wanted.in_flight,
            store=StoreConfig(),
            on_record=on_record,
        )


def _asked(asked: Ask) -> dict[str, Any]:
    return {
        "topic": asked.topic,
        "examples": list(asked.examples),
        "prompt": asked.conversation.as_dicts(),
    }


def _identity(wanted: Wanted, examples: Sequence[Prompt], info: ServerInfo) -> dict[str, Any]:
    """What the samples depend on: going on with any other value would mix two sets."""
    shown = [[p.id, p.category, p.conversation.as_dicts()] for p in examples]
    return {
        "kind": wanted.kind,
        "seed": wanted.seed,
        "shots": wanted.shots,
        "sampling": wanted.sampling.model_dump(),
        "seeds": hashlib.sha256(json.dumps(shown).encode()).hexdigest(),
        "model": info.model,
        "weight_version": info.weight_version,
    }


def _require_same(run: RunDirectory, settings: Mapping[str, Any]) -> None:
    before = run.read_json(SETTINGS_NAME)
    if before is None:
        run.write_json(SETTINGS_NAME, settings)
        return
    changed = [
        f"{k}: {before.get(k)!r} -> {v!r}" for k, v in settings.items() if before.get(k) != v
    ]
    if changed:
        raise CallError(
            f"--to: {run.url} holds samples that were made with other settings "
            f"({'; '.join(changed)}); go on with those, choose another file, or remove that folder"
        )


def _figures(samples: _Samples) -> dict[str, Any]:
    survey = Survey()
    for prompt in _prompts(samples.kept):
        survey.add(prompt)
    figures = survey.figures()
    # what repeats another was dropped before, and is counted there
    for name in ("duplicates", "near_duplicates"):
        del figures[name]
    return {**figures, "samples": samples.judged, "dropped": samples.dropped}


def _prompts(kept: Sequence[Mapping[str, Any]]) -> Iterator[Prompt]:
    for row in kept:
        yield Prompt(
            id=row["id"],
            conversation=Conversation.from_user(row["prompt"]),
            source="",
            category=row["category"],
        )


def _too_few(samples: _Samples, wanted: Wanted, run: RunDirectory) -> StageFailed:
    reasons = ", ".join(f"{count} {name}" for name, count in samples.dropped.items())
    return StageFailed(
        f"prompts generate: {len(samples.kept)} of {wanted.count} prompts after {samples.judged} "
        f"samples; dropped: {reasons or 'none'}. Look at {run.url}/{FOLDER}; raise --most-samples "
        "and run it again to go on, or raise --temperature, give more --seeds, or take a better "
        "model with another --to"
    )
