"""What a run would meet: services that answer or do not, disks with or without space, memory.

Looks and touches nothing. Knows nothing of how a run's needs are estimated.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from solon.trainer.config import RunConfig
from solon.trainer.course import steps_of
from solon.trainer.errors import RunDirectoryError, ServiceError, StoreError
from solon.trainer.fleet import look
from solon.trainer.forecast.hardware import GIB
from solon.trainer.forecast.models import Found
from solon.trainer.roster import Place
from solon.trainer.session import check_place
from solon.trainer.stage_names import STAGES
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory

_PATIENCE = 5.0
"""Seconds in which a service has to answer, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What was looked at: what it is, what keeps a run from starting, what is worth knowing."""

    facts: Mapping[str, str]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


async def services(config: RunConfig, places: Collection[Place]) -> Seen:
    """Ask each running service what it is; all at the same time."""
    addressed = [place for place in places if place.service.address is not None]
    patience = min(_PATIENCE, config.services.start_timeout)
    answers = await asyncio.gather(
        *(look(config, place, patience=patience) for place in addressed), return_exceptions=True
    )
    facts = {
        place.name: f"started by the run ({place.service.engine})"
        for place in places
        if place not in addressed
    }
    problems = [
        f"{place.key}.engine: 'openai' cannot replace the weights of a model behind an endpoint, "
        "which a run does after each training; use another engine"
        for place in places
        if place.role == "policy" and place.service.is_endpoint
    ]
    notes = []
    for place, info in zip(addressed, answers, strict=True):
        if isinstance(info, ServiceError):
            problems.append(str(info))
            continue
        if isinstance(info, BaseException):
            raise info
        address = place.service.address
        facts[place.name] = f"{info.model} on {info.engine} at {address}"
        if place.role == "policy" and not info.supports_weight_update:
            problems.append(
                f"services.policy: the engine {info.engine!r} of {address!r} cannot replace its "
                "weights, which a run does after each training; use another engine"
            )
        if info.model != place.model:
            notes.append(
                f"{place.key}: runs {info.model!r}; {place.model_key} says {place.model!r}, which "
                "is not used"
            )
    return Seen(facts=facts, problems=tuple(problems), notes=tuple(notes))


def run_directory(config: RunConfig, *, needed: int, resume: bool) -> Seen:
    """Whether a run may be made there, and has the space for what it writes.

    Args:
        config: The run's; ``run_dir`` is set.
        needed: Bytes that the run is estimated to write.
        resume: Whether one may be there.
    """
    assert config.run_dir is not None, "load_config sets it"
    try:
        run = RunDirectory(config.run_dir)
        check_place(run, resume=resume)
        folder = run.local
    except (RunDirectoryError, StoreError) as error:
        return Seen(facts={}, problems=(str(error),))
    free, place = _free(folder)
    facts = {"disk": f"{needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free at {place}"}
    problems = []
    if not os.access(place, os.W_OK):
        problems.append(f"run_dir: {place} is not writable: choose another with --run")
    if needed > free:
        problems.append(
            f"run_dir: the run writes about {needed / GIB:.1f} GiB, and {place} has "
            f"{free / GIB:.1f} GiB free: free some space, or choose another with --run"
        )
    return Seen(facts=facts, problems=tuple(problems))


def done_before(config: RunConfig) -> Seen:
    """Stages of a run that are done, and how long they really took: what is left is shorter."""
    assert config.run_dir is not None, "load_config sets it"
    try:
        state = RunState(RunDirectory(config.run_dir))
    except (RunDirectoryError, StoreError) as error:
        return Seen(facts={}, problems=(str(error),))
    done = [step.name for step in steps_of(config, STAGES) if state.is_done(step.name)]
    notes = [f"{name}: done before, in {state.seconds(name):,.0f} s" for name in done]
    return Seen(facts={}, notes=tuple(notes))


def downloads(found: Mapping[str, Found], sizes: Mapping[str, int]) -> Seen:
    """Which models would be fetched from the hub, and whether the cache has room for them.

    Args:
        found: Key of ``models`` -> where it is.
        sizes: Name on the hub -> bytes, for those that are known.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - hub names alone need it

    missing = {one.name: key for key, one in found.items() if one.is_hub and not one.has_weights}
    if not missing:
        return Seen(facts={})
    if constants.HF_HUB_OFFLINE:
        return Seen(
            facts={},
            problems=tuple(
                f"{key}: {name!r} is not in the Hugging Face cache, and HF_HUB_OFFLINE is "
                "set: download it first, or unset the variable"
                for name, key in missing.items()
            ),
        )
    notes = [
        f"{key}: {name!r} is not in the Hugging Face cache: the run downloads it"
        + ("" if name in sizes else f". To estimate it: hf download {name} --include '*.json'")
        for name, key in missing.items()
    ]
    total = sum(sizes.get(name, 0) for name in missing)
    free, place = _free(Path(constants.HF_HUB_CACHE))
    facts = {"downloads": f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free at {place}"}
    problem = (
        f"models: downloads of {total / GIB:.1f} GiB do not fit {place}, which has "
        f"{free / GIB:.1f} GiB free: free some space, or set HF_HOME to another disk"
    )
    return Seen(facts=facts, problems=(problem,) if total > free else (), notes=tuple(notes))


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free(folder: Path) -> tuple[int, Path]:
    """Bytes that are free where a folder is, or would be; and the nearest folder that is there."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free, place
