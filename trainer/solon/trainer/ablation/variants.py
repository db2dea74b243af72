"""Rows and seeds as runs: their configurations, what they share, and what that will cost.

Knows nothing of how a run is made or measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from solon.constitution import Constitution, load, resolve
from solon.trainer.ablation.spec import Ablation, assignments, base_of
from solon.trainer.config import SAVED_NAME, RunConfig, differences, load_config
from solon.trainer.course import stages_of, steps_of
from solon.trainer.lineage import decided_by, step_key
from solon.trainer.plan import check_inputs, read_prompts
from solon.trainer.prompts import PromptSet
from solon.trainer.session import saved_config
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.state import RunState, StageKey
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory

RUNS = "runs"
"""Folder of an ablation's runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A row with a seed: one run."""

    row: str
    seed: int
    config: RunConfig
    stages: tuple[Stage, ...]
    """That it runs, in the order of a run."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row}, seed {self.seed}"

    @property
    def models(self) -> tuple[str, ...]:
        """That are evaluated; the last of them is the row's own."""
        return ("base", *(step.model for step in self.steps if step.leaves_policy))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The stages, each once an iteration."""
        return steps_of(self.config, self.stages)

    @property
    def run(self) -> RunDirectory:
        """Where it is, or will be."""
        assert self.config.run_dir is not None, "set when the variant was made"
        return RunDirectory(self.config.run_dir)


def make_variants(
    ablation: Ablation,
    root: Path,
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
) -> list[Variant]:
    """A run for every row and seed, all rows of a seed together.

    Raises:
        ConfigError: A row's values cannot be used; the text names the row.
        PromptError, ConstitutionError: As what they name.
    """
    made = []
    for seed in seeds:
        for row in ablation.config.rows:
            config = _config(ablation, root, row, seed, overrides)
            stages = _stages(config, ablation.config.rows[row].until)
            made.append(Variant(row=row, seed=seed, config=config, stages=stages))
    return made


def _stages(config: RunConfig, until: Stage) -> tuple[Stage, ...]:
    last = STAGES.index(until)
    return tuple(s for s in stages_of(config) if s == "evaluate" or STAGES.index(s) <= last)


def _config(
    ablation: Ablation, root: Path, row: str, seed: int, overrides: Sequence[str]
) -> RunConfig:
    folder, file = ablation.path.parent, ablation.path
    layers = [
        (f"{file}: set", assignments(ablation.config.set, folder)),
        (f"{file}: rows.{row}.set", assignments(ablation.config.rows[row].set, folder)),
        ("--seeds", [f"seed={seed}"]),
    ]
    config = load_config(base_of(ablation), overrides, layers=layers)
    return config.model_copy(update={"run_dir": str(root / RUNS / row / f"seed-{seed}")})


class Plan:
    """What is to be made, and how long that takes."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        """Read what the variants name: prompts, constitutions, models.

        Raises:
            TrainerError, ConstitutionError: What one of them names is not there or not enough.
        """
        self._variants = variants
        self._prompts: dict[tuple[str, int, tuple[Stage, ...]], dict[str, PromptSet]] = {}
        self._work = {variant.name: self._work_of(variant) for variant in variants}

    def left(self, done: Iterable[str] = ()) -> Counter[Stage]:
        """Stage -> how often it is still to be run; ``evaluate``: models to be asked.

        ``done``: names of the variants that are finished.
        """
        finished = set().union(*(self._work[name] for name in done))
        left = set().union(*self._work.values()) - finished
        return Counter(stage for stage, _ in left)

    @property
    def stages(self) -> int:
        """Stages of all variants, were nothing shared."""
        return sum(len(variant.steps) for variant in self._variants)

    def _work_of(self, variant: Variant) -> set[tuple[Stage, str]]:
        """What the variant's result takes: stages by the key of their records or model."""
        constitution = load(resolve(variant.config.constitution))
        check_inputs(variant.config, constitution)
        keys = self._keys(variant, constitution)
        evaluate = Step("evaluate")
        work = {(step.stage, keys[step].records) for step in variant.steps if step != evaluate}
        answers = keys[evaluate].records
        models = [keys[step].result for step in variant.steps if step.leaves_policy]
        return work | {("evaluate", f"{answers} {model}") for model in ("base", *models)}

    def _keys(self, variant: Variant, constitution: Constitution) -> dict[Step, StageKey]:
        config = variant.config
        known = (config.prompts.model_dump_json(), variant.seed, variant.stages)
        if known not in self._prompts:
            self._prompts[known] = read_prompts(config, variant.stages)
        keys: dict[Step, StageKey] = {}
        for step in variant.steps:
            before = {one: keys.get(one) for one in decided_by(config, step)}
            key = step_key(step, config, constitution, self._prompts[known], before)
            assert key is not None, "the keys before it are known"
            keys[step] = key
        return keys


@dataclass(slots=True)
class Pace:
    """Seconds of a stage: as measured here, or as the file says until then."""

    expected: Mapping[Stage, float]
    measured: dict[Stage, list[float]] = field(default_factory=dict)

    def learn(self, variant: Variant) -> None:
        """From a run that is done."""
        state = RunState(variant.run)
        for step in variant.steps:
            name = step.name
            if state.origin(name) is None and state.is_done(name):
                models = len(state.summary(name).get("models", ())) or 1
                self.measured.setdefault(step.stage, []).append(state.seconds(name) / models)

    def seconds(self, work: Mapping[Stage, int]) -> float | None:
        """Of so much work; None if of a part of it nothing is known."""
        total = 0.0
        for stage, count in work.items():
            seen = self.measured.get(stage)
            each = sum(seen) / len(seen) if seen else self.expected.get(stage)
            if each is None:
                return None
            total += count * each
        return total


def is_done(variant: Variant) -> bool:
    """Whether its run is there, made as the variant is now, with all of its stages.

    A run that goes on may do without ``preflight``.
    """
    run = variant.run
    if not run.storage.exists(SAVED_NAME):
        return False
    state = RunState(run)
    if not all(state.is_done(step.name) for step in variant.steps if step.stage != "preflight"):
        return False
    # whether another configuration is a mistake is for whoever opens the run to say
    return not differences(saved_config(run), variant.config)
