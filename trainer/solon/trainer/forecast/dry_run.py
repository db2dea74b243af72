"""Everything that can be known of a run before it starts. Starts nothing, writes nothing.

Knows nothing of the command line or of how the result is shown (see ``show``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from solon.constitution import Constitution, ConstitutionError, load, resolve
from solon.trainer.config import RunConfig
from solon.trainer.course import roles, stages_of, steps_of
from solon.trainer.errors import ConfigError
from solon.trainer.forecast import surroundings
from solon.trainer.forecast.budget import Budget, budget, lacking, learning, loading, overfull
from solon.trainer.forecast.charging import charges
from solon.trainer.forecast.counting import workload
from solon.trainer.forecast.hardware import GIB, Accelerator
from solon.trainer.forecast.lengths import Tokens
from solon.trainer.forecast.models import Found, Model, describe, find, problems_of
from solon.trainer.forecast.surroundings import Seen
from solon.trainer.forecast.workload import Workload, summary
from solon.trainer.plan import advice, input_problems, try_prompts
from solon.trainer.prompts import PromptSet
from solon.trainer.roster import Place, roster
from solon.trainer.stage_names import Stage
from solon.trainer.steps import Step
from solon.trainer.training import LoraSettings

_BASE = "base_for_sft"
"""Stands among the places for the model that training starts from."""
_BYTES_A_TOKEN = 6
"""Of records, compressed: a token's text, and what is kept beside it."""
_BYTES_AN_EPISODE = 128
"""Of RL's records: an episode's figures, without its response."""
_BYTES_A_SCORE = 64
"""Of RL's records: what a judge says of an episode by one principle."""
_CHECKPOINTS = 3
"""Of a stage that are on disk at once: the last two, and one that is being written."""
_LEARNED = 12
"""Bytes of a checkpoint for each parameter that learns: float32 and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What was found."""

    config: RunConfig
    gpus: tuple[Accelerator, ...]
    constitution: Constitution | None
    models: Mapping[str, Model]
    """Service, or base_for_sft -> its measures, for those that are on this machine."""
    work: Workload | None
    budget: Budget | None
    facts: Mapping[str, str]
    problems: tuple[str, ...]
    """What keeps the run from its end: key, value and fix, a sentence each."""
    notes: tuple[str, ...]
    """What is worth knowing before it starts."""


def summarised(
    config: RunConfig,
    constitution: Constitution,
    prompts: Mapping[str, PromptSet],
    steps: Collection[Step],
) -> list[str]:
    """A line a stage of what a run will ask for, as it says when it begins."""
    tokens = Tokens(find(config.models.policy).folder)
    return summary(workload(config, constitution, prompts, steps, tokens))


async def dry_run(config: RunConfig, gpus: Sequence[Accelerator], *, resume: bool) -> DryRun:
    """Check all that a run needs, and estimate what it costs.

    Args:
        config: The run's; ``run_dir`` is set.
        gpus: On which accelerators; none: on the CPU.
        resume: Whether the run may be there already.
    """
    problems: list[str] = []
    notes: list[str] = []
    constitution = _constitution(config, problems, notes)
    stages = stages_of(config)
    places = list(roster(config, {role for one in stages for role in roles(config, one)}))
    found = _found(config, places)
    models = _models(found, problems)
    prompts, unread = try_prompts(config, stages)
    problems += _untargeted(config, models)
    problems += unread
    work = estimated = None
    charged = Seen(facts={})
    if constitution is not None and not unread:
        tokens = Tokens(find(config.models.policy).folder)
        work = workload(config, constitution, prompts, steps_of(config), tokens)
        estimated = budget(config, work, models, gpus)
        problems += _too_long(config, work, models)
        problems += lacking(config, work, gpus) or overfull(estimated, gpus)
        charged = charges(places, work)
        notes += loading(config, work, models, gpus)
        notes += [f"not estimated: {what}" for what in estimated.unknown]
        if not gpus:
            notes.append(_machine(estimated))
    sizes = {model.name: model.stored_bytes for model in models.values()}
    seen = [
        charged,
        await surroundings.services(config, places),
        surroundings.run_directory(config, needed=_written(config, models, work), resume=resume),
        surroundings.done_before(config),
        surroundings.downloads({key: one for _, key, one in found}, sizes),
    ]
    return DryRun(
        config=config,
        gpus=tuple(gpus),
        constitution=constitution,
        models=models,
        work=work,
        budget=estimated,
        facts=_facts(seen),
        problems=tuple(dict.fromkeys([*problems, *(p for one in seen for p in one.problems)])),
        notes=(*notes, *(note for one in seen for note in one.notes)),
    )


def _facts(seen: Sequence[Seen]) -> dict[str, str]:
    return {name: fact for one in seen for name, fact in one.facts.items()}


def _constitution(config: RunConfig, problems: list[str], notes: list[str]) -> Constitution | None:
    try:
        constitution = load(resolve(config.constitution))
    except ConstitutionError as error:
        problems.append(str(error))
        return None
    problems += input_problems(config, constitution)
    notes += advice(constitution)
    return constitution


def _found(config: RunConfig, places: Collection[Place]) -> list[tuple[str, str, Found]]:
    """(name of the place, key, where it is) of the models that this machine loads."""
    loaded = [
        (place.name, place.model_key, find(place.model))
        for place in places
        if place.service.loads_model
    ]
    return [*loaded, (_BASE, "models.base_for_sft", find(config.models.base_for_sft))]


