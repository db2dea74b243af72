"""What a run is going to do: the prompts of every stage, and whether what it names is there.

Knows nothing of how it is done, nor of what it will cost (see ``forecast``).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from solon.constitution import Constitution, lint, tagged
from solon.trainer.config import RunConfig, model_source
from solon.trainer.errors import ConfigError, PromptError
from solon.trainer.prompt_settings import SANDBOX_KINDS, PromptSource
from solon.trainer.prompts import PromptSet, load_prompts
from solon.trainer.roster import roster
from solon.trainer.splits import divide
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.stages.settings import ServiceConfig

EVALUATION_KEYS = tuple(f"evaluation.{kind}" for kind in SANDBOX_KINDS)
PROMPTS_OF: Mapping[Stage, tuple[str, ...]] = {
    "preflight": (),
    "revisions": ("red_team", "helpfulness"),
    "sft": (),
    "preferences": ("preferences", "comparisons"),
    "reward": (),
    "rl": ("rl",),
    "evaluate": EVALUATION_KEYS,
}
"""Stage -> keys of ``prompts`` that it uses."""


def read_prompts(config: RunConfig, stages: Collection[Stage]) -> dict[str, PromptSet]:
    """The prompts that the stages use, by key; none is both trained on and evaluated on.

    All sources of the run are read whatever the stages, since what is left to one depends on the
    others, and must not on which stages are run together.

    Raises:
        PromptError: Sources are missing or cannot be read, or ``splits.divide`` refuses; a line
            for each problem.
    """
    found, problems = try_prompts(config, stages)
    if problems:
        raise PromptError("\n".join(problems))
    return found


def try_prompts(
    config: RunConfig, stages: Collection[Stage]
) -> tuple[dict[str, PromptSet], list[str]]:
    """The prompts that the stages use, by key; or none, and all that is wrong."""
    problems = _missing_sources(config, stages)
    found: dict[str, PromptSet] = {}
    for key in (key for of in PROMPTS_OF.values() for key in of):
        try:
            found[key] = load_prompts(
                sources_of(config, key),
                split="eval" if key in EVALUATION_KEYS else "train",
                seed=config.seed,
                purpose=key,
            )
            if key == "comparisons":
                _require_pairs(found[key])
        except PromptError as error:
            problems.append(str(error))
    if problems:
        return {}, list(dict.fromkeys(problems))
    try:
        divided = divide(
            {key: of for key, of in found.items() if key not in EVALUATION_KEYS},
            {key: found[key] for key in EVALUATION_KEYS},
            held_out_share=config.prompts.held_out_share,
        )
    except PromptError as error:
        return {}, [str(error)]
    wanted = (key for stage in STAGES if stage in stages for key in PROMPTS_OF[stage])
    return {key: divided[key] for key in wanted}, []


def _missing_sources(config: RunConfig, stages: Collection[Stage]) -> list[str]:
    """A stage without prompts is a mistake that is better noticed before the others have run."""
    needed = {
        "revisions": ("red_team", ("red_team",)),
        "preferences": ("preferences", ("preferences",)),
        "rl": ("rl", ("rl",)),
        "evaluate": ("evaluation", EVALUATION_KEYS),
    }
    if config.preferences.source == "revisions":
        del needed["preferences"]
    return [
        f"prompts.{name}: expected at least one source, which the stage {stage} needs; got none"
        for stage, (name, keys) in needed.items()
        if stage in stages and not any(sources_of(config, key) for key in keys)
    ]


def _require_pairs(comparisons: PromptSet) -> None:
    for prompt in comparisons.prompts:
        if not prompt.pairs:
            raise PromptError(
                f"prompts.comparisons: {prompt.source}: {prompt.row}: expected a better and a "
                "worse response beside the prompt, got none; expected prompt, chosen and rejected, "
                "or another format that has pairs"
            )


def sources_of(config: RunConfig, key: str) -> tuple[PromptSource, ...]:
    """The sources of one key; the RL phase uses the preferences' if it has none."""
    prompts = config.prompts
    if key == "rl":
        return prompts.rl or prompts.preferences
    by_key: dict[str, tuple[PromptSource, ...]] = {
        "red_team": prompts.red_team,
        "helpfulness": prompts.helpfulness,
        "preferences": prompts.preferences,
        "comparisons": prompts.comparisons,
        "evaluation.harmful": prompts.evaluation.harmful,
        "evaluation.benign": prompts.evaluation.benign,
        "evaluation.sounds_dangerous": prompts.evaluation.sounds_dangerous,
    }
    return by_key[key]


