"""What decides a stage's result: keys of the configuration, files, and the stages before it.

Two runs in which a stage has the same key would make the same of it, so that one may take over
what the other made (see ``reuse``). Knows nothing of how a stage works or where results are kept.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from solon.constitution import Constitution
from solon.trainer.config import OPERATIONAL, RunConfig, model_source
from solon.trainer.course import used
from solon.trainer.plan import PROMPTS_OF
from solon.trainer.prompts import Prompt, PromptSet
from solon.trainer.stage_names import Stage
from solon.trainer.state import StageKey
from solon.trainer.steps import ITERATED, Step

_FORMAT = 1
"""Part of every key: raise it when a stage makes something else of the same configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reads:
    """What one stage reads."""

    keys: tuple[str, ...]
    """Dotted keys of the configuration, each with all that is beneath it."""
    late: tuple[str, ...] = ()
    """Those of them that do not decide the stage's records, only what it makes of them then."""
    stages: tuple[Stage, ...] = ()
    """Stages whose results it reads: those of its own iteration, and sft's."""


READS: Mapping[Stage, Reads] = {
    # never taken over: a run measures the critic that it is about to use
    "preflight": Reads(keys=("seed", "constitution", "models.critic", "preflight")),
    "revisions": Reads(
        keys=(
            "seed",
            "constitution",
            "models.policy",
            "models.critic",
            "prompts.held_out_share",
            "prompts.red_team",
            "prompts.helpfulness",
            "revisions",
        ),
        late=(
            "revisions.train_on",
            "revisions.train_rounds",
            "revisions.helpful_share",
            "revisions.max_repetition",
        ),
    ),
    "sft": Reads(keys=("seed", "models.base_for_sft", "sft"), stages=("revisions",)),
    "preferences": Reads(
        keys=(
            "seed",
            "constitution",
            "models.judge",
            "prompts.held_out_share",
            "prompts.preferences",
            "prompts.comparisons",
            "preferences",
        ),
        late=(
            "prompts.comparisons",
            "preferences.given",
            "preferences.test_share",
            "preferences.filters.max_copies",
        ),
        stages=("sft",),
    ),
    "reward": Reads(keys=("seed", "reward"), stages=("sft", "preferences")),
    # the constitution and the judge: the judge may reward. The preferences: DPO learns from them
    "rl": Reads(
        keys=(
            "seed",
            "constitution",
            "models.judge",
            "prompts.held_out_share",
            "prompts.rl",
            # its judges may reward together
            "preferences.panel",
            "rl",
            "dpo",
        ),
        stages=("sft", "preferences", "reward"),
    ),
    # its answers belong to a model's weights, which each of them names: so no stages here
    "evaluate": Reads(
        keys=(
            "seed",
            "constitution",
            "models.policy",
            "models.judge",
            "prompts.held_out_share",
            "prompts.evaluation",
            # the judge that labels the pairs is the one that is measured
            "preferences.min_option_mass",
            "preferences.chain_of_thought",
            "preferences.panel",
            "evaluate",
        ),
        late=(
            "constitution",
            "models.judge",
            "preferences.min_option_mass",
            "preferences.chain_of_thought",
            "preferences.panel",
            "evaluate.judge_pairs",
            "evaluate.snapshots",
        ),
    ),
}
"""Every key that can change a result belongs to a stage, but ``iterations``, which says how many
steps there are and changes none of them; a test holds it."""


def decided_by(config: RunConfig, step: Step) -> tuple[Step, ...]:
    """The steps whose results decide this one's.

    A later iteration has all of the one before in it, by what RL left there.
    """
    last = [Step("rl", step.iteration - 1)] if step.iteration > 1 else []
    read = [one for one in READS[step.stage].stages if one in used(config)]
    return (*(step.of(one) if one in ITERATED else Step(one) for one in read), *last)


def step_key(
    step: Step,
    config: RunConfig,
    constitution: Constitution,
    prompts: Mapping[str, PromptSet],
    before: Mapping[Step, StageKey | None],
) -> StageKey | None:
    """What the step's result is decided by; None if that is not known of a step before it.

    Args:
        step: Which.
        config: The run's.
        constitution: The run's.
        prompts: At least those that the stage uses.
        before: The keys of at least the steps ``decided_by`` names.

    Raises:
        OSError: A model's files cannot be read.
    """
    reads = READS[step.stage]
    results = [before[one] for one in decided_by(config, step)]
    found = _values(step.stage, config, constitution, prompts)
    values = _without(found, reads.late)
    records = _digest([_FORMAT, step.name, values, [key and key.result for key in results]])
    if None in results:
        return None
    late = {key: found.get(key) or _value(key, config, constitution) for key in reads.late}
    return StageKey(records=records, result=_digest([records, late]))


def claimed(stage: Stage, key: str) -> bool:
    """Whether a dotted key of the configuration is one that the stage reads."""
    return any(_is_within(key, whole) for whole in READS[stage].keys)


def _is_within(key: str, whole: str) -> bool:
    return key == whole or key.startswith(whole + ".")


def _values(
    stage: Stage,
    config: RunConfig,
    constitution: Constitution,
    prompts: Mapping[str, PromptSet],
) -> dict[str, Any]:
    values = {
        key: _value(key, config, constitution)
        for key in READS[stage].keys
        if not key.startswith("prompts.")
    }
    drawn = {f"prompts.{key}": _prompts_digest(prompts[key]) for key in PROMPTS_OF[stage]}
    return values | drawn


def _value(key: str, config: RunConfig, constitution: Constitution) -> Any:
    """What a key stands for: the content of what it names, or its value."""
    if key == "constitution":
        return constitution.digest
    if key.startswith("models."):
        return model_digest(getattr(config.models, key.removeprefix("models.")))
    value: Any = config.model_dump(mode="json", exclude=OPERATIONAL)
    if panel := value["preferences"]["panel"]:
        panel["judges"] = {name: model_digest(model) for name, model in panel["judges"].items()}
    for part in key.split("."):
        value = value[part]
    return value


def _without(values: Mapping[str, Any], late: Iterable[str]) -> dict[str, Any]:
    kept = copy.deepcopy({key: value for key, value in values.items() if key not in late})
    for key in late:
        holder: Any = kept
        *path, name = key.split(".")
        for part in path:
            holder = holder.get(part, {})
        holder.pop(name, None)
    return kept


def model_digest(name: str) -> str:
    """SHA-256 (hex) over a model directory's files; of what is not here, the name itself.

    Raises:
        OSError: A file cannot be read.
    """
    folder = Path(model_source(name))
    if not folder.is_absolute() or not folder.is_dir():
        return name
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return _files_digest(tuple(files), tuple(states))


@lru_cache(maxsize=16)
def _files_digest(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> str:
    """``states`` (sizes and times) tell a file that was replaced since."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _prompts_digest(prompts: PromptSet) -> str:
    # that of a list, which may be too long for memory
    digest = hashlib.sha256(b"[")
    for number, prompt in enumerate(prompts.prompts):
        digest.update(b"," * bool(number) + _canonical(_prompt_values(prompt)))
    digest.update(b"]")
    return digest.hexdigest()


def _prompt_values(prompt: Prompt) -> list[Any]:
    pairs = [(pair.chosen, pair.rejected) for pair in prompt.pairs]
    return [prompt.id, prompt.conversation.as_dicts(), pairs, prompt.judged_by]


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
