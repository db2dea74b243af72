"""Episodes as tokens, and how they are put together for one pass of a network.

Shapes: B episodes, b of them in a micro-batch, R tokens of the longest response, T of the longest
sequence, N real response tokens of a micro-batch row by row. Sequences are prompt, response,
padding on the right: under causal attention no real token sees any padding, and every tensor [N]
has none.

Knows nothing of networks, rewards, files or conversations.
"""

# ruff: noqa: N802 - a tensor's name ends with its shape
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from solon.trainer.ranks import from_all

_PASS = {"cpu": 32}
"""Tokens that a network reads in the time that one pass more costs, whatever it reads; measured
with the sandbox's model."""
_PASS_ELSEWHERE = 256
"""On an accelerator, which fewer tokens leave idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Some episodes as a network reads them, and where their response tokens are predicted."""

    ids_bT: Tensor
    row_N: Tensor
    column_N: Tensor
    """The position *before* each response token."""
    target_N: Tensor
    mask_bR: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Sampled responses, the token that ends the turn included."""

    ids_BT: Tensor
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    """Tokens, each >= 1 when it was sampled; 0 takes an episode out of whatever is learned."""
    logprobs_BR: Tensor
    """Under the policy before it learns from them, at its temperature; 0 on padding."""
    ended_B: Tensor
    """False where the response was cut."""
    behaviour_BR: Tensor | None = None
    """Under what sampled them, where that is not the very policy that learns; 0 on padding."""

    @property
    def mask_BR(self) -> Tensor:
        """True on real response tokens."""
        return length_mask(self.response_lengths_B, self.logprobs_BR.shape[1])

    @property
    def lengths_B(self) -> Tensor:
        """Tokens of prompt and response together."""
        return self.prompt_lengths_B + self.response_lengths_B

    def responses(self) -> list[list[int]]:
        """The tokens of each response."""
        return [
            row[start:end].tolist()
            for row, start, end in zip(
                self.ids_BT,
                self.prompt_lengths_B.tolist(),
                self.lengths_B.tolist(),
                strict=True,
            )
        ]

    def batch(self, rows_b: Tensor) -> TokenBatch:
        """Those episodes, without the columns that are padding for all of them."""
        prompts_b, responses_b = self.prompt_lengths_B[rows_b], self.response_lengths_B[rows_b]
        ids_bT = self.ids_BT[rows_b, : int((prompts_b + responses_b).max())]
        mask_bR = length_mask(responses_b, self.logprobs_BR.shape[1])
        row_N, offset_N = mask_bR.nonzero(as_tuple=True)
        column_N = prompts_b[row_N] + offset_N - 1
        return TokenBatch(
            ids_bT=ids_bT,
            row_N=row_N,
            column_N=column_N,
            target_N=ids_bT[row_N, column_N + 1],
            mask_bR=mask_bR,
        )


def _mask(lengths_B: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(1)


class RowsOfTokens:
    """What is found of each response token, micro-batch by micro-batch, laid out by episode."""

    def __init__(self, samples: Samples) -> None:
        """Nothing is found yet."""
        self._shape = samples.logprobs_BR.shape
        self._device = samples.logprobs_BR.device
        self._values: Tensor | None = None

    def put(self, rows_b: Tensor, batch: TokenBatch, values_N: Tensor) -> None:
        """Of the tokens of some episodes; they may have further dimensions."""
        block_bR = values_N.new_zeros(*batch.mask_bR.shape, *values_N.shape[1:])
        block_bR[batch.mask_bR] = values_N
        if self._values is None:
            self._values = values_N.new_zeros(*self._shape, *values_N.shape[1:])
        self._values[rows_b] = block_bR

    @property
    def values(self) -> Tensor:
        """[B, R, ...]; 0 on padding."""
        if self._values is None:
            return torch.zeros(self._shape, device=self._device)
        return self._values


def laid_out(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    ended: Sequence[bool],
    *,
    pad_id: int,
    device: torch.device,
) -> Samples:
    """Episodes that come as lists: of each its prompt, its response and that one's log-probs."""

    def padded(rows: Sequence[Sequence[float]], kind: torch.dtype, filling: float) -> Tensor:
        tensors = [torch.tensor(row, dtype=kind) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=filling).to(device)

    ids = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    return Samples(
        ids_BT=padded(ids, torch.long, pad_id),
        prompt_lengths_B=torch.tensor([len(one) for one in prompts], device=device),
        response_lengths_B=torch.tensor([len(one) for one in responses], device=device),
        logprobs_BR=padded(logprobs, torch.float32, 0.0),
        ended_B=torch.tensor(ended, device=device),
    )


def micro_batches(lengths_B: Tensor, size: int, *, least: int = 1) -> list[Tensor]:
    """The rows in groups of at most ``size``, of like length, cut where that saves padding.

    A group is as wide as its longest row. The cuts are those at which padded tokens and passes
    together cost least (found by dynamic programming over the sorted rows).

    Args:
        lengths_B: Of each row, in tokens.
        size: Most rows in a group.
        least: As many groups are made at least, if there are as many rows.
    """
    order_B = lengths_B.argsort(stable=True)
    ends = _cuts(lengths_B[order_B].cpu().numpy(), size, _PASS.get(lengths_B.device.type))
    sizes = np.diff(ends, prepend=0).tolist()
    while len(sizes) < min(least, len(order_B)):
        largest = sizes.index(max(sizes))
        sizes[largest : largest + 1] = [-(-sizes[largest] // 2), sizes[largest] // 2]
    return list(order_B.split(sizes))


def micro_batches_of_all(lengths_B: Tensor, size: int) -> list[Tensor]:
    """As ``micro_batches``, and as many as every other process makes of its rows.

    A network that is divided among processes is called by all of them, as often by each. Called by
    all of them, with as many rows each.
    """
    groups = micro_batches(lengths_B, size)
    most = max(from_all(len(groups)))
    return groups if len(groups) == most else micro_batches(lengths_B, size, least=most)


def _cuts(lengths_B: np.ndarray, size: int, a_pass: int | None) -> list[int]:
    """Where the groups of sorted rows end."""
    extra = _PASS_ELSEWHERE if a_pass is None else a_pass
    cost = np.zeros(len(lengths_B) + 1)
    start = np.zeros(len(lengths_B) + 1, dtype=int)
    for end, longest in enumerate(lengths_B, start=1):
        first = max(0, end - size)
        costs = cost[first:end] + (end - np.arange(first, end)) * longest + extra
        best = int(costs.argmin())
        cost[end], start[end] = costs[best], first + best
    ends = [len(lengths_B)]
    while start[ends[-1]] > 0:
        ends.append(int(start[ends[-1]]))
    return ends[::-1]


def length_mask(lengths_B: Tensor, width: int) -> Tensor:
    """[B, width]: true in the first places of each row."""
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(1)
