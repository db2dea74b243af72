"""Attention masks for rows of different lengths over a slot cache.

Knows nothing of requests.

Shapes: B rows, T query tokens, L keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solon.engine.base import InvalidInput

FULL = "full_attention"
_SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True)
class Masks:
    """Which masks a model's layers take."""

    layer_types: frozenset[str]
    window: int | None
    """Keys that a sliding layer sees, in tokens."""

    @classmethod
    def of(cls, config: Any, model: str) -> Masks:
        """Read a model's configuration.

        Raises:
            InvalidInput: The model has layers that are no attention over all or the last keys.
        """
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        types = getattr(config, "layer_types", None)
        if not types:
            types = [FULL if window is None else _SLIDING]
        unknown = sorted(set(types) - {FULL, _SLIDING})
        if unknown:
            raise InvalidInput(
                f"model {model!r} has layers of type {', '.join(unknown)}; the transformers engine "
                f"runs {FULL} and {_SLIDING} only: choose another model or engine"
            )
        return cls(frozenset(types), window)

    def build(self, position_B_T: Tensor, length: int, dtype: torch.dtype) -> Any:
        """Additive masks [B, 1, T, L]: query t of row b sees keys 0 .. position_B_T[b, t].

        One tensor, or one a layer type where the model has several.
        """
        key_L = torch.arange(length, device=position_B_T.device)
        query_B_T_1 = position_B_T[:, :, None]
        return self._of(key_L <= query_B_T_1, query_B_T_1 - key_L, dtype)

    def branches(
        self,
        position_B_T: Tensor,
        offset_B: Tensor,
        visible_B_T_T: Tensor,
        length: int,
        dtype: torch.dtype,
    ) -> Any:
        """Additive masks [B, 1, T, L] for rows whose tokens are branches, not one sequence.

        Args:
            position_B_T: Of each token in its own sequence; several may have the same.
            offset_B: Keys before a row's first token, which all of its tokens see. The row's own
                keys follow them in the order of its tokens.
            visible_B_T_T: Which of its row's tokens each sees.
            length: Keys, at least ``offset_B`` + T.
            dtype: Of the masks.
        """
        tokens = position_B_T.shape[1]
        key_L = torch.arange(length, device=position_B_T.device)
        before_B_L = key_L < offset_B[:, None]
        own_B_T = offset_B[:, None] + torch.arange(tokens, device=position_B_T.device)
        key_B_L = key_L.expand_as(before_B_L).scatter(1, own_B_T, position_B_T)
        seen_B_T_L = before_B_L[:, None].expand(-1, tokens, -1)
        own_B_T_T = own_B_T[:, None].expand(-1, tokens, -1)
        seen_B_T_L = seen_B_T_L.scatter(2, own_B_T_T, visible_B_T_T)
        return self._of(seen_B_T_L, position_B_T[:, :, None] - key_B_L[:, None], dtype)

    def _of(self, seen_B_T_L: Tensor, distance_B_T_L: Tensor, dtype: torch.dtype) -> Any:
        """``distance_B_T_L``: tokens from a key to a query."""
        masks = {}
        for kind in self.layer_types:
            kept_B_T_L = seen_B_T_L
            if kind == _SLIDING and self.window is not None:
                kept_B_T_L = seen_B_T_L & (distance_B_T_L < self.window)
            mask = torch.zeros(kept_B_T_L.shape, dtype=dtype, device=kept_B_T_L.device)
            masks[kind] = mask.masked_fill_(~kept_B_T_L, -torch.inf)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))
