"""Keys and values of what many requests begin with, kept from one to the next.

The exemplars of a constitution stand at the start of every prompt of its critic and judge, and are
most of it. A request says how much of it that is; this much is always computed alone, so that a
request's numbers are the same whether it was kept or not. The least recently used go first. Knows
nothing of requests.

Shapes: E tokens, H key-value heads, D head size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from solon.engine.hf.cache import GRAIN, round_up
from solon.engine.hf.runner import LEAST_ROWS, Runner

_LEAST = 4 * GRAIN
"""Tokens that are worth a forward of their own."""

Layers = Sequence[tuple[Tensor, Tensor]]
"""Of each layer, keys and values [H, E, D]."""


def whole(shared: int) -> int:
    """How many of a prompt's first tokens to keep, of those that it shares with others."""
    kept = shared - shared % GRAIN
    return kept if kept >= _LEAST else 0


class Kept:
    """What was computed last."""

    def __init__(self, runner: Runner, most_keys: int) -> None:
        """``most_keys``: tokens that are kept, all prefixes together; 0 keeps none."""
        self._runner = runner
        self._most = most_keys
        self._cache = runner.new_cache()
        self._known: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def compute(self, ids: Sequence[int]) -> int:
        """Have a prefix ready for ``layers``; how many of its tokens were known already."""
        known = len(ids) if tuple(ids) in self._known else 0
        if ids:
            self.layers(ids)
        return known

    def layers(self, ids: Sequence[int]) -> Layers:
        """Keys and values of a prefix; computed if they are not known."""
        key = tuple(ids)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        self._cache.reserve(LEAST_ROWS, round_up(len(key)))
        self._runner.prefill(self._cache, 0, [key])
        found = [(keys.clone(), values.clone()) for keys, values in self._cache.read(0, len(key))]
        if len(key) <= self._most:
            self._known[key] = found
        while sum(map(len, self._known)) > self._most:
            self._known.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forget all: the weights are others now, or something was not finite."""
        self._known.clear()
        self._cache.clear()
