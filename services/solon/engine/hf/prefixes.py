"""What several prompts share, so that it is computed once: a radix tree of token ids.

Parts that many prompts share are nodes, each a forward of its own. What is left of the prompts
after them, with the continuations, is packed: many short branches in one row, in which each token
sees its own branch only (tree attention, as in Miao et al. 2023, SpecInfer, section 4.2). Knows
nothing of models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_LEAST_SAVED = 64
"""Tokens that a shared part must save to be worth a forward; packs share the shorter ones."""
_LONG = 256
"""What is left of a prompt is a node of its own if it has more tokens: packs are not causal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A run of tokens that follows its parent's."""

    parent: int | None
    """Index of the node before it; parents come before their children."""
    depth: int
    start: int
    """Position of its first token."""
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + len(self.tokens)


class Read(NamedTuple):
    """Where in a pack the probabilities of a continuation's tokens are."""

    prompt: int
    continuation: int
    places: tuple[int, ...]
    """Of the token before each of its own."""
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Branches that follow one node, or nothing, in one row."""

    parent: int | None
    start: int
    """Tokens before it."""
    tokens: tuple[int, ...]
    before: tuple[int, ...]
    """Place of the token before each; -1 where that is the parent's last, or there is none."""
    reads: tuple[Read, ...]
    prompt_tokens: int
    """Tokens that are prompts', not continuations'."""

    def positions(self) -> list[int]:
        """Of each token in its own sequence."""
        found: list[int] = []
        for before in self.before:
            found.append(self.start if before < 0 else found[before] + 1)
        return found

    def visible(self) -> npt.NDArray[np.bool_]:
        """[T, T]: whether the token of the row sees that of the column."""
        seen = np.eye(len(self.before), dtype=np.bool_)
        for place, before in enumerate(self.before):
            if before >= 0:
                seen[place] |= seen[before]
        return seen


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes and packs that together spell the prompts and their continuations."""

    nodes: tuple[Node, ...]
    packs: tuple[Pack, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts to compute."""
        nodes = sum(len(node.tokens) for node in self.nodes)
        return nodes + sum(pack.prompt_tokens for pack in self.packs)


def share(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[tuple[int, ...]]],
    *,
    pack_tokens: int,
    shared: int = 0,
) -> Tree:
    """Lay out prompts with their continuations.

    Args:
        prompts: Token ids, at least one each.
        continuations: Of each prompt, token ids, at least one each.
        pack_tokens: A pack has no more, unless one prompt's branch has.
        shared: The first node has so many tokens, which all prompts begin with; 0: as many as
            they share. Fewer than any of them has.
    """
    builder = _Builder([prompt[:-1] for prompt in prompts])
    builder.grow(shared)
    following: dict[int | None, list[int]] = defaultdict(list)
    for index, node in enumerate(builder.leaf):
        following[node].append(index)
    packs: list[Pack] = []
    for parent in sorted(following, key=lambda node: -1 if node is None else node):
        start = 0 if parent is None else builder.nodes[parent].end
        packer = _Packer(parent, start, pack_tokens)
        for index in following[parent]:
            packer.add(index, prompts[index][start:], continuations[index])
        packs += packer.packs()
    return Tree(tuple(builder.nodes), tuple(packs))


