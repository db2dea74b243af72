"""What a run asks of its models, in figures: calls and tokens by stage and role; what it trains on.

How long a model's answers will be, nobody knows, so that completion tokens have two figures: the
most there can be, and the expected, at ``EXPECTED_SHARE`` of the limits. Knows nothing of how they
are counted (see ``counting``), of memory, time or hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from solon.trainer.launch.local import Role
from solon.trainer.stage_names import Stage

EXPECTED_SHARE = 0.5
"""Of ``max_tokens``: how long an answer is expected to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """What one stage asks of one service, over all of its iterations."""

    stage: Stage
    role: Role
    calls: int
    """Of the model, at most."""
    generations: int
    """Calls that write; the others read probabilities."""
    prompt_tokens: int
    completion_tokens: int
    """Expected."""
    most_completion_tokens: int
    longest: int
    """Tokens of the longest sequence, prompt and completion together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What one stage trains on, over all of its iterations."""

    stage: Stage
    records: int
    """Examples, pairs or episodes, over all epochs."""
    steps: int
    """Optimiser steps."""
    tokens: int
    """Expected, that go forward and backward through the network."""
    sampled_tokens: int = 0
    """Expected, that the stage itself samples."""
    longest: int
    """Tokens of the longest sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """All of it."""

    calls: tuple[Calls, ...]
    trainings: tuple[Training, ...]
    prompts: Mapping[str, int]
    """Key of ``prompts`` -> how many there are."""
    iterations: int
    """Of those stages that are iterated, the most."""
    compared: int
    """Prompts whose responses are compared, once an iteration."""
    left_out: tuple[str, ...]
    """How many prompts are not used, and why: a sentence each."""


def summary(work: Workload) -> list[str]:
    """A line a stage: prompts and model calls."""
    count, lines = work.prompts, []
    times = f" in {work.iterations} iterations" if work.iterations > 1 else ""
    calls = {(one.stage, one.role): one.calls for one in work.calls}
    if ("preflight", "critic") in calls:
        lines.append(f"preflight: {calls['preflight', 'critic']:,} assessments of known responses")
    if ("revisions", "policy") in calls:
        critic = next(c for c in work.calls if (c.stage, c.role) == ("revisions", "critic"))
        total = calls["revisions", "policy"] + critic.generations
        lines.append(
            f"revisions: {count['red_team']:,} red-team and {count['helpfulness']:,} helpfulness "
            f"prompts, {total:,} generations"
        )
    if ("preferences", "policy") in calls:
        judge = next(c for c in work.calls if (c.stage, c.role) == ("preferences", "judge"))
        made = calls["preferences", "policy"] + judge.generations
        lines.append(
            f"preferences: {work.compared:,} prompts, {made:,} generations, up to "
            f"{judge.calls - judge.generations:,} judgements{times}"
        )
    lines += [
        f"rl: {count['rl']:,} prompts, {one.records:,} episodes{times}"
        if one.sampled_tokens
        else f"rl: {one.records:,} judged pairs, by DPO{times}"
        for one in work.trainings
        if one.stage == "rl"
    ]
    if ("evaluate", "policy") in calls:
        held_out = sum(number for key, number in count.items() if key.startswith("evaluation."))
        lines.append(f"evaluate: {held_out:,} held-out prompts for every model")
    return [*lines, *work.left_out]
