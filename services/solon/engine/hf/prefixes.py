"""What several prompts share, so that it is computed once: a radix tree of token ids.

Knows nothing of models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_LEAST_SAVED = 16
"""Tokens that a shared part must save to be worth a step of its own."""


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


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes that together spell the sequences."""

    nodes: tuple[Node, ...]
    leaf: tuple[int | None, ...]
    """For each sequence, the node that ends it; ``None`` for an empty one."""

    @property
    def tokens(self) -> int:
        """Tokens to compute."""
        return sum(len(node.tokens) for node in self.nodes)


def share(sequences: Sequence[Sequence[int]]) -> Tree:
    """Build the tree of token sequences. Equal sequences share all their nodes."""
    builder = _Builder(sequences)
    members = [i for i, ids in enumerate(sequences) if ids]
    if members:
        builder.grow(members, parent=None, start=0, known=0)
    return Tree(tuple(builder.nodes), tuple(builder.leaf))


class _Builder:
    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = sequences
        self.nodes: list[Node] = []
        self.leaf: list[int | None] = [None] * len(sequences)

    def grow(self, members: list[int], *, parent: int | None, start: int, known: int) -> None:
        """Add nodes for ``members``, which agree up to ``known``; the next begins at ``start``."""
        groups: list[tuple[list[int], int | None, int, int]] = [(members, parent, start, known)]
        while groups:
            members, parent, start, known = groups.pop()
            common = self._common(members, known)
            ending = [i for i in members if len(self._sequences[i]) == common]
            saved = (common - start) * (len(members) - 1)
            if ending or saved >= _LEAST_SAVED:
                parent, start = self._add(members[0], parent, start, common), common
            for i in ending:
                self.leaf[i] = parent
            by_next: dict[int, list[int]] = defaultdict(list)
            for i in members:
                if len(self._sequences[i]) > common:
                    by_next[self._sequences[i][common]].append(i)
            groups += [(group, parent, start, common) for group in by_next.values()]

    def _add(self, member: int, parent: int | None, start: int, end: int) -> int:
        depth = 0 if parent is None else self.nodes[parent].depth + 1
        tokens = tuple(self._sequences[member][start:end])
        self.nodes.append(Node(parent=parent, depth=depth, start=start, tokens=tokens))
        return len(self.nodes) - 1

    def _common(self, members: Sequence[int], known: int) -> int:
        common = min(len(self._sequences[i]) for i in members)
        for a, b in pairwise(members):
            first, second = self._sequences[a], self._sequences[b]
            at = known
            while at < common and first[at] == second[at]:
                at += 1
            common = at
        return common


def tails(last: int, continuations: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """The token rows to run after a prompt so that every continuation's tokens can be scored.

    A continuation of m tokens needs the model's output after the prompt's last token and after
    its own first m - 1; one row serves all continuations whose needs it begins with.

    Args:
        last: The prompt's last token.
        continuations: Token ids, at least one each.

    Returns:
        The rows, and for each continuation the index of its row.
    """
    needs = [[last, *ids[:-1]] for ids in continuations]
    rows: list[list[int]] = []
    for need in sorted(needs, key=len, reverse=True):
        if not any(row[: len(need)] == need for row in rows):
            rows.append(need)
    return rows, [
        next(i for i, row in enumerate(rows) if row[: len(need)] == need) for need in needs
    ]
