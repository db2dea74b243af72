"""One forward for all that a step needs: running rows' next tokens and whole new prompts.

They stand one after the other in one run of tokens, [1, N], without padding: all that treats tokens
alike (projections, norms, the vocabulary) costs one call, however many prompts join. Only attention
tells them apart: rows look into their slots of the cache, prompts at themselves and at what their
slots hold already, those of equal shape together. A row's numbers depend on its own tokens and the
shape of its own part.

Shapes: N tokens of a run, B rows that decode, L keys, H key-value heads, G query heads a key-value
head, D size, R prompts of a group, T their tokens after rounding up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, count, groupby

import torch
from torch import Tensor
from torch.nn import functional

from solon.engine.hf.cache import LEAST_KEYS, round_up

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries, keys, values [B, heads, T, D] and a mask, or None for causal, to [B, T, H * G, D]."""

_here = threading.local()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Prompts of equal shape."""

    rows: int
    taken: Tensor
    """[R * T]: the place in the run of each; padding repeats a prompt's last token."""
    kept: Tensor
    """Which of these are no padding."""
    places: Tensor
    """Their places in the run."""
    slot: int
    """Of the first; the others' follow."""
    mask: Tensor | None
    """Additive [R, 1, T, L], where something stands before them in their slots."""


@dataclass(kw_only=True, slots=True)
class Run:
    """How attention is to read a run of tokens."""

    decoding: int
    """The first tokens: one of each row, in slots 0, 1, ..."""
    mask: Tensor | None
    """Additive [at least B, 1, 1, L], where rows decode."""
    groups: Sequence[_Group]
    stored: list[Tensor] = field(default_factory=list)
    """Keys and values of all slots, [S, H, C, D]: the cache's, layer by layer."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Attention over a run: query [1, H * G, N, D], the others [1, H, N, D].

        Returns:
            [1, N, H * G, D]; zeros for tokens that fill a run up.
        """
        heads, tokens, size = query.shape[1:]
        output_N_G_D = query.new_zeros(tokens, heads, size)
        if self.mask is not None:
            query_B_G_D = query[0, :, : self.decoding].transpose(0, 1)
            missing = self.mask.shape[0] - self.decoding
            query_B_G_1_D = functional.pad(query_B_G_D, (0, 0, 0, 0, 0, missing))[:, :, None]
            keys, values = self._seen(0, self.mask)
            found = attend(query_B_G_1_D, keys, values, self.mask)
            output_N_G_D[: self.decoding] = found[: self.decoding, 0]
        for group in self.groups:
            asked = self._of(group, query)
            if group.mask is None:
                keys, values = self._of(group, key), self._of(group, value)
            else:
                keys, values = self._seen(group.slot, group.mask)
            found = attend(asked, keys, values, group.mask).flatten(0, 1)
            output_N_G_D.index_copy_(0, group.places, found.index_select(0, group.kept))
        return output_N_G_D[None]

    def _seen(self, slot: int, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that a mask is for, from a slot on."""
        rows, length = mask.shape[0], mask.shape[-1]
        keys, values = (store[slot : slot + rows, :, :length] for store in self.stored)
        return keys, values

    def _of(self, group: _Group, states: Tensor) -> Tensor:
        """[R, heads, T, D] of a group's tokens."""
        taken_H_N_D = states[0].index_select(1, group.taken)
        taken_R_H_T_D: Tensor = taken_H_N_D.unflatten(1, (group.rows, -1)).transpose(0, 1)
        return taken_R_H_T_D


def shape(before: int, tokens: int) -> tuple[int, int]:
    """What decides the shape of a prompt's part of a run.

    Args:
        before: Tokens that its slot holds already.
        tokens: That are run.

    Returns:
        T, and L, or 0 where nothing stands before.
    """
    width = round_up(tokens)
    return width, max(LEAST_KEYS, round_up(before + width)) if before else 0


def groups(
    first: int,
    pieces: Sequence[tuple[int, int]],
    mask: Callable[[Tensor, int], Tensor],
    device: torch.device,
) -> list[_Group]:
    """The groups of prompts that follow the first ``first`` tokens of a run, in as many slots.

    Args:
        first: Tokens, and slots, that stand before them.
        pieces: Of each prompt, ``before`` and ``tokens`` as in ``shape``; those of equal shape
            stand together.
        mask: Of positions [R, T], and L: an additive mask [R, 1, T, L].
        device: Of the tensors.
    """
    starts = accumulate((tokens for _, tokens in pieces), initial=first)
    placed = zip(count(first), starts, pieces, strict=False)
    found = []
    for (width, length), members in groupby(placed, key=lambda one: shape(*one[2])):
        rows = list(members)
        step_T = torch.arange(width)
        start_R_1 = torch.tensor([start for _, start, _ in rows])[:, None]
        before_R_1 = torch.tensor([before for _, _, (before, _) in rows])[:, None]
        tokens_R_1 = torch.tensor([tokens for _, _, (_, tokens) in rows])[:, None]
        taken_R_T = start_R_1 + torch.minimum(step_T, tokens_R_1 - 1)
        kept = torch.nonzero((step_T < tokens_R_1).flatten()).flatten()
        group = _Group(
            rows=len(rows),
            taken=taken_R_T.flatten().to(device),
            kept=kept.to(device),
            places=taken_R_T.flatten()[kept].to(device),
            slot=rows[0][0],
            mask=mask((before_R_1 + step_T).to(device), length) if length else None,
        )
        found.append(group)
    return found


@contextmanager
def laid_out(run: Run) -> Iterator[None]:
    """Attention of this thread reads what it is given as this run, inside the block."""
    _here.run = run
    try:
        yield
    finally:
        _here.run = None


def current() -> Run | None:
    """The run that this thread's attention is to read, if any."""
    found: Run | None = getattr(_here, "run", None)
    return found
