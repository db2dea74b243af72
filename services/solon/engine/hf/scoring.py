"""Scores continuations of many prompts: shared prefixes once, then all that follows in batches.

The prompts of one call are laid out as a tree of shared parts (``prefixes``), whose levels are
forwards over the slot cache; a last forward over each prompt's last token and its continuations
gives all log-probabilities. Calls are computed together but share nothing, and only parts of equal
shape run together, so that a call's numbers do not depend on which others are in the batch. Knows
nothing of threads.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from solon.engine.hf.cache import LEAST_KEYS, round_up
from solon.engine.hf.jobs import ScoreJob
from solon.engine.hf.prefixes import Node, Tree, share, tails
from solon.engine.hf.runner import LEAST_ROWS, Runner

T = TypeVar("T")

_FORWARD_TOKENS = 4096
"""Tokens of one forward, at most, unless one row is longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some prompts of one call, computed in one go."""

    job: ScoreJob
    first: int
    last: int
    """Prompts ``first`` .. ``last - 1`` of the call."""
    tree: Tree
    """Of the prompts without their last tokens."""
    slots: int
    """Places in the cache that it takes, at most."""
    longest: int
    """Keys of its longest row."""


@dataclass(frozen=True, slots=True)
class _Tail:
    part: int
    prompt: int
    leaf: int | None
    offset: int
    tokens: list[int]
    wanted: list[tuple[int, tuple[int, ...]]]
    """Which continuations are read from this row, and their ids."""


PartLogprobs = list[list[float]]
"""[prompt][continuation]; NaN where the logits were not finite."""


def split(job: ScoreJob, budget: int) -> list[Part]:
    """Cut a call into parts that take at most ``budget`` keys of cache each, or one prompt.

    Depends on the call alone.
    """
    parts: list[Part] = []
    first = 0
    for last in range(1, len(job.prompts) + 1):
        end = last == len(job.prompts)
        if end or _keys(job, first, last + 1) > budget:
            parts.append(_part(job, first, last))
            first = last
    return parts


class Scorer:
    """Runs parts of calls through the model."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._cache = runner.new_cache()

    def score(self, parts: Sequence[Part]) -> list[PartLogprobs]:
        """Log-probabilities of each part's continuations."""
        slots = sum(part.slots for part in parts) + LEAST_ROWS
        self._cache.reserve(slots, max(part.longest for part in parts))
        slot_of: dict[tuple[int, int], int] = {}
        self._run_levels(parts, slot_of)
        results: list[PartLogprobs] = [
            [[math.nan] * len(texts) for texts in part.job.continuations[part.first : part.last]]
            for part in parts
        ]
        self._run_tails(parts, slot_of, results)
        if any(math.isnan(v) for part in results for values in part for v in values):
            self._cache.clear()
        return results

    def reset(self) -> None:
        """Forget the cache, after a failure."""
        self._cache.clear()

    def _run_levels(self, parts: Sequence[Part], slot_of: dict[tuple[int, int], int]) -> None:
        levels: dict[int, dict[tuple[int, int], list[tuple[int, int]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for p, part in enumerate(parts):
            for n, node in enumerate(part.tree.nodes):
                levels[node.depth][_shape(node.start, len(node.tokens))].append((p, n))
        for depth in sorted(levels):
            for (width, _), places in levels[depth].items():
                for group in _chunks(places, width):
                    self._run_nodes(parts, group, slot_of)

    def _run_nodes(
        self,
        parts: Sequence[Part],
        group: Sequence[tuple[int, int]],
        slot_of: dict[tuple[int, int], int],
    ) -> None:
        nodes: list[Node] = [parts[p].tree.nodes[n] for p, n in group]
        start = len(slot_of)
        slot_of.update({place: start + i for i, place in enumerate(group)})
        tokens = [node.tokens for node in nodes]
        if nodes[0].parent is None:
            self._runner.prefill(self._cache, start, tokens)
            return
        parents = [slot_of[p, node.parent] for (p, _), node in zip(group, nodes, strict=True)]  # type: ignore[index]
        offsets = [node.start for node in nodes]
        self._cache.copy(self._runner.tensor(parents), start, max(offsets))
        self._runner.extend(self._cache, start, tokens, offsets, logits=False)

    def _run_tails(
        self,
        parts: Sequence[Part],
        slot_of: dict[tuple[int, int], int],
        results: list[PartLogprobs],
    ) -> None:
        groups: dict[tuple[int, int], list[_Tail]] = defaultdict(list)
        for tail in _tails(parts):
            groups[_shape(tail.offset, len(tail.tokens))].append(tail)
        start = len(slot_of)
        for (width, _), group in groups.items():
            for chunk in _chunks(group, width):
                # tails are read at once and kept by nobody, so that all groups use the same slots
                self._run_tail_rows(chunk, start, slot_of, results)

    def _run_tail_rows(
        self,
        rows: Sequence[_Tail],
        start: int,
        slot_of: dict[tuple[int, int], int],
        results: list[PartLogprobs],
    ) -> None:
        parents = [0 if t.leaf is None else slot_of[t.part, t.leaf] for t in rows]
        longest = max(t.offset for t in rows)
        if longest:
            self._cache.copy(self._runner.tensor(parents), start, longest)
        logits_B_T_V = self._runner.extend(
            self._cache, start, [t.tokens for t in rows], [t.offset for t in rows]
        )
        assert logits_B_T_V is not None
        _read(logits_B_T_V, rows, results)


def _read(logits_B_T_V: Tensor, rows: Sequence[_Tail], results: list[PartLogprobs]) -> None:
    """Sum each continuation's token log-probabilities into its place."""
    logsumexp_B_T = torch.logsumexp(logits_B_T_V, dim=-1)
    at = [
        (row, step, token)
        for row, tail in enumerate(rows)
        for _, ids in tail.wanted
        for step, token in enumerate(ids)
    ]
    row_N, step_N, token_N = torch.tensor(at, device=logits_B_T_V.device).unbind(-1)
    normal_N = logsumexp_B_T[row_N, step_N]
    value_N = logits_B_T_V[row_N, step_N, token_N] - normal_N
    value_N = value_N.masked_fill(~torch.isfinite(normal_N), math.nan)
    values = iter(value_N.tolist())
    for tail in rows:
        for continuation, ids in tail.wanted:
            total = math.fsum(next(values) for _ in ids)
            results[tail.part][tail.prompt][continuation] = total


def _tails(parts: Sequence[Part]) -> Iterator[_Tail]:
    for p, part in enumerate(parts):
        for i in range(part.last - part.first):
            prompt = part.job.prompts[part.first + i]
            continuations = part.job.continuations[part.first + i]
            rows, row_of = tails(prompt[-1], continuations)
            for r, tokens in enumerate(rows):
                wanted = [(c, ids) for c, ids in enumerate(continuations) if row_of[c] == r]
                yield _Tail(p, i, part.tree.leaf[i], len(prompt) - 1, tokens, wanted)


def _part(job: ScoreJob, first: int, last: int) -> Part:
    tree = share([prompt[:-1] for prompt in job.prompts[first:last]])
    rows = range(first, last)
    return Part(
        job=job,
        first=first,
        last=last,
        tree=tree,
        slots=len(tree.nodes) + sum(len(job.continuations[i]) for i in rows),
        longest=_longest(job, first, last),
    )


def _keys(job: ScoreJob, first: int, last: int) -> int:
    """Most keys of cache that these prompts take: a node or two and its tails for each."""
    rows = sum(2 + len(job.continuations[i]) for i in range(first, last))
    return rows * _longest(job, first, last)


def _longest(job: ScoreJob, first: int, last: int) -> int:
    # padding may add a grain to a prompt's own part and one to what follows
    return round_up(
        max(len(job.prompts[i]) + max(map(len, job.continuations[i])) for i in range(first, last))
        + LEAST_ROWS
    )


def _shape(start: int, tokens: int) -> tuple[int, int]:
    """What decides the shape of a row's forward: its width and the keys that it sees."""
    width = tokens if tokens < LEAST_ROWS else round_up(tokens)
    return width, max(LEAST_KEYS, round_up(start + width))


def _chunks(items: Sequence[T], width: int) -> Iterator[Sequence[T]]:
    size = max(1, _FORWARD_TOKENS // max(1, width))
    for first in range(0, len(items), size):
        yield items[first : first + size]
