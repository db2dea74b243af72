"""Packs documents into rows of a batch: no token is padding for long, no prefix is read twice.

Within a row a document's branches see its prefix and themselves, nothing else. What the model
computes for a branch is what it computes for prefix and branch alone. Knows nothing of text.

Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solon.sandbox.tokens import TokenizedDocument

_NO_TARGET = -100
_ONE_TOKEN_AND_END = 2
_UNSEEN = torch.finfo(torch.float32).min


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows of packed documents."""

    tokens_R_T: Tensor
    positions_R_T: Tensor
    mask_R_1_T_T: Tensor
    """Added to the attention scores: 0 where a token sees another, else very negative."""
    targets_R_T: Tensor
    """The token that comes next, or -100 where there is none."""
    weights_R_T: Tensor
    """How much a target counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weighing:
    unlearnt: float
    answer: float


@dataclass(kw_only=True, slots=True)
class _Row:
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    """0 in a prefix."""
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def batches(
    documents: Iterator[TokenizedDocument],
    *,
    rows: int,
    length: int,
    unlearnt_weight: float,
    answer_weight: float,
) -> Iterator[Batch]:
    """Fill row after row, first fit.

    Args:
        documents: Without end; one that is longer than a row is left out.
        rows: Rows of a batch.
        length: Tokens of a row.
        unlearnt_weight: Weight of the tokens that are not to be learnt.
        answer_weight: Weight of each learnt token of a branch whose answer is one token.
    """
    weighing = _Weighing(unlearnt=unlearnt_weight, answer=answer_weight)
    filled = [_Row() for _ in range(rows)]
    for number, document in enumerate(documents, start=1):
        if document.length > length:
            continue
        row = _room(filled, document.length, length)
        if row is None:
            yield _batch(filled, length)
            filled = [_Row() for _ in range(rows)]
            row = filled[0]
        _add(row, document, number, weighing)


def _room(rows: list[_Row], needed: int, length: int) -> _Row | None:
    for row in rows:
        if len(row.tokens) + needed <= length:
            return row
    return None


def _add(row: _Row, document: TokenizedDocument, number: int, weighing: _Weighing) -> None:
    unlearnt = tuple([False] * len(document.prefix))
    _add_run(row, document.prefix, unlearnt, (number, 0, 0), weighing)
    for branch, (tokens, learnt) in enumerate(
        zip(document.branches, document.learnt, strict=True), start=1
    ):
        _add_run(row, tokens, learnt, (number, branch, len(document.prefix)), weighing)


def _add_run(
    row: _Row,
    tokens: tuple[int, ...],
    learnt: tuple[bool, ...],
    place: tuple[int, int, int],
    weighing: _Weighing,
) -> None:
    document, branch, first_position = place
    size = len(tokens)
    weight = weighing.answer if sum(learnt) == _ONE_TOKEN_AND_END else 1.0
    row.tokens += tokens
    row.positions += range(first_position, first_position + size)
    row.documents += [document] * size
    row.branches += [branch] * size
    row.targets += [*tokens[1:], _NO_TARGET][:size]
    row.weights += [*(weight if said else weighing.unlearnt for said in learnt[1:]), 0.0][:size]


def _batch(rows: list[_Row], length: int) -> Batch:
    def tensor(name: str, fill: int, dtype: torch.dtype = torch.long) -> Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([v + [fill] * (length - len(v)) for v in values], dtype=dtype)

    documents, branches = tensor("documents", 0), tensor("branches", 0)
    same = documents[:, :, None] == documents[:, None, :]
    open_to = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    seen = same & open_to & earlier
    return Batch(
        tokens_R_T=tensor("tokens", 0),
        positions_R_T=tensor("positions", 0),
        mask_R_1_T_T=torch.zeros(seen.shape).masked_fill(~seen, _UNSEEN)[:, None],
        targets_R_T=tensor("targets", _NO_TARGET),
        weights_R_T=tensor("weights", 0, torch.float32),
    )
