"""The models of a run that answer prompts: the helpful one, those that stages left, snapshots.

Knows nothing of how a model was trained or of what it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from solon.trainer.config import RunConfig, model_source
from solon.trainer.course import steps_of
from solon.trainer.fleet import Weights
from solon.trainer.snapshots import snapshot_folders
from solon.trainer.stage_names import STAGES
from solon.trainer.state import RunState
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory


def answering(config: RunConfig, state: RunState) -> list[str]:
    """The models that there are, in the order in which they came to be."""
    found = ["base"]
    for step in _trained(config, state):
        found += [*_snapshots(config, state, step), step.model]
    return found


def weights_of(
    config: RunConfig, run: RunDirectory, state: RunState, *, base: str
) -> dict[str, Weights]:
    """Model -> its weights. ``base``: what the policy service calls the helpful model's."""
    found = {"base": Weights(version=base, path=model_source(config.models.policy))}
    for step in _trained(config, state):
        output = run.local / "models" / step.model
        versions = _snapshots(config, state, step)
        for name, folder in (snapshot_folders(output) if versions else {}).items():
            found[name] = Weights(version=versions[name], path=str(folder))
        version = str(state.summary(step.name)["weight_version"])
        found[step.model] = Weights(version=version, path=str(output))
    return found


def _trained(config: RunConfig, state: RunState) -> list[Step]:
    """The steps that left a model which answers prompts."""
    every = steps_of(config, STAGES)
    return [step for step in every if step.leaves_policy and state.is_done(step.name)]


def _snapshots(config: RunConfig, state: RunState, step: Step) -> Mapping[str, str]:
    """Snapshot -> its version, if they are to be measured."""
    if step.stage != "rl" or not config.evaluate.snapshots:
        return {}
    versions: dict[str, str] = state.summary(step.name).get("snapshots", {})
    return versions
