"""What the likeliest tokens say of texts, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from solon.engine.openai import tops
from solon.engine.openai.replies import Logprobs
from tests.engine.openai.conftest import top


@pytest.mark.parametrize(
    ("texts", "places", "expected"),
    [
        # a token each
        (["Yes", "No"], [{"Yes": -0.1, "No": -2.4}], [-0.1, -2.4]),
        # one begins the other: both count where both are said, each once
        (["1", "10"], [{"1": -1.0, "10": -0.5}, {"0": -3.0, "!": -0.1}], [math.nan] * 2),
        # no token decides but the second
        (["(A)", "(B)"], [{"(": -0.1}, {"B": -0.2, "A)": -1.7}], [-1.8, -0.3]),
        # several tokens lead to the same text
        (
            ["Yes", "No"],
            [{"Y": math.log(0.2), "Yes": math.log(0.3), "N": -1.0}],
            [-math.log(2), -1],
        ),
        # the answer goes elsewhere, but where it could have begun with one is told
        (["(A)", "(B)"], [{"Well": -0.1, "(A": -2.0, "(B": -3.0}], [-2, -3]),
        # what lies behind a token that was not chosen is unknown
        (["(A)", "(B)"], [{"Well": -0.1, "(": -2.0}], [math.nan, math.nan]),
        (["é", "è"], [{"é": -1.0}], [-1.0, math.nan]),
        (["Yes", "No"], [{"Yes": 0.0, "No": -9999.0}], [0.0, math.nan]),
    ],
)
def test_texts_have_the_probability_of_what_decides_for_them(
    texts: list[str], places: Sequence[dict[str, float]], expected: list[float]
) -> None:
    if texts == ["1", "10"]:
        expected = [math.log(math.exp(-1.0) + math.exp(-0.5)), -0.5]
        expected[1] = math.log(math.exp(-0.5) + math.exp(-4.0))
    path = Logprobs.model_validate(top(*places)).content
    assert path is not None
    assert tops.scores(texts, path) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("texts", "most"), [(["Yes", "No"], 1), (["(A)", "(B)"], 2), (["1", "10", "2"], 2), (["A"], 1)]
)
def test_as_many_tokens_are_asked_for_as_may_be_needed(texts: list[str], most: int) -> None:
    assert tops.places(texts) == most