class _Builder:
    """Finds the nodes of sequences, and for each sequence the node that it goes on from."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = sequences
        self._lengths = list(map(len, sequences))
        # one row a sequence, filled up with what is no token, so that rows are compared at once
        self._ids_P_T = np.full((len(sequences), max(self._lengths)), -1, dtype=np.int64)
        for row, ids in enumerate(sequences):
            self._ids_P_T[row, : len(ids)] = ids
        self.nodes: list[Node] = []
        self.leaf: list[int | None] = [None] * len(sequences)

    def grow(self, shared: int) -> None:
        """Find them all; the first of ``shared`` tokens, if not 0."""
        first = self._add(0, None, 0, shared) if shared else None
        groups = [(list(range(len(self._lengths))), first, shared, shared)]
        while groups:
            members, parent, start, known = groups.pop()
            common = self._common(members, known)
            if (common - start) * (len(members) - 1) >= _LEAST_SAVED:
                parent, start = self._add(members[0], parent, start, common), common
            by_next: dict[int, list[int]] = defaultdict(list)
            for i in members:
                if self._lengths[i] == common or len(members) == 1:
                    self._end(i, parent, start)
                else:
                    by_next[self._sequences[i][common]].append(i)
            groups += [(group, parent, start, common) for group in by_next.values()]

    def _end(self, member: int, parent: int | None, start: int) -> None:
        end = self._lengths[member]
        long = end - start > _LONG
        self.leaf[member] = self._add(member, parent, start, end) if long else parent

    def _add(self, member: int, parent: int | None, start: int, end: int) -> int:
        depth = 0 if parent is None else self.nodes[parent].depth + 1
        tokens = tuple(self._sequences[member][start:end])
        self.nodes.append(Node(parent=parent, depth=depth, start=start, tokens=tokens))
        return len(self.nodes) - 1

    def _common(self, members: Sequence[int], known: int) -> int:
        """Tokens in which all agree, of which ``known`` are known to be."""
        end = min(self._lengths[i] for i in members)
        if len(members) == 1:
            return end
        rows_M_T = self._ids_P_T[members, known:end]
        differs = (rows_M_T != rows_M_T[0]).any(axis=0)
        return known + int(differs.argmax()) if differs.any() else end


class _Packer:
    """Fills packs that follow one node, in the order of the prompts."""

    def __init__(self, parent: int | None, start: int, most: int) -> None:
        self._parent, self._start, self._most = parent, start, most
        self._packs: list[Pack] = []
        self._tokens: list[int] = []
        self._before: list[int] = []
        self._reads: list[Read] = []
        self._places: dict[tuple[int, int], int] = {}
        self._of_prompt: set[int] = set()

    def add(
        self, prompt: int, rest: Sequence[int], continuations: Sequence[tuple[int, ...]]
    ) -> None:
        """Add a prompt's branch: what is left of it, then its continuations but for their ends."""
        held = len(self._tokens)
        self._insert(prompt, rest, continuations)
        if held and len(self._tokens) > self._most:
            self._forget(held, prompt)
            self._close()
            self._insert(prompt, rest, continuations)

    def packs(self) -> list[Pack]:
        """All of them."""
        if self._tokens:
            self._close()
        return self._packs

    def _insert(
        self, prompt: int, rest: Sequence[int], continuations: Sequence[tuple[int, ...]]
    ) -> None:
        place = -1
        for token in rest:
            place = self._step(place, token)
            self._of_prompt.add(place)
        for index, ids in enumerate(continuations):
            places = [place]
            for token in ids[:-1]:
                places.append(self._step(places[-1], token))
            self._reads.append(Read(prompt, index, tuple(places), ids))

    def _step(self, before: int, token: int) -> int:
        key = (before, token)
        if key not in self._places:
            self._places[key] = len(self._tokens)
            self._tokens.append(token)
            self._before.append(before)
        return self._places[key]

    def _forget(self, held: int, prompt: int) -> None:
        """Take out the branch that was added last."""
        del self._tokens[held:], self._before[held:]
        self._of_prompt = {place for place in self._of_prompt if place < held}
        self._reads = [read for read in self._reads if read.prompt != prompt]

    def _close(self) -> None:
        pack = Pack(
            parent=self._parent,
            start=self._start,
            tokens=tuple(self._tokens),
            before=tuple(self._before),
            reads=tuple(self._reads),
            prompt_tokens=len(self._of_prompt),
        )
        self._packs.append(pack)
        self._tokens, self._before, self._reads = [], [], []
        self._places, self._of_prompt = {}, set()
