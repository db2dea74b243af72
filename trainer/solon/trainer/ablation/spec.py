"""The file of an ablation: a base configuration, rows that change it, and what is expected of them.

Knows nothing of runs; imports no torch, gRPC or pyarrow.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from solon.trainer import config
from solon.trainer.errors import ConfigError
from solon.trainer.settings import Settings
from solon.trainer.stage_names import Stage
from solon.trainer.yaml_source import KeyPath, YamlSource, parse

FOLDER = "ablations"
"""Beside the shipped configurations."""
_MODELS = "base|sl|rl|final"
_OF_MODEL = (
    "harmful_compliance|explained_refusal|evasion|benign_compliance|over_refusal|insult|garbled"
)
_MEASURES = re.compile(
    rf"(?:{_MODELS})\.(?:{_OF_MODEL}|preferred_to_(?:base|sl|rl))"
    r"|revision_\d+\.harmful_compliance"
    r"|labels\.(?:accuracy|calibration_error|position_bias)"
    r"|judge\.(?:accuracy|position_bias)"
    r"|reward\.(?:test_accuracy|test_calibration_error)"
    r"|seconds"
)
MOST_SEEDS = 10


def _known_measure(name: str) -> str:
    if not _MEASURES.fullmatch(name):
        raise ValueError(
            f"expected MODEL.RATE with a MODEL of {_MODELS.replace('|', ', ')} and a RATE of "
            f"{_OF_MODEL.replace('|', ', ')} or preferred_to_MODEL; revision_N.harmful_compliance; "
            "labels.accuracy, labels.calibration_error or labels.position_bias; judge.accuracy or "
            "judge.position_bias; reward.test_accuracy or reward.test_calibration_error; or "
            f"seconds; got {name!r}"
        )
    return name


Measure = Annotated[str, AfterValidator(_known_measure)]
"""A figure of a run; ``final`` is the last model of the row that answers prompts."""
RowName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60)]
"""Also the name of a folder."""


class Expectation(Settings):
    """One comparison that a finding comes down to."""

    measure: Measure
    """What is measured in this row."""
    is_: Literal["lower", "higher", "same", "at_most", "at_least"] = Field(alias="is")
    """How it is to be: lower or higher than, or the same as (within ``limit``), what it is held
    against; or at most or at least ``limit``."""
    than: RowName | None = None
    """The row that it is held against. None: what the row itself is held against; with
    ``than_measure``, the row itself."""
    than_measure: Measure | None = None
    """What is measured there. None: the same."""
    limit: float | None = Field(default=None, ge=0)
    """For ``same`` the largest difference that is none; for ``at_most`` and ``at_least`` the bound;
    in the measure's unit, >= 0."""

    @model_validator(mode="after")
    def _limit_belongs_to_its_kind(self) -> Expectation:
        needs = self.is_ in ("same", "at_most", "at_least")
        if needs is (self.limit is None):
            what = "needs" if needs else "has no use for"
            raise ValueError(f"is: {self.is_!r} {what} a limit")
        if self.is_ in ("at_most", "at_least") and (self.than or self.than_measure):
            raise ValueError(f"is: {self.is_!r} is held against limit: remove than, than_measure")
        return self


class Finding(Settings):
    """What others have found, and how it would show here."""

    says: str = Field(min_length=1)
    """The finding, in a sentence."""
    source: str = Field(min_length=1)
    """Where it stands: paper, section or figure."""
    expect: tuple[Expectation, ...] = Field(min_length=1)
    """All of them have to hold."""
    reason: str | None = None
    """Why it does not show here; printed beside a verdict other than ``reproduced``."""


class Row(Settings):
    """One variant of the base configuration."""

    title: str = Field(min_length=1)
    """A few words."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What it changes: dotted key -> value. A constitution's path may be relative to this file."""
    until: Literal["revisions", "sft", "preferences", "reward", "rl"] = "rl"
    """The last stage before the evaluation: a question of revisions or labels needs no more."""
    against: RowName | None = None
    """The row that it is held against. None: the first."""
    findings: tuple[Finding, ...] = ()
    """What it is to show."""


class Axes(Settings):
    """What the picture shows of every row."""

    x: Measure = "final.benign_compliance"
    """To the right."""
    y: Measure = "final.harmful_compliance"
    """Upwards."""


