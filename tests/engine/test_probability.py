"""The arithmetic of log-probabilities, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.engine import probability


def test_two_options_are_normalised_to_each_other() -> None:
    # 0.6 and 0.2 of the whole: 3/4 and 1/4 of what they hold together
    found = probability.normalised([math.log(0.6), math.log(0.2)])
    assert found == pytest.approx((0.75, 0.25), abs=1e-15)


def test_only_differences_count_however_unlikely_the_options_are() -> None:
    # e^-1000 is 0 in floating point
    found = probability.normalised([-1000.0, -1000.0 - math.log(3)])
    assert found == pytest.approx((0.75, 0.25), abs=1e-12)


def test_a_certain_option_does_not_overflow() -> None:
    assert probability.normalised([0.0, -5000.0]) == (1.0, 0.0)


def test_the_mass_is_the_sum_of_the_probabilities() -> None:
    assert probability.mass([math.log(0.6), math.log(0.2)]) == pytest.approx(0.8)
    assert probability.log_mass([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(odd: float) -> None:
    assert not probability.all_finite([-1.0, odd])
    assert probability.all_finite([-1.0, 0.0])


@pytest.mark.parametrize(
    ("value", "margin", "clamped"),
    [(0.99, 0.4, 0.6), (0.01, 0.4, 0.4), (0.55, 0.4, 0.55), (0.9, 0.0, 0.9), (0.9, 0.5, 0.5)],
)
def test_probabilities_are_clamped_to_the_margins(
    value: float, margin: float, clamped: float
) -> None:
    assert probability.clamped(value, margin) == clamped


def test_a_weighted_mean_leans_to_the_heavier() -> None:
    # (1 * 0.2 + 3 * 0.8) / 4
    assert probability.weighted_mean([(0.2, 1.0), (0.8, 3.0)]) == pytest.approx(0.65)


def test_the_mean_of_nothing_is_none_rather_than_a_number() -> None:
    assert probability.weighted_mean([]) is None
    assert math.isnan(probability.mean([]))


def test_the_largest_weights_do_not_overflow() -> None:
    huge = 1.7e308
    assert probability.weighted_mean([(0.2, huge), (0.8, huge)]) == pytest.approx(0.5)


@pytest.mark.parametrize("huge", [1.7e308, -1.7e308, 1.7976931348623157e308])
def test_the_largest_values_do_not_overflow(huge: float) -> None:
    assert probability.weighted_mean([(huge, 1.0)] * 32) == huge
    assert probability.weighted_mean([(huge, 0.5), (-huge, 0.5)]) == 0


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(1e-300, 1e300)),
        min_size=1,
    )
)
@settings(derandomize=True, database=None)
def test_a_weighted_mean_is_never_outside_its_values(pairs: list[tuple[float, float]]) -> None:
    mean = probability.weighted_mean(pairs)
    assert mean is not None
    assert min(pairs)[0] <= mean <= max(pairs)[0]
