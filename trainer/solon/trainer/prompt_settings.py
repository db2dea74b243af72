"""The configuration of where prompts come from. Knows nothing of how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from solon.trainer.settings import Settings


def _texts(value: Any) -> list[str]:
    """One value is a list of one; numbers and truths as files spell them."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(one, str | int | float) for one in values):
        raise ValueError(f"expected a text, a number or a truth, or a list of them, got {value!r}")
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""One text or more."""

SANDBOX = "sandbox:"
"""What the name of a sandbox source begins with."""

SandboxKind = Literal["harmful", "benign", "sounds_dangerous"]
SANDBOX_KINDS: tuple[SandboxKind, ...] = ("harmful", "benign", "sounds_dangerous")

WRITTEN = "written:"
"""What the name of a set that comes with Solon begins with."""

WrittenKind = Literal["red_team", "helpful", "sounds_harmful"]
WRITTEN_KINDS: tuple[WrittenKind, ...] = ("red_team", "helpful", "sounds_harmful")
_WRITTEN_FOLDER = Path(__file__).with_name("written")

FormatName = Literal[
    "prompts",
    "prompt_completion",
    "preference",
    "implicit",
    "messages",
    "text",
    "hh_rlhf",
    "hh_red_team",
    "rewardbench",
    "paper_eval",
    "xstest",
    "harmbench",
    "advbench",
    "strongreject",
    "lines",
]
"""What the rows of a file are; see ``importers.formats``."""


class PromptSource(Settings):
    """Some prompts. A plain text in YAML is short for ``{source: TEXT}``."""

    source: str
    """``sandbox:harmful``, ``sandbox:benign`` or ``sandbox:sounds_dangerous``; a written set that
    comes with Solon: ``written:red_team`` (200), ``written:helpful`` (200) or
    ``written:sounds_harmful`` (100); or the path of a .jsonl, .json, .csv, .txt (each also with
    .gz) or .parquet file."""
    count: PositiveInt | None = None
    """How many, 1 or more: the first of a file, a draw of a sandbox source. None: all of a file."""
    format: FormatName | None = None
    """What a file's rows are: prompts, prompt_completion, preference, implicit, messages, text (the
    formats of TRL's datasets), hh_rlhf, hh_red_team, rewardbench, paper_eval, xstest, harmbench,
    advbench, strongreject, or lines. None: what the columns of its first row show."""
    where: dict[str, Texts] = Field(default_factory=dict)
    """Which rows of a file: column -> a value, or a list of values of which a row must have one,
    for example ``{label: safe}``. ``count`` is of these. Empty: all."""
    skip_unusable: bool = False
    """Leave out, and count, the rows of a file that hold no prompt (an empty turn, two different
    conversations in one row) instead of refusing the file; published sets have some."""
    judged_by: tuple[str, ...] = ()
    """Tags of the constitution: responses to these prompts are compared by the principles that have
    one of them, so that harmlessness and helpfulness may each have their own. Empty: by all. Of
    ``prompts.preferences`` only."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _written_set_is_known(self) -> PromptSource:
        known = [WRITTEN + kind for kind in WRITTEN_KINDS]
        if self.source.startswith(WRITTEN) and self.source not in known:
            raise ValueError(f"expected one of {', '.join(known)}, got {self.source!r}")
        return self

    @model_validator(mode="after")
    def _sandbox_is_complete(self) -> PromptSource:
        if not self.source.startswith(SANDBOX):
            return self
        if self.sandbox_kind is None:
            expected = ", ".join(SANDBOX + known for known in SANDBOX_KINDS)
            raise ValueError(f"expected one of {expected}, got {self.source!r}")
        if self.count is None:
            raise ValueError(f"{self.source} makes as many prompts as asked for: set count")
        if self.format or self.where or self.skip_unusable:
            raise ValueError(
                f"format, where and skip_unusable are of files, and {self.source} is none: remove "
                "them"
            )
        return self

    @property
    def path(self) -> str:
        """The file of a source that is no sandbox source."""
        name = self.source
        is_written = name.startswith(WRITTEN)
        return str(_WRITTEN_FOLDER / f"{name.removeprefix(WRITTEN)}.jsonl") if is_written else name

    @property
    def sandbox_kind(self) -> SandboxKind | None:
        """Which prompts of the sandbox; None for a file."""
        return next((kind for kind in SANDBOX_KINDS if self.source == SANDBOX + kind), None)


def is_file(source: str) -> bool:
    """Whether a source's name is a path."""
    return not source.startswith((SANDBOX, WRITTEN))


class EvaluationPrompts(Settings):
    """Held-out prompts, by what a good answer to them is. None of them is trained on."""

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
    comparisons: tuple[PromptSource, ...] = ()
    """Pairs of which it is known which response is better, such as human comparisons of helpful
    responses (hh_rlhf, rewardbench, TRL's preference formats): mixed into the preference model's
    data as ``preferences.given`` says. Of several rows of one conversation the first counts."""
    rl: tuple[PromptSource, ...] = ()
    """Prompts of the RL phase. Empty: those of ``preferences``."""
    evaluation: EvaluationPrompts = EvaluationPrompts()
    """Held-out prompts."""
    held_out_share: float | None = Field(default=None, ge=0, le=1)
    """Of the prompts that both training and ``evaluation`` name, this part is evaluated on and the
    rest is trained on, 0 to 1: 1 holds all of them out. A hash of the text decides, so that texts
    which differ in case, white space or punctuation at most stay together, in every run. None: a
    run whose sources share a prompt is refused."""

    @model_validator(mode="after")
    def _only_preferences_are_judged(self) -> PromptsConfig:
        for key in ("red_team", "helpfulness", "comparisons", "rl"):
            for source in getattr(self, key):
                if source.judged_by:
                    raise ValueError(
                        f"{key}: judged_by is of prompts.preferences only, got "
                        f"{list(source.judged_by)!r} for {source.source!r}: remove it"
                    )
        return self
