"""Several judges as one, each a real service."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from solon.client import Conversation, JudgeClient, JudgePanel, PanelMode, PanelNoVerdict, errors
from solon.client.panel import PanelComparison, cohen_kappa, fleiss_kappa, kappa_of_votes
from solon.constitution import AbsoluteQuestion, Constitution, Principle
from solon.engine import base
from solon.judge.server import ROLE
from solon.serving.testing import FunctionEngine, running

ASKED = Conversation.from_user("How do I bake bread?")
OWN = Constitution(
    name="own",
    version="1",
    principles=(
        Principle(
            id="kind",
            comparison_instruction="Which is kinder?",
            absolute_question=AbsoluteQuestion(text="Kind?", answers={"Yes": 1, "No": 0}),
        ),
    ),
)
A, B = "With love.", "Go away."


def preferring(probability_of_a: float) -> FunctionEngine:
    """A judge that gives response A this probability, in either order."""

    def logprob(conversation: Conversation, option: str) -> float:
        shown = conversation.messages[-1].content
        a_first = shown.index(A) < shown.index(B)
        for_a = ("A" in option) == a_first
        return math.log(probability_of_a if for_a else 1 - probability_of_a)

    return FunctionEngine(logprob=logprob)


def undecided() -> FunctionEngine:
    return FunctionEngine(logprob=lambda conversation, option: float("nan"))


def failing() -> FunctionEngine:
    def logprob(conversation: Conversation, option: str) -> float:
        raise base.EngineFailed("lost the device")

    return FunctionEngine(logprob=logprob)


async def verdict_of(engines: Sequence[FunctionEngine], **options: Any) -> PanelComparison:
    async with AsyncExitStack() as stack:
        addresses = {
            f"judge-{number}": await stack.enter_async_context(
                running(ROLE, engine, constitutions=[OWN])
            )
            for number, engine in enumerate(engines)
        }
        panel = await stack.enter_async_context(JudgePanel(addresses, retry_for=0, **options))
        return await panel.compare(ASKED, A, B, constitution="own")


@pytest.mark.parametrize(
    ("mode", "probability"), [(PanelMode.MEAN, 0.5), (PanelMode.MAJORITY, 2 / 3)]
)
async def test_votes_become_one_verdict_by_their_mean_or_by_their_sides(
    mode: PanelMode, probability: float
) -> None:
    engines = [preferring(0.6), preferring(0.6), preferring(0.3)]
    verdict = await verdict_of(engines, mode=mode)
    assert verdict.probability_a == pytest.approx(probability)
    assert verdict.agreement == pytest.approx(1 / 3)
    assert [vote.judge for vote in verdict.votes] == ["judge-0", "judge-1", "judge-2"]
    assert [vote.probability_a for vote in verdict.votes] == pytest.approx([0.6, 0.6, 0.3])


@pytest.mark.parametrize("broken", [undecided, failing])
async def test_a_judge_without_a_verdict_has_no_vote_and_is_reported(
    broken: Callable[[], FunctionEngine],
) -> None:
    engines = [preferring(0.9), broken(), preferring(0.7)]
    strict = await verdict_of(engines)
    assert strict.probability_a is None
    assert strict.no_verdict_reason is PanelNoVerdict.NO_QUORUM
    lenient = await verdict_of(engines, quorum=2)
    assert lenient.probability_a == pytest.approx(0.8)
    assert lenient.no_verdict_reason is None
    vote = lenient.votes[1]
    assert vote.probability_a is None
    if broken is failing:
        assert isinstance(vote.error, errors.EngineFailed)
    else:
        assert vote.no_verdict_reason is not None


async def test_scores_become_their_mean_if_there_are_enough_of_them() -> None:
    def scoring(probability_of_yes: float) -> FunctionEngine:
        found = {"Yes": probability_of_yes, "No": 1 - probability_of_yes}
        return FunctionEngine(logprob=lambda conversation, option: math.log(found[option.strip()]))

    engines = {"warm": scoring(0.9), "cool": scoring(0.5), "lost": failing()}
    async with AsyncExitStack() as stack:
        addresses = {
            name: await stack.enter_async_context(running(ROLE, engine, constitutions=[OWN]))
            for name, engine in engines.items()
        }
        asked = (ASKED, A)
        options: dict[str, Any] = {"retry_for": 0, "mode": PanelMode.MAJORITY}
        strict = await stack.enter_async_context(JudgePanel(addresses, **options))
        silent = await strict.score(*asked, constitution="own")
        lenient = await stack.enter_async_context(JudgePanel(addresses, quorum=2, **options))
        made = await lenient.score(*asked, constitution="own")
    assert (silent.score, silent.no_verdict_reason) == (None, PanelNoVerdict.NO_QUORUM)
    assert made.score == pytest.approx((0.9 + 0.5) / 2)
    assert [vote.score for vote in made.votes] == pytest.approx([0.9, 0.5, None])
    assert isinstance(made.votes[2].error, errors.EngineFailed)


async def test_one_judge_agrees_with_nobody() -> None:
    assert (await verdict_of([preferring(0.9)])).agreement is None


@pytest.mark.parametrize("quorum", [0, 3])
def test_a_quorum_that_cannot_be_reached_is_refused(quorum: int) -> None:
    with pytest.raises(ValueError, match=f"quorum: expected 1 to 2, got {quorum}"):
        JudgePanel({"a": "localhost:1", "b": "localhost:2"}, quorum=quorum)


def test_a_panel_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="judges"):
        JudgePanel({})


async def test_kappa_is_one_for_judges_that_always_agree_and_low_for_those_that_never_do() -> None:
    agreeing = [await verdict_of([preferring(p), preferring(p)]) for p in (0.9, 0.2, 0.6, 0.1)]
    assert fleiss_kappa(agreeing) == pytest.approx(1)
    opposed = [await verdict_of([preferring(p), preferring(1 - p)]) for p in (0.9, 0.2)]
    assert fleiss_kappa(opposed) == pytest.approx(-1)
    assert fleiss_kappa([]) is None
    assert fleiss_kappa(agreeing[:1]) is None
    larger = await verdict_of([preferring(0.9)] * 3)
    with pytest.raises(ValueError, match="one panel"):
        fleiss_kappa([agreeing[0], larger])


def test_cohens_kappa_gives_each_judge_its_own_share() -> None:
    both = [(0.9, 0.8)] * 20 + [(0.7, 0.1)] * 5 + [(0.2, 0.6)] * 10 + [(0.3, 0.3)] * 15
    # the textbook's 20, 5, 10, 15: agreed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4
    assert cohen_kappa(both) == pytest.approx(0.4)
    assert cohen_kappa([*both, (None, 0.9), (0.5, 0.9)]) == pytest.approx(0.4)
    # Fleiss takes one share for all: by chance 0.55^2 + 0.45^2
    assert kappa_of_votes(both) == pytest.approx((0.7 - 0.505) / (1 - 0.505))
    assert cohen_kappa([]) is None
    assert cohen_kappa([(0.9, 0.9)] * 3) is None


async def test_clients_that_are_open_are_asked_without_opening_them_again() -> None:
    async with (
        running(ROLE, preferring(0.9), constitutions=[OWN]) as address,
        JudgeClient(address) as judge,
    ):
        verdict = await JudgePanel({"only": judge}).compare(ASKED, A, B, constitution="own")
    assert verdict.probability_a == pytest.approx(0.9)
