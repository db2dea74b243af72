"""The keys and values of sequences that are being sampled, with room for their next tokens.

transformers' own cache copies all that it has for each token; this one writes the token beside it.
Knows nothing of how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_ROOM = 16
"""Tokens for which there is room when what is full is copied."""


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer, [B, heads, tokens, size]: the first part of two stores."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens; all there are, then."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._stores is None or end > self._stores[0].shape[2]:
            self._stores = (
                _store(self.keys, key_states, end + _ROOM),
                _store(self.values, value_states, end + _ROOM),
            )
        keys, values = self._stores
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def forget_room(self) -> None:
        """Take ``keys`` and ``values`` as they were set."""
        self._stores = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        if self._stores is None:
            super().batch_select_indices(indices)
            return
        end = self.get_seq_length()
        keys, values = self._stores = (self._stores[0][indices], self._stores[1][indices])
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]


def _store(present: Tensor | None, new: Tensor, tokens: int) -> Tensor:
    made = new.new_empty(new.shape[0], new.shape[1], tokens, new.shape[3])
    if present is not None and present.numel():
        made[:, :, : present.shape[2]] = present
    return made


def roomy_cache(lm: PreTrainedModel) -> DynamicCache:
    """An empty cache. Layers that keep anything but all tokens are transformers' own."""
    cache = DynamicCache(config=lm.config)
    cache.layers = [RoomyLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all tokens."""
    return bool(cache.layers) and all(type(one) is RoomyLayer for one in cache.layers)


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of several plain caches in one, which get padding on the left. They are used up."""
    width = max(cache.get_seq_length() for cache in caches)
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("keys", "values"):
            parts = [getattr(one, name) for one in layers]
            wide = [pad(part, (0, 0, width - part.shape[2], 0)) for part in parts]
            setattr(layers[0], name, torch.cat(wide))
        layers[0].forget_room()
    return caches[0]