def _models(found: Collection[tuple[str, str, Found]], problems: list[str]) -> dict[str, Model]:
    """Measures of the models that are here, by place; one that several share is read once."""
    by_name: dict[str, Model] = {}
    models = {}
    for place, key, one in found:
        try:
            wrong = problems_of(one, key)
            if one.folder is not None and (one.folder / "config.json").is_file():
                by_name[one.name] = by_name.get(one.name) or describe(one)
                models[place] = by_name[one.name]
        except ConfigError as error:
            wrong = [f"{key}: {error}"]
        problems += wrong
    return models


def _length_key(config: RunConfig, stage: Stage) -> str:
    """What bounds the sequences of a training stage."""
    if stage != "rl":
        return f"{stage}.max_length"
    return "dpo.max_length" if config.rl.algorithm == "dpo" else "rl.max_response_tokens"


def _too_long(config: RunConfig, work: Workload, models: Mapping[str, Model]) -> list[str]:
    """Sequences that do not fit a model's context."""
    keys = {
        ("preflight", "critic"): "preflight.source",
        ("revisions", "policy"): "revisions.response.max_tokens",
        ("revisions", "critic"): "revisions.critic.max_tokens",
        ("preferences", "policy"): "preferences.sampling.max_tokens",
        ("preferences", "judge"): "preferences.sampling.max_tokens",
        ("evaluate", "policy"): "evaluate.sampling.max_tokens",
        ("evaluate", "judge"): "evaluate.sampling.max_tokens",
        ("rl", "judge"): "rl.max_response_tokens",
    }
    asked: list[tuple[str, str, int]] = [
        (keys[one.stage, one.role], one.role, one.longest) for one in work.calls
    ]
    asked += [
        (
            _length_key(config, one.stage),
            _BASE,
            one.longest,
        )
        for one in work.trainings
    ]
    problems = []
    for key, role, longest in asked:
        context = models[role].context if role in models else None
        if context is not None and longest > context:
            problems.append(
                f"{key}: the longest sequence has about {longest:,} tokens, and the context of "
                f"models.{role} ({models[role].name!r}) {context:,}: lower {key}, or shorten "
                "prompts or exemplars"
            )
    return problems


def _untargeted(config: RunConfig, models: Mapping[str, Model]) -> list[str]:
    """Adapters on layers that the model does not have."""
    base, problems = models.get(_BASE), []
    for key in ("sft", "reward", "rl", "dpo") if base is not None else ():
        lora: LoraSettings | None = getattr(config, key).lora
        if lora is None or lora.target_modules == "all-linear" or base is None:
            continue
        if not base.adapted(lora.rank, lora.target_modules):
            problems.append(
                f"{key}.lora.target_modules: expected all-linear or the names of layers of "
                f"models.{_BASE} ({base.name!r}), got {lora.target_modules!r}"
            )
    return problems


def _machine(found: Budget) -> str:
    stage, needed = found.most(0) if found.uses else (None, 0)
    has = surroundings.machine_memory()
    return (
        f"no accelerator: everything runs on the CPU, and {stage} needs most memory, about "
        f"{needed / GIB:.1f} GiB of {has / GIB:.1f}; time is not estimated without --gpus"
    )


def _written(config: RunConfig, models: Mapping[str, Model], work: Workload | None) -> int:
    """Bytes of a run directory: the models that are trained, the largest checkpoints, records."""
    base = models.get(_BASE)
    sizes, checkpoints = 0, 0
    for stage in (step.stage for step in steps_of(config) if base is not None):
        rl = config.dpo if config.rl.algorithm == "dpo" else config.rl
        settings = {"sft": config.sft, "reward": config.reward, "rl": rl}.get(stage)
        if settings is not None and base is not None:
            how = learning(base, settings)
            published = 2 if stage == "reward" and config.reward.test_model else 1
            sizes += published * base.parameters * how.compute
            networks = 2 if stage == "rl" and config.rl.has_value_network else 1
            checkpoints = max(checkpoints, networks * how.trainable * _LEARNED * _CHECKPOINTS)
    return sizes + checkpoints + (0 if work is None else _recorded(config, work))


def _recorded(config: RunConfig, work: Workload) -> int:
    """Bytes of the records: what services are asked and answer, and the episodes of RL."""
    asked = [one for one in work.calls if one.stage != "rl"]
    scores = sum(one.calls for one in work.calls if one.stage == "rl")
    sampled = [one for one in work.trainings if one.sampled_tokens]
    tokens = sum(one.prompt_tokens + one.completion_tokens for one in asked)
    episodes = sum(one.sampled_tokens for one in sampled) * _BYTES_A_TOKEN
    episodes += sum(one.records for one in sampled) * _BYTES_AN_EPISODE + scores * _BYTES_A_SCORE
    return tokens * _BYTES_A_TOKEN + round(episodes * config.rl.kept_episodes)


def described(found: DryRun) -> dict[str, Any]:
    """The whole as JSON: the resolved configuration, estimates, problems and notes."""
    work, estimated = found.work, found.budget
    return {
        "config": found.config.model_dump(mode="json"),
        "constitution": None
        if found.constitution is None
        else {"name": found.constitution.name, "digest": found.constitution.digest},
        "models": {
            role: {
                "name": model.name,
                "parameters": model.parameters,
                "context": model.context,
                "bytes": model.stored_bytes,
            }
            for role, model in found.models.items()
        },
        "gpus": [asdict(gpu) for gpu in found.gpus],
        "prompts": {} if work is None else dict(work.prompts),
        "calls": [] if work is None else [asdict(one) for one in work.calls],
        "training": [] if work is None else [asdict(one) for one in work.trainings],
        "memory": []
        if estimated is None
        else [{**asdict(use), "total": use.total} for use in estimated.uses],
        "seconds": {} if estimated is None else dict(estimated.seconds),
        "facts": dict(found.facts),
        "problems": list(found.problems),
        "notes": list(found.notes),
    }
