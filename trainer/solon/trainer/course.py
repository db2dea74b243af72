"""The course of a run: its stages and iterations, what each needs, which services it calls.

Knows nothing of how a stage works or whether it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import takewhile

from solon.trainer.config import RunConfig
from solon.trainer.launch.services import Role
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.steps import ITERATED, Step
from solon.trainer.training import WeightSettings

TRAINING: tuple[Stage, ...] = ("sft", "reward", "rl")
"""Stages that train a model, in a process of their own."""
_NEEDS: Mapping[Stage, tuple[Stage, ...]] = {
    "preflight": (),
    "revisions": (),
    "sft": ("revisions",),
    "reward": ("preferences",),
    "evaluate": (),
}
_PAIRS_OF: Mapping[str, tuple[Stage, ...]] = {
    "samples": ("sft",),
    "revisions": ("revisions",),
    "both": ("revisions", "sft"),
}
"""Where pairs come from -> what the preferences stage needs."""
_ROLES: Mapping[Stage, frozenset[Role]] = {
    "preflight": frozenset({"critic"}),
    "revisions": frozenset({"policy", "critic"}),
    "preferences": frozenset({"policy", "judge"}),
    "evaluate": frozenset({"policy", "judge"}),
}


def used(config: RunConfig) -> tuple[Stage, ...]:
    """All stages in their order, but those whose result nothing would use."""
    unused: set[Stage] = {"preflight"} if config.preflight.mode == "skip" else set()
    if not config.rl.has_reward_model:
        unused.add("reward")
    if not (config.rl.has_reward_model or config.rl.algorithm == "dpo"):
        unused.add("preferences")
    return tuple(stage for stage in STAGES if stage not in unused)


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that a whole run has, in their order: of the configuration's those in use."""
    return tuple(stage for stage in used(config) if stage in config.stages)


def steps_of(
    config: RunConfig,
    stages: Collection[Stage] | None = None,
    *,
    is_done: Callable[[Step], bool] = lambda _: False,
) -> tuple[Step, ...]:
    """The steps that a run goes through, in their order.

    Of iterations after the first only what can be run: without ``rl`` among the stages, that of the
    iteration before has to be done.

    Args:
        config: The run's.
        stages: The stages that are wanted. None: all that the configuration has.
        is_done: Whether a step is done.
    """
    wanted = stages_of(config) if stages is None else stages
    found: list[Step] = []
    for step in _in_order(config, wanted):
        needed = [one for one in needs(config, step) if one.stage in ITERATED]
        if step.iteration == 1 or all(one in found or is_done(one) for one in needed):
            found.append(step)
    return tuple(found)


def _in_order(config: RunConfig, wanted: Collection[Stage]) -> Iterator[Step]:
    for stage in STAGES:
        if stage in wanted and stage not in ITERATED:
            yield Step(stage)
        if stage == ITERATED[-1]:
            for iteration in range(1, config.iterations + 1):
                yield from (Step(one, iteration) for one in ITERATED if one in wanted)


def needs(config: RunConfig, step: Step) -> tuple[Step, ...]:
    """The steps that must be done before this one."""
    if step.stage == "preferences" and step.iteration > 1:
        return (Step("rl", step.iteration - 1),)
    if step.stage == "preferences":
        return tuple(map(Step, _PAIRS_OF[config.preferences.source]))
    if step.stage != "rl":
        return tuple(map(step.of, _NEEDS[step.stage]))
    if config.rl.algorithm == "dpo":
        return (Step("sft"), step.of("preferences"))
    return (Step("sft"), step.of("reward")) if config.rl.has_reward_model else (Step("sft"),)


def learns_by(config: RunConfig, stage: str) -> tuple[str, WeightSettings]:
    """A training stage's part of the configuration: its key, and what it says."""
    key = "dpo" if stage == "rl" and config.rl.algorithm == "dpo" else stage
    found: WeightSettings = getattr(config, key)
    return key, found


def roles(config: RunConfig, stage: Stage) -> frozenset[Role]:
    """The services that the stage calls."""
    if stage == "rl":
        asked: dict[Role, bool] = {
            "judge": config.rl.reward.judge > 0,
            "policy": config.rl.is_served,
        }
        return frozenset(role for role, is_asked in asked.items() if is_asked)
    if stage == "preferences" and config.preferences.source == "revisions":
        # the responses are there already: nobody has to answer
        return frozenset({"judge"})
    return _ROLES.get(stage, frozenset())


def together(config: RunConfig, steps: Sequence[Step]) -> Sequence[Step]:
    """The steps, from the first on, for which services are started at once.

    All that are left; or, if they make room for training, those up to where training begins or
    ends.
    """
    if not config.services.release_for_training:
        return steps
    trains = steps[0].stage in TRAINING
    return tuple(takewhile(lambda step: (step.stage in TRAINING) == trains, steps))
