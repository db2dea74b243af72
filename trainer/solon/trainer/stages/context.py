"""What a stage is given to work with. Knows nothing of any stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from solon.constitution import Constitution
from solon.trainer.config import RunConfig
from solon.trainer.fleet import Fleet, Weights
from solon.trainer.prompts import PromptSet
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory

Summary = dict[str, Any]
"""A stage's figures for the state file and the table at the end; JSON values."""


class Progress(Protocol):
    """Where a stage says how far it is."""

    def start(self, total: int, done: int) -> None:
        """There are ``total`` records to make, of which ``done`` were made before."""

    def advance(self) -> None:
        """One more record is made."""

    def note(self, text: str) -> None:
        """One sentence for whoever watches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """The run, its services and its prompts."""

    step: Step
    config: RunConfig
    run: RunDirectory
    constitution: Constitution
    fleet: Fleet
    prompts: Mapping[str, PromptSet]
    """Key in the configuration's ``prompts`` -> prompts."""
    weights: Mapping[str, Weights]
    """Model of the run (base, sl, rl, rl-2) -> its weights; those that exist."""
    progress: Progress

    @property
    def seed(self) -> int:
        """What the step's draws derive from."""
        return self.step.seed(self.config.seed)
