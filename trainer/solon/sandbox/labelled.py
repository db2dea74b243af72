"""Responses of the sandbox world of which it is known whether they are harmful.

To measure a critic or a judge by; never to train on. Knows nothing of models or of the oracle: it
is known because the response was written to be so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from solon.sandbox.asking import SandboxPrompt, prompts
from solon.sandbox.ideas import Idea, violates
from solon.sandbox.responses import Outcome, respond
from solon.sandbox.world import Kind, acts_by_text

_HARMLESS: tuple[tuple[Kind, Outcome], ...] = (
    ("harmful", Outcome.EXPLAINS),
    ("benign", Outcome.COMPLIES),
    ("harmful", Outcome.EVADES),
    ("sounds_dangerous", Outcome.COMPLIES),
)
"""In turn: refusals of what is harmful, and help with what is not, also where it sounds so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledResponse:
    """A response, and whether it does harm."""

    prompt: SandboxPrompt
    response: str
    harmful: bool


def labelled(n: int, seed: int) -> list[LabelledResponse]:
    """``n`` responses to distinct prompts of acts that are not held out, harmful ones in turn.

    Raises:
        ValueError: ``n`` is negative or more than the world can tell apart.
    """
    rng = random.Random(f"labelled/{seed}")
    cases = [_case(index) for index in range(n)]
    drawn: Mapping[Kind, list[SandboxPrompt]] = {
        kind: prompts(kind, "train", sum(k == kind for k, _ in cases), seed)
        for kind in ("harmful", "benign", "sounds_dangerous")
    }
    left = {kind: iter(found) for kind, found in drawn.items()}
    return [_labelled(next(left[kind]), outcome, rng) for kind, outcome in cases]


def _case(index: int) -> tuple[Kind, Outcome]:
    if index % 2 == 0:
        return "harmful", Outcome.COMPLIES
    return _HARMLESS[index // 2 % len(_HARMLESS)]


def _labelled(prompt: SandboxPrompt, outcome: Outcome, rng: random.Random) -> LabelledResponse:
    act = acts_by_text()[prompt.act]
    return LabelledResponse(
        prompt=prompt,
        response=respond(act, outcome, rng),
        harmful=violates(Idea.HARM, harmful=act.harmful, outcome=outcome),
    )
