"""The keys and values of sequences that are being sampled, with room for their next tokens.

transformers' own cache copies all that it has for each token; this one writes the token beside it.
Knows nothing of how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
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

    def take(self, layers: Sequence[DynamicLayer], places_B: Tensor, width: int) -> None:
        """Have rows of several layers instead; see ``joined``."""
        keys, values = self._stores = (
            _stored([one.keys for one in layers], places_B, width),
            _stored([one.values for one in layers], places_B, width),
        )
        self.keys, self.values = keys[:, :, :width], values[:, :, :width]

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


def joined(caches: Sequence[DynamicCache], places_B: Tensor) -> DynamicCache:
    """Rows of several plain caches in one, with padding on the left. They are used up.

    ``places_B``: of each row, its place among the caches' rows one after the other.
    """
    first = caches[0]
    width = max(cache.get_seq_length() for cache in caches)
    for number in range(len(first.layers)):
        layers = [_roomy(cache, number) for cache in caches]
        layers[0].take(layers, places_B, width)
        for other in layers[1:]:
            # what was taken is not held until all is
            other.keys = other.values = None
    return first


def _roomy(cache: DynamicCache, number: int) -> RoomyLayer:
    layer = cache.layers[number]
    assert isinstance(layer, RoomyLayer), "the cache is plain"
    return layer


def _stored(parts: Sequence[Tensor | None], places_B: Tensor, width: int) -> Tensor:
    """[B, heads, width and room, size]: rows of the parts, each written once."""
    present = [part for part in parts if part is not None]
    _, heads, _, size = present[0].shape
    made = present[0].new_zeros(len(places_B), heads, width + _ROOM, size)
    first = 0
    for part in present:
        rows = ((places_B >= first) & (places_B < first + len(part))).nonzero().squeeze(1)
        made[rows, :, width - part.shape[2] : width] = part[places_B[rows] - first]
        first += len(part)
    return made
