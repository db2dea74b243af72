"""The models of a run that answer prompts: the helpful one, those that stages left, snapshots.

Knows nothing of how a model was trained or of what it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from solon.trainer.config import RunConfig, model_source
from solon.trainer.fleet import Weights
from solon.trainer.snapshots import snapshot_folders
from solon.trainer.state import RunState, Stage
from solon.trainer.store import RunDirectory

_TRAINED: tuple[tuple[Stage, str], ...] = (("sft", "sl"), ("rl", "rl"))
"""Stages that leave a model which answers prompts."""


def answering(config: RunConfig, state: RunState) -> list[str]:
    """The models that there are, in the order in which they came to be."""
    found = ["base"]
    for stage, model in _TRAINED:
        if state.is_done(stage):
            found += [*_snapshots(config, state, stage), model]
    return found


def weights_of(
    config: RunConfig, run: RunDirectory, state: RunState, *, base: str
) -> dict[str, Weights]:
    """Model -> its weights. ``base``: what the policy service calls the helpful model's."""
    found = {"base": Weights(version=base, path=model_source(config.models.policy))}
    for stage, model in _TRAINED:
        if not state.is_done(stage):
            continue
        output = run.local / "models" / model
        versions = _snapshots(config, state, stage)
        for name, folder in (snapshot_folders(output) if versions else {}).items():
            found[name] = Weights(version=versions[name], path=str(folder))
        version = str(state.summary(stage)["weight_version"])
        found[model] = Weights(version=version, path=str(output))
    return found


def _snapshots(config: RunConfig, state: RunState, stage: Stage) -> Mapping[str, str]:
    """Snapshot -> its version, if they are to be measured."""
    if stage != "rl" or not config.evaluate.snapshots:
        return {}
    versions: dict[str, str] = state.summary("rl").get("snapshots", {})
    return versions
