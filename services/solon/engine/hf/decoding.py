"""The running batch of generations: rows join, take a token a step, and leave.

Knows nothing of threads and queues.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from solon.engine.base import EngineFailed, FinishReason
from solon.engine.hf.cache import round_up
from solon.engine.hf.exact import Exact
from solon.engine.hf.jobs import GenerateJob, Made, MadePiece
from solon.engine.hf.kept import Kept, whole
from solon.engine.hf.runner import LEAST_ROWS, Runner
from solon.engine.hf.runs import shape
from solon.engine.hf.sampling import Draws, Settings, draw, uniforms
from solon.engine.text import Codec, RunningText


@dataclass(kw_only=True, slots=True, eq=False)
class Row:
    """A sequence in the batch."""

    job: GenerateJob
    weight_version: str
    cached_tokens: int
    started: float
    text: RunningText | None
    """Followed token by token only where a stop text or a stream needs it."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    company: int = 0
    """Sequences in its steps, added up."""
    given: int = 0
    """Tokens that were streamed."""

    @property
    def position(self) -> int:
        """Where the next token to run stands."""
        return len(self.job.prompt) - 1 + len(self.ids)

    @property
    def last(self) -> int:
        """The next token to run."""
        return self.ids[-1] if self.ids else self.job.prompt[-1]

    def made(self, reason: FinishReason, *, ended_by_token: bool = False) -> Made:
        """The whole generation."""
        if self.text is not None:
            self.text.finish()
        return Made(
            ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            text=None if self.text is None else self.text.text,
            reason=reason,
            ended_by_token=ended_by_token,
            cached_tokens=self.cached_tokens,
            started=self.started,
            company=self.company,
            weight_version=self.weight_version,
        )


Event = tuple[Row, Made | MadePiece | EngineFailed]
"""What became of a row in a step."""


