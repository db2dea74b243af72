"""Scores continuations of many prompts: shared prefixes once, then all that follows in batches.

The prompts of one call are laid out as a tree of shared parts (``prefixes``), whose levels are
forwards over the slot cache. What is left of them and their continuations are packed in rows that
run in the slots of the parts that they follow: nothing is copied, and each gives the logits of a
few places only. Calls are computed together but share nothing, and only rows of equal shape run
together, so that a call's numbers do not depend on which others are in the batch. Knows nothing of
threads.

Shapes: B rows, T tokens, W places that are read, N readings, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from solon.engine.hf.cache import GRAIN, LEAST_KEYS, round_up
from solon.engine.hf.jobs import ScoreJob
from solon.engine.hf.kept import Kept, whole
from solon.engine.hf.prefixes import Node, Pack, Tree, share
from solon.engine.hf.runner import LEAST_ROWS, Runner, places

T = TypeVar("T")

_FORWARD_TOKENS = 4096
"""Tokens of one forward, at most, unless one row is longer."""
_PACK_TOKENS = 256
"""Of one pack: its tokens also pay for those of other branches, which they do not see."""
_ALONE = 16
"""Packs that follow nothing run so many together, in slots that they leave to the next ones."""

PartLogprobs = list[list[float]]
"""[prompt][continuation]; NaN where the logits were not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some prompts of one call, computed in one go."""

    job: ScoreJob
    first: int
    last: int
    """Prompts ``first`` .. ``last - 1`` of the call."""
    tree: Tree
    kept: int
    """Tokens of its first node, if that is one to keep; 0 else."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens to keep."""
        return self.tree.nodes[0].tokens if self.kept else ()

    @property
    def slots(self) -> int:
        """Places in the cache that it takes, at most."""
        return len(self.tree.nodes) + min(_ALONE, sum(p.parent is None for p in self.tree.packs))

    @property
    def longest(self) -> int:
        """Keys of its longest row."""
        # padding may add a grain to a node that is shorter than one
        nodes = max((round_up(node.end) + GRAIN for node in self.tree.nodes), default=0)
        packs = (round_up(pack.start + round_up(len(pack.tokens))) for pack in self.tree.packs)
        return max(nodes, *packs)


def split(job: ScoreJob, budget: int) -> list[Part]:
    """Cut a call into parts that take at most ``budget`` keys of cache each, or one prompt.

    Depends on the call alone.
    """
    parts: list[Part] = []
    spans = [(0, len(job.prompts))]
    while spans:
        first, last = spans.pop()
        part = _part(job, first, last)
        if last - first > 1 and part.slots * part.longest > budget:
            middle = (first + last) // 2
            spans += [(middle, last), (first, middle)]
        else:
            parts.append(part)
    return parts


class Scorer:
    """Runs parts of calls through the model."""

    def __init__(self, runner: Runner, kept: Kept) -> None:
        self._runner = runner
        self._kept = kept
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
        self._run_packs(parts, slot_of, results)
        if any(math.isnan(v) for part in results for values in part for v in values):
            self._cache.clear()
            self._kept.clear()
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
                if part.kept and n == 0:
                    slot_of[p, n] = len(slot_of)
                    self._cache.write(slot_of[p, n], self._kept.layers(node.tokens))
                    continue
                levels[node.depth][_shape(node.start, len(node.tokens))].append((p, n))
        for depth in sorted(levels):
            for (width, _), nodes in levels[depth].items():
                for group in _chunks(nodes, width):
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

    def _run_packs(
        self,
        parts: Sequence[Part],
        slot_of: dict[tuple[int, int], int],
        results: list[PartLogprobs],
    ) -> None:
        alone: list[tuple[int, Pack]] = []
        turns: dict[int, list[tuple[int, int, Pack]]] = defaultdict(list)
        for p, part in enumerate(parts):
            seen: Counter[int] = Counter()
            for pack in part.tree.packs:
                if pack.parent is None:
                    alone.append((p, pack))
                else:
                    # a slot's packs run one after the other, each over the one before it
                    turns[seen[pack.parent]].append((slot_of[p, pack.parent], p, pack))
                    seen[pack.parent] += 1
        for turn in sorted(turns):
            for start, rows in _adjacent(turns[turn]):
                self._run_rows(start, rows, results)
        by_shape: dict[tuple[int, int], list[tuple[int, Pack]]] = defaultdict(list)
        for p, pack in alone:
            by_shape[_pack_shape(pack)].append((p, pack))
        for group in by_shape.values():
            for first in range(0, len(group), _ALONE):
                self._run_rows(len(slot_of), group[first : first + _ALONE], results)

    def _run_rows(
        self, start: int, rows: Sequence[tuple[int, Pack]], results: list[PartLogprobs]
    ) -> None:
        packs = [pack for _, pack in rows]
        _read(self._runner.branch(self._cache, start, packs), rows, results)


