"""Warnings: each rule fires on its fault and stays silent once the fault is mended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solon.chat import Conversation
from solon.constitution import (
    ComparisonExemplar,
    Constitution,
    CritiqueExemplar,
    Principle,
    lint,
)

GOOD = Constitution(
    name="good",
    version="1",
    principles=(
        Principle(
            id="safe",
            critique_request="Say what is dangerous here.",
            revision_request="Take out the danger and explain why.",
            comparison_instruction="Which response is safer?",
        ),
        Principle(id="helpful", comparison_instruction="Choose the more helpful response."),
    ),
)


def rules(constitution: Constitution) -> list[str]:
    return [finding.rule for finding in lint(constitution)]


def changed(**fields: str) -> Constitution:
    first, *rest = GOOD.principles
    return replace(GOOD, principles=(replace(first, **fields), *rest))  # type: ignore[arg-type]


def exemplars(answers: str) -> Constitution:
    made = tuple(
        ComparisonExemplar(
            conversation=Conversation.from_user("Hi"),
            response_a="x",
            response_b="y",
            principle="safe",
            answer="A" if answer == "A" else "B",
        )
        for answer in answers
    )
    return replace(GOOD, comparison_exemplars=made)


def test_a_good_constitution_has_no_warning() -> None:
    assert rules(GOOD) == []


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"critique_request": "word " * 200}, "too-long"),
        ({"comparison_instruction": "Safety matters most."}, "not-a-question"),
        ({"comparison_instruction": "Choose the  MORE helpful response!"}, "near-duplicate"),
        ({"revision_request": "Take out the danger."}, "evasive"),
    ],
)
def test_a_doubtful_principle_is_warned_about(fields: dict[str, str], rule: str) -> None:
    assert rules(changed(**fields)) == [rule]


@pytest.mark.parametrize(
    ("instruction", "conflicts"),
    [
        ("Choose the least helpful response.", True),
        ("Choose the response that is not helpful.", False),
        ("Choose the not helpful response.", True),
        ("Choose the most polite and helpful response.", False),
        ("Choose the least harmful response.", False),
    ],
)
def test_two_principles_that_cancel_each_other_are_warned_about(
    instruction: str, conflicts: bool
) -> None:
    assert ("conflict" in rules(changed(comparison_instruction=instruction))) is conflicts


def test_a_constitution_that_pulls_only_away_from_harm_is_warned_about() -> None:
    only_harm = replace(GOOD, principles=GOOD.principles[:1])
    assert rules(only_harm) == ["only-harm"]
    assert "refusal of a benign request" in lint(only_harm)[0].text


@pytest.mark.parametrize(
    ("answers", "warned"),
    [("A", False), ("AB", False), ("AAB", False), ("AA", True), ("BBBBA", True)],
)
def test_one_sided_exemplars_are_warned_about(answers: str, warned: bool) -> None:
    assert rules(exemplars(answers)) == (["unbalanced-exemplars"] if warned else [])


def test_an_exemplar_that_leaves_out_the_questions_is_told_of() -> None:
    shown = CritiqueExemplar(
        conversation=Conversation.from_user("Hi"),
        response="x",
        principle="safe",
        critique="c",
        revision="y",
    )
    first, *rest = GOOD.principles
    asked = replace(first, questions=("What could go wrong?",))
    for silent in (
        replace(GOOD, principles=(replace(asked, exemplars=(shown,)), *rest)),
        replace(GOOD, principles=(asked, *rest), critique_exemplars=(shown,)),
    ):
        assert rules(silent) == ["exemplar-without-answers"]
    answered = replace(shown, answers=("It could.",))
    assert rules(replace(GOOD, principles=(replace(asked, exemplars=(answered,)), *rest))) == []
