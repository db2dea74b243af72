"""A comparison as the configuration asks for it, and its row. Knows nothing of pairs' uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from solon.chat import Conversation
from solon.client import ChainOfThought, PrincipleSample
from solon.constitution import Principle, derive_seed, draw
from solon.trainer.fleet import Fleet
from solon.trainer.stages import rows
from solon.trainer.stages.preference_settings import PreferencesConfig
from solon.trainer.stages.rows import Row


async def compare(
    fleet: Fleet,
    config: PreferencesConfig,
    conversation: Conversation,
    responses: tuple[str, str],
    *,
    places: tuple[int, int],
    seed: int,
    among: Sequence[Principle] = (),
) -> Row:
    """Have the judge, or the panel, compare two responses.

    Args:
        fleet: Has the judge, or the judges of the panel.
        config: In which manner, by how many principles.
        conversation: What was asked.
        responses: A and B.
        places: Of the two among the prompt's responses.
        seed: Of the draws of principles and chains.
        among: The principles to draw from, or to take all of. Empty: the constitution's.

    Returns:
        A row of ``schemas.COMPARISON``.

    Raises:
        SolonError: The call of the only judge failed.
    """
    count, thought = config.principles, config.chain_of_thought
    principle_seed = None if count == "all" else derive_seed(seed, "principles", *places)
    chain_seed = None if thought is None else derive_seed(seed, "chains", *places)
    asked: dict[str, Any] = {
        "constitution": fleet.constitution("judge"),
        **_principles(count, principle_seed, among),
        "both_orders": config.both_orders,
        "min_option_mass": config.least_option_mass,
        "chain_of_thought": _thought(config, chain_seed),
    }
    seeds: dict[str, Any] = {"principle_seed": principle_seed, "chain_seed": chain_seed}
    if config.panel is None:
        made = await fleet.judge().compare(conversation, *responses, **asked)
        return rows.comparison(*places, made, **seeds)
    together = await fleet.panel(config.panel).compare(conversation, *responses, **asked)
    models = {name: one.info.model for name, one in fleet.judges().items()}
    return rows.panel_comparison(*places, together, models, **seeds)


async def rank(
    fleet: Fleet,
    config: PreferencesConfig,
    conversation: Conversation,
    responses: Sequence[str],
    *,
    seed: int,
    among: Sequence[Principle] = (),
) -> list[tuple[int, float | None]]:
    """Have the only judge order responses by as few comparisons as settle it.

    Args:
        fleet: Has the judge.
        config: In which manner, by how many principles.
        conversation: What was asked.
        responses: 2 to 16.
        seed: Of the draw of principles.
        among: As in ``compare``.

    Returns:
        Place among the responses and strength, best first; no strength without a verdict.

    Raises:
        SolonError: The call failed.
    """
    count = config.principles
    principle_seed = None if count == "all" else derive_seed(seed, "principles", "rank")
    made = await fleet.judge().rank(
        conversation,
        responses,
        constitution=fleet.constitution("judge"),
        both_orders=config.both_orders,
        min_option_mass=config.min_option_mass,
        every_pair=False,
        **_principles(count, principle_seed, among),
    )
    return [(one.index, one.strength) for one in made.ranking]


def _principles(
    count: int | Literal["all"], seed: int | None, among: Sequence[Principle]
) -> dict[str, Any]:
    """A client's keywords."""
    if seed is None or count == "all":
        return {"principle_ids": [one.id for one in among]} if among else {}
    if among:
        return {"principle_ids": [one.id for one in draw(among, count, seed)]}
    return {"sample": PrincipleSample(count, seed)}


def settings(config: PreferencesConfig) -> Row:
    """As ``schemas.JUDGE_SETTINGS``."""
    thought = config.chain_of_thought
    return {
        "both_orders": config.both_orders,
        "min_option_mass": config.least_option_mass,
        "chains": thought and thought.chains,
        "clamp": thought and thought.clamp,
        "chain_sampling": thought and thought.sampling.model_dump(),
    }


def _thought(config: PreferencesConfig, seed: int | None) -> ChainOfThought | None:
    thought = config.chain_of_thought
    if thought is None or seed is None:
        return None
    return ChainOfThought(
        chains=thought.chains,
        clamp=thought.clamp,
        sampling=rows.sampling(thought.sampling, seed),
        return_chains=True,
    )