def _adjacent(
    rows: Sequence[tuple[int, int, Pack]],
) -> Iterator[tuple[int, list[tuple[int, Pack]]]]:
    """Runs of rows in slots next to each other and of equal shape, with their first slots."""
    ordered = sorted(rows, key=lambda row: row[0])
    run: list[tuple[int, Pack]] = []
    first, shape = 0, (0, 0)
    for slot, p, pack in ordered:
        ours = _pack_shape(pack)
        full = (len(run) + 1) * ours[0] > _FORWARD_TOKENS
        if run and (slot != first + len(run) or ours != shape or full):
            yield first, run
            run = []
        if not run:
            first, shape = slot, ours
        run.append((p, pack))
    if run:
        yield first, run


def _read(
    logits_B_W_V: Tensor, rows: Sequence[tuple[int, Pack]], results: list[PartLogprobs]
) -> None:
    """Sum each continuation's token log-probabilities into its place."""
    column = {place: w for w, place in enumerate(places([pack for _, pack in rows]))}
    logsumexp_B_W = torch.logsumexp(logits_B_W_V, dim=-1)
    at = [
        (b, column[place], token)
        for b, (_, pack) in enumerate(rows)
        for read in pack.reads
        for place, token in zip(read.places, read.tokens, strict=True)
    ]
    row_N, place_N, token_N = torch.tensor(at, device=logits_B_W_V.device).unbind(-1)
    normal_N = logsumexp_B_W[row_N, place_N]
    value_N = logits_B_W_V[row_N, place_N, token_N] - normal_N
    value_N = value_N.masked_fill(~torch.isfinite(normal_N), math.nan)
    values = iter(value_N.tolist())
    for p, pack in rows:
        for read in pack.reads:
            total = math.fsum(next(values) for _ in read.tokens)
            results[p][read.prompt][read.continuation] = total


def _part(job: ScoreJob, first: int, last: int) -> Part:
    prompts = job.prompts[first:last]
    kept = whole(min(job.shared, min(map(len, prompts)) - 1))
    tree = share(prompts, job.continuations[first:last], pack_tokens=_PACK_TOKENS, shared=kept)
    return Part(job=job, first=first, last=last, tree=tree, kept=kept)


def _shape(start: int, tokens: int) -> tuple[int, int]:
    """What decides the shape of a row's forward: its width and the keys that it sees."""
    width = tokens if tokens < LEAST_ROWS else round_up(tokens)
    return width, max(LEAST_KEYS, round_up(start + width))


def _pack_shape(pack: Pack) -> tuple[int, int]:
    return _shape(pack.start, round_up(len(pack.tokens)))


def _chunks(items: Sequence[T], width: int) -> Iterator[Sequence[T]]:
    size = max(1, _FORWARD_TOKENS // max(1, width))
    for first in range(0, len(items), size):
        yield items[first : first + size]
