"""A step of a run: one stage in one iteration; its name, the models it has to do with, its seed.

Knows nothing of configurations, or of what a stage does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from solon.constitution import derive_seed
from solon.trainer.stage_names import Stage

ITERATED: tuple[Stage, ...] = ("preferences", "reward", "rl")
"""The stages that an iteration consists of, in their order."""
MOST_ITERATIONS = 8
_MODEL: Mapping[Stage, str] = {"sft": "sl", "reward": "reward", "rl": "rl"}
"""Training stage -> the model that it leaves in ``models/``."""


def marked(row: str, iteration: int) -> str:
    """A row's id that is a later iteration's too: ``PROMPT:0-1:i2``."""
    return row if iteration == 1 else f"{row}:i{iteration}"


@dataclass(frozen=True, slots=True)
class Step:
    """A stage, and in which iteration it is run."""

    stage: Stage
    iteration: int = 1
    """1 or more; above 1 only of the stages ``ITERATED``."""

    @property
    def name(self) -> str:
        """What state, logs and folders call it: ``rl``, in the second iteration ``rl-2``."""
        return self.at(self.stage)

    @property
    def model(self) -> str:
        """The model that it leaves in ``models/``: ``sl``, ``reward``, ``rl``, ``rl-2``."""
        return self.at(_MODEL[self.stage])

    @property
    def leaves_policy(self) -> bool:
        """Whether it leaves a model that answers prompts."""
        return self.stage in ("sft", "rl")

    @property
    def policy(self) -> str:
        """The model whose responses are compared: ``sl``, then what RL left an iteration before."""
        return "sl" if self.iteration == 1 else Step("rl", self.iteration - 1).model

    def at(self, name: str) -> str:
        """What the first iteration calls ``name``, in this one."""
        return name if self.iteration == 1 else f"{name}-{self.iteration}"

    def of(self, stage: Stage) -> Step:
        """Another stage in the same iteration."""
        return Step(stage, self.iteration)

    def seed(self, run_seed: int) -> int:
        """What its draws derive from, in [0, 2**64): each iteration draws anew."""
        if self.iteration == 1:
            return run_seed
        return derive_seed(run_seed, "iteration", self.iteration)
