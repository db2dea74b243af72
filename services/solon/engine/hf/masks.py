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

_FULL = "full_attention"
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
            types = [_FULL if window is None else _SLIDING]
        unknown = sorted(set(types) - {_FULL, _SLIDING})
        if unknown:
            raise InvalidInput(
                f"model {model!r} has layers of type {', '.join(unknown)}; the transformers engine "
                f"runs {_FULL} and {_SLIDING} only: choose another model or engine"
            )
        return cls(frozenset(types), window)

    def build(self, position_B_T: Tensor, length: int, dtype: torch.dtype) -> Any:
        """Additive masks [B, 1, T, L]: query t of row b sees keys 0 .. position_B_T[b, t].

        One tensor, or one a layer type where the model has several.
        """
        key_L = torch.arange(length, device=position_B_T.device)
        query_B_T_1 = position_B_T[:, :, None]
        causal_B_T_L = key_L <= query_B_T_1
        masks = {}
        for kind in self.layer_types:
            seen_B_T_L = causal_B_T_L
            if kind == _SLIDING and self.window is not None:
                seen_B_T_L = causal_B_T_L & (key_L > query_B_T_1 - self.window)
            mask = torch.zeros(seen_B_T_L.shape, dtype=dtype, device=position_B_T.device)
            masks[kind] = mask.masked_fill_(~seen_B_T_L, -torch.inf)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))
