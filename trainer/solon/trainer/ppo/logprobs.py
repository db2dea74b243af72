"""Log-probabilities of given tokens, from hidden states: logits are made block by block.

A block of logits is the largest thing in memory, and is there once; nothing as large as
[N, vocabulary] exists. As in Liger's fused cross-entropy (Hsu et al. 2024, 2410.10989, section 3.2)
the head is part of the function, so that the backward pass needs no logits of the forward pass: it
makes each block again.

Shapes: N tokens, n of them in a block, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def token_logprobs(
    hidden_NH: Tensor, head: nn.Linear, target_N: Tensor, *, temperature: float, at_once: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy of the distribution it is from: [N], in nats.

    In float32, from logits in the format that autocast asks for. The entropy has no gradient.

    Args:
        hidden_NH: What the head reads.
        head: Its logits are divided by the temperature.
        target_N: Tokens.
        temperature: Above 0.
        at_once: Elements of a block of logits.
    """
    weight_VH: Tensor = head.weight
    bias_V: Tensor | None = head.bias
    device = hidden_NH.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    rows = max(1, at_once // len(weight_VH))
    found: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, bias_V, target_N, temperature, rows
    )
    return found


class _TokenLogprobs(torch.autograd.Function):
    """The gradient of log p(target) with respect to the logits is onehot(target) - p."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        temperature: float,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = torch.empty(len(hidden_NH), device=hidden_NH.device)
        entropy_N = torch.empty_like(logprobs_N)
        with _as_given(hidden_NH):
            for first in range(0, len(hidden_NH), rows):
                block = slice(first, first + rows)
                logits_nV = _logits(hidden_NH[block], weight_VH, bias_V, temperature)
                at_target_n = logits_nV.gather(1, target_N[block, None]).squeeze(1)
                mass_nV = logits_nV.exp()
                total_n = mass_nV.sum(dim=1)
                log_total_n = total_n.log()
                logprobs_N[block] = at_target_n - log_total_n
                mean_n = mass_nV.mul_(logits_nV).sum(dim=1) / total_n
                entropy_N[block] = log_total_n - mean_n
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N = ctx.saved_tensors
        needed_hidden, needed_weight, needed_bias, *_ = ctx.needs_input_grad
        d_hidden_NH = torch.empty_like(hidden_NH) if needed_hidden else None
        # blocks are summed up in float32 whatever they are computed in
        d_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needed_weight else None
        d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if needed_bias else None
        with _as_given(hidden_NH):
            for first in range(0, len(hidden_NH), ctx.rows):
                block = slice(first, first + ctx.rows)
                logits_nV = _logits(hidden_NH[block], weight_VH, bias_V, ctx.temperature)
                scale_n1 = gradient_N[block, None] / ctx.temperature
                mass_nV = logits_nV.exp_()
                d_logits_nV = mass_nV.mul_(-scale_n1 / mass_nV.sum(dim=1, keepdim=True))
                d_logits_nV.scatter_add_(1, target_N[block, None], scale_n1)
                d_logits_nV = d_logits_nV.to(hidden_NH.dtype)
                if d_hidden_NH is not None:
                    d_hidden_NH[block] = d_logits_nV @ weight_VH
                if d_weight_VH is not None:
                    _add_product(d_weight_VH, d_logits_nV.t(), hidden_NH[block])
                if d_bias_V is not None:
                    d_bias_V += d_logits_nV.sum(dim=0)
        return (
            d_hidden_NH,
            d_weight_VH.to(weight_VH.dtype) if d_weight_VH is not None else None,
            d_bias_V.to(bias_V.dtype) if d_bias_V is not None else None,
            None,
            None,
            None,
        )


def _logits(
    hidden_nH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float
) -> Tensor:
    """In float32, each row less its greatest, so that none of their exponentials overflows."""
    logits_nV = linear(hidden_nH, weight_VH, bias_V).float()
    if temperature != 1:
        logits_nV.div_(temperature)
    return logits_nV.sub_(logits_nV.amax(dim=1, keepdim=True))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _as_given(tensor: Tensor) -> torch.autocast:
    """What was cast once is not to be cast again for each block."""
    return torch.autocast(tensor.device.type, enabled=False)
