"""The course of a run: which stages a configuration has, what each needs, which services it calls.

Knows nothing of how a stage works or whether it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from solon.trainer.config import RunConfig
from solon.trainer.launch.services import Role
from solon.trainer.state import Stage
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


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that a whole run has, in their order: without those that nothing would use."""
    unused: set[Stage] = {"preflight"} if config.preflight.mode == "skip" else set()
    if not config.rl.has_reward_model:
        unused.add("reward")
    if not (config.rl.has_reward_model or config.rl.algorithm == "dpo"):
        unused.add("preferences")
    return tuple(stage for stage in config.stages if stage not in unused)


def needs(config: RunConfig, stage: Stage) -> tuple[Stage, ...]:
    """The stages that must be done before this one."""
    if stage == "preferences":
        return _PAIRS_OF[config.preferences.source]
    if stage != "rl":
        return _NEEDS[stage]
    if config.rl.algorithm == "dpo":
        return ("sft", "preferences")
    return ("sft", "reward") if config.rl.has_reward_model else ("sft",)


def learns_by(config: RunConfig, stage: str) -> tuple[str, WeightSettings]:
    """A training stage's part of the configuration: its key, and what it says."""
    key = "dpo" if stage == "rl" and config.rl.algorithm == "dpo" else stage
    found: WeightSettings = getattr(config, key)
    return key, found


def roles(config: RunConfig, stage: Stage) -> frozenset[Role]:
    """The services that the stage calls."""
    if stage == "rl" and config.rl.reward.judge:
        return frozenset({"judge"})
    if stage == "preferences" and config.preferences.source == "revisions":
        # the responses are there already: nobody has to answer
        return frozenset({"judge"})
    return _ROLES.get(stage, frozenset())


def together(config: RunConfig, stages: Sequence[Stage]) -> Sequence[Stage]:
    """The stages, from the first on, for which services are started at once.

    All that are left; or, if they make room for training, those up to where training begins or
    ends.
    """
    if not config.services.release_for_training:
        return stages
    trains = stages[0] in TRAINING
    return tuple(takewhile(lambda stage: (stage in TRAINING) == trains, stages))
