"""Episodes that a service samples, of which a batch may be under way while another is learned from.

Knows nothing of services: what samples is an ``Answering``. Nor of rewards or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A response, the token that ends the turn included."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    """Of each token under what sampled it, in nats."""
    ended: bool
    """False where it was cut."""


class Answering(Protocol):
    """Samples responses in the trainer's stead. Both methods are called by every process."""

    def begin(self, batch: int, prompt_rows: Sequence[int], seed: int) -> None:
        """Answer these prompts with the policy as it is now, which may change after the call.

        Args:
            batch: From 0.
            prompt_rows: Of each episode of all processes, the place of its prompt among all.
            seed: Of the draws in this batch.
        """

    def finish(self) -> list[Response]:
        """What was begun: one response an episode of all processes, in their order."""


class ServedBatches:
    """The responses of one batch after the other, by a service that may be ahead.

    A batch that is sampled ahead is part of a checkpoint, since the weights that sampled it are
    gone when training goes on from there.
    """

    def __init__(self, answering: Answering) -> None:
        """Begin nothing."""
        self._answering = answering
        self._begun: int | None = None
        self._ready: list[Response] | None = None

    def begin(self, batch: int, prompt_rows: Sequence[int], seed: int) -> None:
        """Sample a batch, unless that was begun before."""
        if self._begun != batch:
            self._answering.begin(batch, prompt_rows, seed)
            self._begun, self._ready = batch, None

    def take(self) -> list[Response]:
        """The responses of the batch that was begun."""
        self.settle()
        assert self._ready is not None, "a batch is begun before it is taken"
        found, self._ready, self._begun = self._ready, None, None
        return found

    def settle(self) -> None:
        """Wait for what is under way. Called by every process before ``state_dict``."""
        if self._begun is not None and self._ready is None:
            self._ready = self._answering.finish()

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from."""
        rows = [(list(one.ids), list(one.logprobs), one.ended) for one in self._ready or ()]
        return {"begun": self._begun, "responses": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._begun = state["begun"]
        self._ready = None
        if self._begun is not None:
            self._ready = [
                Response(ids=ids, logprobs=logprobs, ended=ended)
                for ids, logprobs, ended in state["responses"]
            ]
