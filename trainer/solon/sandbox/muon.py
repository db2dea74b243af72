"""Muon: momentum whose update is orthogonalised (Keller Jordan et al. 2024, "Muon").

Knows nothing of models. ``torch.optim.Muon`` works in bfloat16, which a CPU without native
support for it computes many times slower than the float32 used here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices, with decoupled weight decay."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """Optimise two-dimensional parameters; ``lr`` is the root mean square of an update."""
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; those of one shape together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group["lr"], group["momentum"], group["weight_decay"])

    def _update(
        self, matrices: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        gradients = []
        for matrix in matrices:
            assert matrix.grad is not None
            average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
            average.lerp_(matrix.grad, 1 - momentum)
            gradients.append(matrix.grad.lerp(average, momentum))
        rows, columns = matrices[0].shape
        scale = lr * max(rows, columns) ** 0.5
        for matrix, update in zip(matrices, orthogonalise(torch.stack(gradients)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of a stack of matrices near one (Newton-Schulz, quintic)."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
