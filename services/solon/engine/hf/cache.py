"""A key-value cache with one slot a sequence, in which key i of a sequence lies at index i.

Sequences of different lengths run together because their unused keys are masked, not because they
are shifted: padding is at the end. So a row joins by writing its keys, leaves by letting the last
row take its slot, and never moves otherwise; and each key keeps its alignment, without which
kernels add up in another order, and the same request gets other last bits in another batch.
Knows nothing of requests.

Shapes: S slots, B rows, T new tokens, L keys in use, C capacity, H key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from solon.engine.hf.runs import Run

GRAIN = 16
"""Lengths that kernels see are multiples of this: a row's last bits then do not depend on them."""

LEAST_KEYS = 64
"""Keys that rows see, at least: smaller products are summed by another kernel."""


def round_up(length: int) -> int:
    """The least multiple of ``GRAIN`` that is not below ``length``."""
    return -(-length // GRAIN) * GRAIN


@dataclass(slots=True)
class Window:
    """Which part of the cache the next forward writes and sees; shared by all layers."""

    slots: int = 0
    capacity: int = 0
    start: int = 0
    rows: int = 0
    length: int = 0
    source_B: Tensor | None = None
    slot_B: Tensor | None = None
    position_B_T: Tensor | None = None
    """Where to write; ``None`` for prompts, which start at 0. In a run, [N, 1]."""
    run: Run | None = None
    """What reads the keys and values, where they are those of a run (``runs``)."""
    places: dict[int, Tensor] = field(default_factory=dict)
    """By number of heads: flat indices into [S * H * C], made once for all layers."""

    def place(self, heads: int) -> Tensor:
        """Indices [B * H * T] of the tokens to write."""
        if heads not in self.places:
            assert self.slot_B is not None
            assert self.position_B_T is not None
            head_H = torch.arange(heads, device=self.slot_B.device)
            first_B_H = (self.slot_B[:, None] * heads + head_H) * self.capacity
            place_B_H_T = first_B_H[:, :, None] + self.position_B_T[:, None, :]
            self.places[heads] = place_B_H_T.flatten()
        return self.places[heads]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [S, H, C, D] each."""

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.stored: list[Tensor] = []
        """The keys and the values; empty before the first forward."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shape and type from the first keys and values, [B, H, T, D]."""
        for states in (key_states, value_states):
            heads, size = states.shape[1], states.shape[3]
            shape = (self.window.slots, heads, self.window.capacity, size)
            self.stored.append(states.new_zeros(shape))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, D] and return the keys and values that the rows see, [B, H, L, D]."""
        if not self.stored:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.stored
        if self.window.run is not None:
            self._write_run(self.window.run, key_states, value_states)
            return key_states, value_states
        if self.window.position_B_T is None:
            self._write_prompt(keys, key_states)
            self._write_prompt(values, value_states)
            return key_states, value_states
        return self._write(keys, key_states), self._write(values, value_states)

    def resize(self, slots: int, capacity: int) -> None:
        """Grow, keeping what is there."""
        self.stored = [_grown(store, slots, capacity) for store in self.stored]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Prompts see themselves; other masks are made by ``masks``."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Prompts start at 0; other positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Grows without a limit."""
        return -1

    def _write_run(self, run: Run, key_states: Tensor, value_states: Tensor) -> None:
        window = self.window
        assert window.slot_B is not None
        tokens = window.slot_B.shape[0]
        run.stored.clear()
        for store, new in zip(self.stored, (key_states, value_states), strict=True):
            rows_N_H_D = new[0, :, :tokens].transpose(0, 1).flatten(0, 1)
            store.view(-1, store.shape[3]).index_copy_(0, window.place(store.shape[1]), rows_N_H_D)
            run.stored.append(store)

    def _write_prompt(self, store: Tensor, new: Tensor) -> None:
        window = self.window
        if window.source_B is not None:
            new = new.index_select(0, window.source_B)
        end = window.start + new.shape[0]
        store[window.start : end, :, : new.shape[2]] = new

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        window = self.window
        flat = store.view(-1, store.shape[3])
        flat.index_copy_(0, window.place(store.shape[1]), new.flatten(0, 2))
        end = window.start + window.rows
        return store[window.start : end, :, : window.length]