class DecodeBatch:
    """Row i lies in the cache's slot i; the last row takes the place of one that leaves."""

    def __init__(self, runner: Runner, codec: Codec, eos_ids: frozenset[int], kept: Kept) -> None:
        self._runner = runner
        self._kept = kept
        self._codec = codec
        self._eos_ids = eos_ids
        self._cache = runner.new_cache()
        self._exact = Exact(runner)
        self._settings: Settings | None = None
        self.rows: list[Row] = []

    def step(self, joining: Sequence[GenerateJob] = (), weight_version: str = "") -> list[Event]:
        """Make a token a row; the rows that ended are gone afterwards.

        Args:
            joining: New sequences, whose prompts are computed here. Equal prompts are computed
                once. If this raises, ``forget`` them to go on without.
            weight_version: That the new ones are told.
        """
        logits_B_V = self._forward(joining, weight_version)
        rows = self.rows
        if joining or self._settings is None:
            self._settings = Settings.of([row.job.sampling for row in rows], self._runner.device)
        draws = self._draw(logits_B_V)
        events = list(self._advance(draws))
        ended = {row for row, event in events if not isinstance(event, MadePiece)}
        for place, finite in enumerate(draws.finite_B.tolist()):
            if not finite:
                self._cache.wipe(place)
                self._kept.clear()
        self._remove([i for i, row in enumerate(rows) if row.job.cancelled or row in ended])
        return events

    def forget(self, joining: Sequence[GenerateJob]) -> None:
        """Take out what was to join in a step that failed."""
        out = set(map(id, joining))
        self.rows = [row for row in self.rows if id(row.job) not in out]
        self._settings = None

    def drop_cancelled(self) -> None:
        """Free the rows that nobody waits for."""
        self._remove([i for i, row in enumerate(self.rows) if row.job.cancelled])

    def end(self) -> list[Row]:
        """Empty the batch."""
        rows, self.rows = self.rows, []
        self._settings = None
        return rows

    def reset(self) -> None:
        """Empty the batch and forget the cache, after a failure."""
        self.end()
        self._cache.clear()

    def _forward(self, joining: Sequence[GenerateJob], weight_version: str) -> Tensor:
        """Logits [B, V] of all rows, the new ones last."""
        steps = [(row.last, row.position) for row in self.rows]
        now, start = time.monotonic(), len(steps)
        # jobs of the same prompt stand together: the first of them computes it
        ordered = sorted((self._piece_of(job), job.prompt, i) for i, job in enumerate(joining))
        prompts: list[tuple[int, list[int]]] = []
        source: list[int] = []
        for (_, before), prompt, index in ordered:
            known = bool(prompts) and prompts[-1] == (before, prompt)
            if not known:
                prompts.append((before, prompt))
            cached = len(prompt) if known else self._kept.compute(prompt[:before])
            source.append(start + len(prompts) - 1)
            self.rows.append(self._row(joining[index], weight_version, cached, now))
        longest = max(
            *(position + 1 for _, position in steps), *(round_up(len(p)) for _, p in prompts), 1
        )
        self._cache.reserve(max(len(self.rows), LEAST_ROWS), longest)
        for slot, (before, prompt) in enumerate(prompts, start=start):
            if before:
                self._cache.write(slot, self._kept.layers(prompt[:before]))
        following = [(before, prompt[before:]) for before, prompt in prompts]
        logits_B_V = self._runner.step(self._cache, steps, following)
        if len(prompts) < len(joining):
            source_B = self._runner.tensor(source)
            self._cache.copy(source_B, start, max(len(prompt) for _, prompt in prompts))
            logits_B_V = logits_B_V[[*range(start), *source]]
        return logits_B_V

    def _piece_of(self, job: GenerateJob) -> tuple[tuple[int, int], int]:
        """The shape of what is left of a prompt, and how much of it is kept."""
        # of a prompt's last token, something is to be drawn: it is never kept
        shared = min(job.shared, len(job.prompt) - 1) if self._runner.runs else 0
        before = whole(shared)
        return shape(before, len(job.prompt) - before), before

    def _row(self, job: GenerateJob, weight_version: str, cached: int, now: float) -> Row:
        followed = job.piece is not None or job.sampling.stop
        return Row(
            job=job,
            weight_version=weight_version,
            cached_tokens=cached,
            started=now,
            text=RunningText(self._codec, job.sampling.stop) if followed else None,
        )

    def _draw(self, logits_B_V: Tensor) -> Draws:
        assert self._settings is not None
        counter_B = np.array([len(row.ids) for row in self.rows], dtype=np.uint64)
        uniform_B = torch.from_numpy(uniforms(self._settings.seed_B, counter_B)).to(
            self._runner.device
        )
        draws = draw(logits_B_V, self._settings, uniform_B)
        return self._exact.settle(
            draws, [(row.job.prompt + row.ids, row.job.sampling) for row in self.rows], uniform_B
        )

    def _advance(self, draws: Draws) -> Iterator[Event]:
        tokens = draws.token_B.tolist()
        logprobs = draws.logprob_B.tolist()
        finite = draws.finite_B.tolist()
        size = len(self.rows)
        for row, token, logprob, good in zip(self.rows, tokens, logprobs, finite, strict=True):
            if row.job.cancelled:
                continue
            if not good:
                yield (
                    row,
                    EngineFailed(
                        f"the model's logits are not finite at token {len(row.ids)} of the answer: "
                        "the weights are damaged or dtype is too narrow"
                    ),
                )
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.company += size
            yield from self._follow(row, token)

    def _follow(self, row: Row, token: int) -> Iterator[Event]:
        """Events of a row that has just got ``token``."""
        ended = token in self._eos_ids
        if row.text is not None and not ended:
            row.text.push(token)
        if ended or (row.text is not None and row.text.stopped):
            yield row, row.made(FinishReason.STOP, ended_by_token=ended)
        elif len(row.ids) >= row.job.sampling.max_tokens:
            yield row, row.made(FinishReason.LENGTH)
        elif row.job.piece is not None and row.text is not None:
            yield from self._piece(row, row.text)

    def _piece(self, row: Row, text: RunningText) -> Iterator[Event]:
        new = text.take(final=False)
        if not new:
            return
        first, row.given = row.given, len(row.ids)
        yield (
            row,
            MadePiece(
                text=new,
                ids=tuple(row.ids[first:]),
                logprobs=tuple(row.logprobs[first:]),
                weight_version=row.weight_version,
            ),
        )

    def _remove(self, places: Sequence[int]) -> None:
        for place in reversed(places):
            last = len(self.rows) - 1
            if place != last:
                self._cache.move(last, place, self.rows[last].position)
                self.rows[place] = self.rows[last]
            self.rows.pop()
        if places:
            self._settings = None
