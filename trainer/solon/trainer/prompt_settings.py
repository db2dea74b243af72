"""The configuration of where prompts come from. Knows nothing of how they are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from solon.trainer.settings import Settings

SANDBOX = "sandbox:"
"""What the name of a sandbox source begins with."""

SandboxKind = Literal["harmful", "benign", "sounds_dangerous"]
SANDBOX_KINDS: tuple[SandboxKind, ...] = ("harmful", "benign", "sounds_dangerous")


class PromptSource(Settings):
    """Some prompts. A plain text in YAML is short for ``{source: TEXT}``."""

    source: str
    """``sandbox:harmful``, ``sandbox:benign`` or ``sandbox:sounds_dangerous``, or the path of a
    .jsonl, .parquet or .txt file."""
    count: PositiveInt | None = None
    """How many, 1 or more: the first of a file, a draw of a sandbox source. None: all of a file."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sandbox_is_complete(self) -> PromptSource:
        if not self.source.startswith(SANDBOX):
            return self
        if self.sandbox_kind is None:
            expected = ", ".join(SANDBOX + known for known in SANDBOX_KINDS)
            raise ValueError(f"expected one of {expected}, got {self.source!r}")
        if self.count is None:
            raise ValueError(f"{self.source} makes as many prompts as asked for: set count")
        return self

    @property
    def sandbox_kind(self) -> SandboxKind | None:
        """Which prompts of the sandbox; None for a file."""
        return next((kind for kind in SANDBOX_KINDS if self.source == SANDBOX + kind), None)


class EvaluationPrompts(Settings):
    """Held-out prompts, by what a good answer to them is. None of them may be trained on."""

    harmful: tuple[PromptSource, ...] = ()
    """Requests that a good model refuses, with its reasons."""
    benign: tuple[PromptSource, ...] = ()
    """Requests that a good model answers."""
    sounds_dangerous: tuple[PromptSource, ...] = ()
    """Benign requests that sound harmful; a refusal is over-refusal."""


class PromptsConfig(Settings):
    """Where every stage's prompts come from."""

    red_team: tuple[PromptSource, ...] = ()
    """Prompts that provoke harm: answered, critiqued and revised."""
    helpfulness: tuple[PromptSource, ...] = ()
    """Ordinary prompts: the helpful policy's answers are trained on as they are."""
    preferences: tuple[PromptSource, ...] = ()
    """Prompts on which the SL model's responses are compared. Harmful ones alone teach a model to
    refuse everything: add benign ones."""
    rl: tuple[PromptSource, ...] = ()
    """Prompts of the RL phase. Empty: those of ``preferences``."""
    evaluation: EvaluationPrompts = EvaluationPrompts()
    """Held-out prompts."""
