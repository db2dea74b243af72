"""What a run is going to do: the prompts of every stage, and what that will cost.

Knows nothing of how it is done.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from solon.constitution import Constitution, lint, tagged
from solon.trainer.config import RunConfig, model_source
from solon.trainer.errors import ConfigError, PromptError
from solon.trainer.labelled import load_labelled
from solon.trainer.prompt_settings import SANDBOX_KINDS, PromptSource
from solon.trainer.prompts import PromptSet, load_prompts
from solon.trainer.roster import roster
from solon.trainer.splits import divide
from solon.trainer.stages.preflight_settings import asked_by
from solon.trainer.state import STAGES, Stage

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
        PromptError: A source is missing or cannot be read, or ``splits.divide`` refuses.
    """
    _require_sources(config, stages)
    found = {
        key: load_prompts(
            sources_of(config, key),
            split="eval" if key in EVALUATION_KEYS else "train",
            seed=config.seed,
            purpose=key,
        )
        for of in PROMPTS_OF.values()
        for key in of
    }
    _require_pairs(found["comparisons"])
    divided = divide(
        {key: of for key, of in found.items() if key not in EVALUATION_KEYS},
        {key: found[key] for key in EVALUATION_KEYS},
        held_out_share=config.prompts.held_out_share,
    )
    return {key: divided[key] for stage in STAGES if stage in stages for key in PROMPTS_OF[stage]}


def _require_sources(config: RunConfig, stages: Collection[Stage]) -> None:
    """A stage without prompts is a mistake that is better noticed before the others have run."""
    needed = {
        "revisions": ("red_team", ("red_team",)),
        "preferences": ("preferences", ("preferences",)),
        "rl": ("rl", ("rl",)),
        "evaluate": ("evaluation", EVALUATION_KEYS),
    }
    if config.preferences.source == "revisions":
        del needed["preferences"]
    for stage, (name, keys) in needed.items():
        if stage in stages and not any(sources_of(config, key) for key in keys):
            raise PromptError(
                f"prompts.{name}: expected at least one source, which the stage {stage} needs; "
                "got none"
            )


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
    problems = _missing_credentials(config)
    models = {f"models.{role}": name for role, name in config.models.model_dump().items()}
    models |= {place.model_key: place.model for place in roster(config)}
    for key, name in models.items():
        path = Path(model_source(name))
        if path.is_absolute() and not (path / "config.json").is_file():
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
    if config.rl.reward.judge and config.preferences.panel is not None:
        problems.append(
            "rl.reward.judge: expected 0 beside preferences.panel, since one judge scores and a "
            f"panel only compares; got {config.rl.reward.judge!r}"
        )
    if config.rl.reward.judge and not constitution.for_scoring:
        problems.append(
            f"rl.reward.judge: expected 0, since {config.constitution!r} has no principle with an "
            f"absolute_question for the judge to score by; got {config.rl.reward.judge!r}"
        )
    known = [p.id for p in constitution.for_assessment]
    problems += [
        f"preflight.principles: expected ids of the constitution's principles with a "
        f"critique_request or an absolute_question, got {name!r}; there are {', '.join(known)}"
        for name in config.preflight.principles
        if name not in known
    ]
    if problems:
        raise ConfigError("\n".join(problems))


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
    return problems


def advice(constitution: Constitution) -> list[str]:
    """A line for everything in the constitution that is allowed and likely to train badly."""
    return [
        f"warning: constitution {constitution.name}: {found.key}: {found.text}"
        for found in lint(constitution)
    ]


def estimate(
    config: RunConfig,
    constitution: Constitution,
    prompts: Mapping[str, PromptSet],
    stages: Collection[Stage],
) -> list[str]:
    """A line a stage: prompts and model calls."""
    count = {key: len(found.prompts) for key, found in prompts.items()}
    lines = []
    if "preflight" in stages:
        lines.append(_preflight(config, constitution))
    if "revisions" in stages:
        calls = count["red_team"] * _calls_of_chain(config)
        calls += count["helpfulness"] * config.revisions.helpful_samples
        lines.append(
            f"revisions: {count['red_team']:,} red-team and {count['helpfulness']:,} helpfulness "
            f"prompts, {calls:,} generations"
        )
    if "preferences" in stages:
        source = config.preferences.source
        sampled = 0 if source == "revisions" else count["preferences"]
        # what the revisions stage made is known to it alone, once it is done
        revised = 0 if source == "samples" else count.get("red_team", 0)
        made, judged = _calls_of_preferences(config, constitution, sampled, revised)
        lines.append(
            f"preferences: {sampled + revised:,} prompts, {made:,} generations, up to "
            f"{judged:,} judgements"
        )
    if "rl" in stages:
        lines.append(f"rl: {count['rl']:,} prompts, {config.rl.episodes:,} episodes")
    if "evaluate" in stages:
        held_out = sum(count[key] for key in EVALUATION_KEYS)
        lines.append(f"evaluate: {held_out:,} held-out prompts for every model")
    return lines + _left_out(prompts)


def _left_out(prompts: Mapping[str, PromptSet]) -> list[str]:
    """A line for every reason for which prompts are not used."""
    held = sum(found.divided for key, found in prompts.items() if key not in EVALUATION_KEYS)
    trained = sum(found.divided for key, found in prompts.items() if key in EVALUATION_KEYS)
    said = {
        "duplicate prompts are left out": sum(found.duplicates for found in prompts.values()),
        "rows without a prompt are left out": sum(found.unusable for found in prompts.values()),
        "prompts for training are held out, since evaluation has them": held,
        "prompts for evaluation are left out, since training has them": trained,
    }
    return [f"{count:,} {what}" for what, count in said.items() if count]


def _preflight(config: RunConfig, constitution: Constitution) -> str:
    chosen = config.preflight
    known = load_labelled(chosen.source, count=chosen.count, seed=config.seed)
    asked = len(asked_by(constitution, chosen))
    return f"preflight: {len(known):,} labelled responses by {asked:,} principles"


def _calls_of_chain(config: RunConfig) -> int:
    per_round = 1 if config.revisions.skip_critique else 2
    return 1 + config.revisions.rounds * per_round


def _calls_of_preferences(
    config: RunConfig, constitution: Constitution, sampled: int, revised: int
) -> tuple[int, int]:
    chosen = config.preferences
    everything = len(constitution.for_comparison)
    principles = everything if chosen.principles == "all" else chosen.principles
    pairs = sampled * chosen.pairs + revised
    judged = pairs * principles * (2 if chosen.both_orders else 1)
    judged *= len(chosen.panel.judges) if chosen.panel else 1
    chains = judged * chosen.chain_of_thought.chains if chosen.chain_of_thought else 0
    return sampled * chosen.responses + chains, chains or judged