class AblationConfig(Settings):
    """The whole file."""

    base: str
    """The configuration that the rows change: a shipped name or a YAML file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What all rows change: dotted key -> value."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        default=(0, 1, 2), min_length=1, max_length=MOST_SEEDS
    )
    """A run of every row for each, 1 to 10."""
    measures: tuple[Measure, ...] = Field(min_length=1)
    """The columns of the table."""
    picture: Axes = Axes()
    """The axes of the picture."""
    stage_seconds: dict[Stage, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Stage -> seconds that one took, for the estimate before any has been measured; ``evaluate``
    for each model. Empty: no estimate before the first run."""
    rows: dict[RowName, Row] = Field(min_length=1)
    """Name -> variant. The first is what the others are held against."""

    @model_validator(mode="after")
    def _rows_that_are_named_exist(self) -> AblationConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected each once, got {list(self.seeds)!r}")
        for name, row in self.rows.items():
            named = [row.against, *(e.than for f in row.findings for e in f.expect)]
            for other in named:
                if other is not None and other not in self.rows:
                    raise ValueError(
                        f"rows.{name}: is held against {other!r}, which is no row; rows: "
                        f"{', '.join(self.rows)}"
                    )
            for key in ("seed", "run_dir"):
                if key in row.set or key in self.set:
                    raise ValueError(f"rows.{name}.set: {key} is the ablation's own: remove it")
        return self

    @property
    def first(self) -> str:
        """The row that the others are held against."""
        return next(iter(self.rows))

    def against(self, name: str) -> str:
        """The row that a row is held against."""
        return self.rows[name].against or self.first


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """A file that was read."""

    path: Path
    """The file; relative paths of ``base`` and of constitutions start beside it."""
    config: AblationConfig

    @property
    def name(self) -> str:
        """The file's, without its suffix."""
        return self.path.stem


def shipped() -> tuple[str, ...]:
    """Names of the ablations that come with Solon, in alphabetical order."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def load_ablation(name_or_path: str) -> Ablation:
    """Read and check a file of rows.

    Raises:
        ConfigError: Every problem at once, a line each: place, key, value, fix.
    """
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    source = parse(text, str(path))
    try:
        checked = AblationConfig.model_validate(source.data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_sentence(source, problem) for problem in problems]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error
    return Ablation(path=path, config=checked)


def assignments(values: Mapping[str, Any], folder: Path) -> list[str]:
    """``key.path=value``, as overrides of a configuration are given."""
    found = dict(values)
    constitution = found.get("constitution")
    if isinstance(constitution, str) and (folder / constitution).is_file():
        found["constitution"] = str((folder / constitution).absolute())
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in found.items()]


def base_of(ablation: Ablation) -> str:
    """The base configuration's name, or its path."""
    beside = ablation.path.parent / ablation.config.base
    return str(beside) if beside.is_file() else ablation.config.base


def chosen_rows(ablation: Ablation, only: Sequence[str]) -> tuple[str, ...]:
    """The rows that were asked for, in the file's order; all if none was.

    Raises:
        ConfigError: One of them is no row.
    """
    rows = ablation.config.rows
    for name in only:
        if name not in rows:
            close = difflib.get_close_matches(name, rows, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"--only: expected rows of {', '.join(rows)}; got {name!r}.{meant}")
    return tuple(name for name in rows if not only or name in only)


def _folder() -> Path:
    return config.shipped_directory() / FOLDER


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    if name_or_path in shipped():
        return _folder() / f"{name_or_path}.yaml"
    raise ConfigError(
        f"expected an ablation's YAML file or one of the shipped {', '.join(shipped())}; "
        f"{name_or_path!r} does not exist"
    )


def _sentence(source: YamlSource, problem: Mapping[str, Any]) -> str:
    # pydantic names the key of a mapping itself, when the name is what is wrong
    path: KeyPath = tuple(part for part in problem["loc"] if part != "[key]")
    place, key = source.place(path), ".".join(map(str, path))
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{place}: {key}: unknown key"
    if kind == "missing":
        return f"{place}: {key}: expected a value, but the key is missing"
    what = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return f"{place}: {key}: {what}" if key else f"{place}: {what}"
    return (
        f"{place}: {key}: {what.replace('Input should be', 'expected')}, got {problem['input']!r}"
    )