class SlotCache(Cache):
    """All layers' slots. Before each forward, say with ``prompts`` or ``extend`` what it does."""

    def __init__(self, layers: int) -> None:
        """``layers``: how many the model has."""
        self._window = Window()
        self._slot_layers = [SlotLayer(self._window) for _ in range(layers)]
        super().__init__(layers=list(self._slot_layers))

    def reserve(self, slots: int, length: int) -> None:
        """Make room for ``slots`` sequences of ``length`` keys, keeping what is there."""
        window = self._window
        capacity = max(LEAST_KEYS, round_up(length))
        if slots <= window.slots and capacity <= window.capacity:
            return
        # a quarter more, so that a growing sequence does not copy the cache at every step
        if capacity > window.capacity > 0:
            capacity = round_up(max(capacity, window.capacity * 5 // 4))
        window.slots = max(slots, window.slots)
        window.capacity = max(capacity, window.capacity)
        for layer in self._slot_layers:
            layer.resize(window.slots, window.capacity)

    def run(self, run: Run, slot_N: Tensor, position_N: Tensor) -> None:
        """The next forward is a run: token n goes to position n of slot n.

        Args:
            run: Is given the keys and values of all slots, at every layer.
            slot_N: int64; further tokens of the forward, which fill it up, are not written.
            position_N: int64, each below the capacity.
        """
        window = self._window
        window.run = run
        window.slot_B, window.position_B_T = slot_N, position_N[:, None]
        window.source_B, window.places = None, {}

    def prompts(self, start: int, source_B: Tensor | None = None) -> None:
        """The next forward writes whole prompts into the slots from ``start`` on.

        Args:
            start: The first slot.
            source_B: Which of the forward's rows goes to each slot, where prompts are equal.
        """
        window = self._window
        window.start, window.source_B, window.position_B_T = start, source_B, None
        window.run = None

    def extend(self, start: int, position_B_T: Tensor, length: int) -> None:
        """The next forward adds tokens at ``position_B_T`` to the slots from ``start`` on.

        Args:
            start: The first slot.
            position_B_T: int64 positions, each below ``length``.
            length: Keys that the rows see, a multiple of ``GRAIN``.
        """
        window = self._window
        rows = position_B_T.shape[0]
        window.start, window.rows, window.length = start, rows, length
        window.source_B = window.run = None
        window.slot_B = torch.arange(start, start + rows, device=position_B_T.device)
        window.position_B_T = position_B_T
        window.places = {}

    def read(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [H, L, D] of a slot's first ``length`` tokens: views."""
        return [
            (keys[slot, :, :length], values[slot, :, :length])
            for keys, values in (layer.stored for layer in self._slot_layers)
        ]

    def write(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put each layer's keys and values [H, L, D] at a slot's start."""
        for layer, (keys, values) in zip(self._slot_layers, layers, strict=True):
            if not layer.stored:
                layer.lazy_initialization(keys[None], values[None])
            for store, new in zip(layer.stored, (keys, values), strict=True):
                store[slot, :, : new.shape[1]] = new

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` keys of one slot to another."""
        for store in self._stores():
            store[target, :, :length] = store[source, :, :length]

    def copy(self, source_B: Tensor, start: int, length: int) -> None:
        """Copy the first ``length`` keys of slots ``source_B`` to the slots from ``start`` on."""
        end = start + source_B.shape[0]
        for store in self._stores():
            store[start:end, :, :length] = store[source_B, :, :length]

    def wipe(self, slot: int) -> None:
        """Zero a slot: a masked NaN would still poison its next row, since 0 * NaN is NaN."""
        for store in self._stores():
            store[slot] = 0

    def clear(self) -> None:
        """Zero everything."""
        for store in self._stores():
            store.zero_()

    def _stores(self) -> Iterator[Tensor]:
        for layer in self._slot_layers:
            yield from layer.stored


def _grown(store: Tensor, slots: int, capacity: int) -> Tensor:
    grown = store.new_zeros((slots, store.shape[1], capacity, store.shape[3]))
    grown[: store.shape[0], :, : store.shape[2]] = store
    return grown
