"""The same draw in any batch, where arithmetic alone does not give it.

Floating-point sums depend on the order of their terms, and kernels choose that order by the shape
of the batch. Most draws are far from the border to another token, so that the last bits do not
matter. Those that are near are decided by the logits of a forward of their own: the whole
sequence, alone in the batch, which no other request can change.

With one CPU thread the shapes that the engine runs give bit-identical logits anyway (see
``cache``), so that log-probabilities are equal too, and this costs a comparison a step.

Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from solon.engine.base import Sampling
from solon.engine.hf.runner import LEAST_ROWS, Runner
from solon.engine.hf.sampling import Draws, Settings, draw

_MARGIN = 2e-5
"""Logits or probability mass. Measured noise of float32 between batches is below a tenth of it."""


class Exact:
    """Decides the draws that are too close to call."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._cache = runner.new_cache()
        self._applies = next(runner.model.parameters()).dtype == torch.float32
        self.settled = 0
        """Draws decided by a forward of their own."""

    def settle(
        self,
        draws: Draws,
        rows: Sequence[tuple[list[int], Sampling]],
        uniform_B: torch.Tensor,
    ) -> Draws:
        """The draws, with those that are too close to call drawn again.

        Args:
            draws: From the batch's logits.
            rows: Each row's ids so far, prompt included, and its settings.
            uniform_B: What the draws were made with.
        """
        if not self._applies:
            # a narrow type's noise is so large that this would run nearly every token again
            return draws
        close = torch.nonzero((draws.margin_B < _MARGIN) & draws.finite_B).flatten().tolist()
        for place in close:
            ids, sampling = rows[place]
            again = self._alone(ids, sampling, uniform_B[place : place + 1])
            draws.token_B[place] = again.token_B[0]
            draws.logprob_B[place] = again.logprob_B[0]
            self.settled += 1
        return draws

    def _alone(self, ids: list[int], sampling: Sampling, uniform_1: torch.Tensor) -> Draws:
        self._cache.reserve(LEAST_ROWS, len(ids) + 1)
        if len(ids) > 1:
            self._runner.prefill(self._cache, 0, [ids[:-1]])
        logits_1_1_V = self._runner.extend(self._cache, 0, [[ids[-1]]], [len(ids) - 1])
        assert logits_1_1_V is not None
        return draw(logits_1_1_V[:, 0], Settings.of([sampling], self._runner.device), uniform_1)