def check_inputs(config: RunConfig, constitution: Constitution) -> None:
    """Hold that what the configuration names is there and is enough.

    Raises:
        ConfigError: A model's directory is missing, or the constitution lacks principles, or what
            a service demands of its callers is not there.
    """
    if problems := input_problems(config, constitution):
        raise ConfigError("\n".join(problems))


def input_problems(config: RunConfig, constitution: Constitution) -> list[str]:
    """A sentence for everything that ``check_inputs`` would refuse."""
    problems = _missing_credentials(config)
    models = {f"models.{role}": name for role, name in config.models.model_dump().items()}
    places = list(roster(config))
    models |= {place.model_key: place.model for place in places}
    # an endpoint has names of its own, which may look like paths
    behind = {place.model_key for place in places if place.service.is_endpoint}
    for key, name in models.items():
        path = Path(model_source(name))
        if key not in behind and path.is_absolute() and not (path / "config.json").is_file():
            problems.append(
                f"{key}: expected a directory in Hugging Face format or a hub name, "
                f"but {str(path)!r} has no config.json"
            )
    usable = len(constitution.for_comparison)
    wanted = config.preferences.principles
    if not constitution.for_revision:
        problems.append(
            f"constitution: {config.constitution!r} has no principle with a revision_request"
        )
    if not usable:
        problems.append(
            f"constitution: {config.constitution!r} has no principle with a comparison_instruction"
        )
    elif wanted != "all" and wanted > usable:
        problems.append(
            f"preferences.principles: expected 1 to {usable}, the constitution's principles with a "
            f"comparison_instruction, or all; got {wanted!r}"
        )
    else:
        problems += _missing_tags(config, constitution)
    if config.rl.reward.judge and not constitution.for_scoring:
        problems.append(
            f"rl.reward.judge: expected 0, since {config.constitution!r} has no principle with an "
            f"absolute_question for the judge to score by; got {config.rl.reward.judge!r}"
        )
    revising = len(constitution.for_revision)
    if config.revisions.principles != "anew" and config.revisions.rounds > revising > 0:
        problems.append(
            f"revisions.rounds: expected 1 to {revising}, the constitution's principles with a "
            f"revision_request, since revisions.principles is {config.revisions.principles!r} and "
            f"none comes twice; got {config.revisions.rounds!r}"
        )
    known = [p.id for p in constitution.for_assessment]
    problems += [
        f"preflight.principles: expected ids of the constitution's principles with a "
        f"critique_request or an absolute_question, got {name!r}; there are {', '.join(known)}"
        for name in config.preflight.principles
        if name not in known
    ]
    return problems


def _missing_tags(config: RunConfig, constitution: Constitution) -> list[str]:
    wanted = config.preferences.principles
    least = 1 if wanted == "all" else wanted
    problems = []
    for index, source in enumerate(config.prompts.preferences):
        usable = len(tagged(constitution.for_comparison, source.judged_by))
        if source.judged_by and usable < least:
            problems.append(
                f"prompts.preferences[{index}].judged_by: expected tags of at least {least} "
                f"principles with a comparison_instruction, got {list(source.judged_by)!r}, which "
                f"{usable} of {config.constitution!r} have"
            )
    return problems


def _missing_credentials(config: RunConfig) -> list[str]:
    problems = []
    for place in roster(config):
        key, service = place.key, place.service
        name = service.token_env
        if name is not None and not os.environ.get(name):
            problems.append(
                f"{key}.token_env: the environment variable {name!r} is not set; put "
                "the service's token into it, or remove token_env"
            )
        files = service.tls.model_dump(exclude={"server_name"}) if service.tls else {}
        problems += [
            f"{key}.tls.{file}: there is no file {path!r}"
            for file, path in files.items()
            if path is not None and not Path(path).is_file()
        ]
        problems += _missing_of_endpoint(f"{key}.engine_options", service)
    return problems


def _missing_of_endpoint(key: str, service: ServiceConfig) -> Iterator[str]:
    """What the openai engine of a service that the run starts would refuse to start without."""
    if not service.is_endpoint:
        return
    options = service.engine_options
    if not options.get("base_url"):
        yield (
            f"{key}.base_url: expected the endpoint's URL up to /chat/completions, such as "
            "http://localhost:8000/v1"
        )
    name, file = options.get("api_key_env"), options.get("api_key_file")
    if name and not os.environ.get(name):
        yield f"{key}.api_key_env: the environment variable {name!r} is not set"
    if file and not Path(file).is_file():
        yield f"{key}.api_key_file: there is no file {file!r}"


def advice(constitution: Constitution) -> list[str]:
    """A line for everything in the constitution that is allowed and likely to train badly."""
    return [
        f"warning: constitution {constitution.name}: {found.key}: {found.text}"
        for found in lint(constitution)
    ]
