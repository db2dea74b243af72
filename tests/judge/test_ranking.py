"""Bradley-Terry strengths against closed forms."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from solon.judge.ranking import Win, strengths, unsettled

PAIRS_OF_SIX = list(itertools.combinations(range(6), 2))


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_two_things_are_as_far_apart_as_the_log_odds() -> None:
    first, second = strengths(2, [Win(0, 1, 0.8)])
    assert first == pytest.approx(logit(0.8) / 2)
    assert second == pytest.approx(-logit(0.8) / 2)


def test_consistent_comparisons_give_back_the_strengths_that_made_them() -> None:
    true = [1.5, 0.25, -0.5, -1.25]
    wins = [
        Win(i, j, 1 / (1 + math.exp(true[j] - true[i])))
        for i, j in itertools.combinations(range(4), 2)
    ]
    assert strengths(4, wins) == pytest.approx(true, abs=1e-8)


def test_inconsistent_comparisons_solve_the_likelihood_equations() -> None:
    generator = random.Random(5)
    wins = [Win(i, j, generator.random()) for i, j in itertools.combinations(range(6), 2)]
    found = [s for s in strengths(6, wins) if s is not None]
    # at the maximum, every thing's expected wins are its actual ones (Hunter 2004, eq. 3)
    for i in range(6):
        won = sum(p if i == a else 1 - p for a, b, p in wins if i in (a, b))
        expected = sum(1 / (1 + math.exp(found[j] - found[i])) for j in range(6) if j != i)
        assert expected == pytest.approx(won, abs=1e-7)
    assert sum(found) == pytest.approx(0, abs=1e-9)


def test_a_circle_of_equal_wins_has_no_winner() -> None:
    found = strengths(3, [Win(0, 1, 0.9), Win(1, 2, 0.9), Win(2, 0, 0.9)])
    assert found == pytest.approx([0, 0, 0], abs=1e-9)


def test_order_and_direction_of_the_comparisons_do_not_matter() -> None:
    wins = [Win(0, 1, 0.7), Win(1, 2, 0.6), Win(0, 2, 0.9)]
    turned = [Win(b, a, 1 - p) for a, b, p in reversed(wins)]
    assert strengths(3, turned) == pytest.approx(strengths(3, wins), abs=1e-8)


def test_what_was_never_compared_has_no_strength() -> None:
    assert strengths(3, [Win(0, 2, 0.5)]) == [pytest.approx(0), None, pytest.approx(0)]
    assert strengths(2, []) == [None, None]


def test_groups_that_no_comparison_connects_are_centred_each_on_its_own() -> None:
    found = strengths(4, [Win(0, 1, 0.8), Win(2, 3, 0.6)])
    half = [logit(0.8) / 2, -logit(0.8) / 2, logit(0.6) / 2, -logit(0.6) / 2]
    assert found == pytest.approx(half)


@pytest.mark.parametrize("seed", range(5))
def test_certain_wins_stay_finite_and_keep_their_order(seed: int) -> None:
    order = list(range(16))
    random.Random(seed).shuffle(order)
    wins = [Win(i, j, float(order[i] < order[j])) for i, j in itertools.combinations(range(16), 2)]
    found = [s for s in strengths(16, wins) if s is not None]
    assert all(map(math.isfinite, found))
    assert sorted(range(16), key=lambda i: -found[i]) == sorted(range(16), key=order.__getitem__)


def test_three_that_surely_beat_three_others_are_ranked_though_each_group_is_even() -> None:
    wins = [Win(i, j, 1.0 if i < 3 <= j else 0.5) for i, j in PAIRS_OF_SIX]
    found = strengths(6, wins)
    # against three, of whom each is beaten with the probability of 1 - 1e-6
    assert found[:3] == pytest.approx([logit(1 - 1e-6) / 2] * 3)
    assert found[3:] == pytest.approx([-logit(1 - 1e-6) / 2] * 3)


@pytest.mark.parametrize("seed", range(20))
def test_comparisons_that_are_sure_and_contradict_each_other_solve_the_equations(
    seed: int,
) -> None:
    generator = random.Random(seed)
    wins = [Win(i, j, generator.choice([1e-6, 0.5, 1 - 1e-6])) for i, j in PAIRS_OF_SIX]
    found = [s for s in strengths(6, wins) if s is not None]
    for i in range(6):
        won = sum(p if i == a else 1 - p for a, b, p in wins if i in (a, b))
        expected = sum(1 / (1 + math.exp(found[j] - found[i])) for j in range(6) if j != i)
        assert expected == pytest.approx(won, abs=1e-7)


def settle(count: int, judge: Callable[[int, int], float | None]) -> dict[Any, float | None]:
    """Compare what is unsettled until nothing is."""
    known: dict[tuple[int, int], float | None] = {}
    while todo := unsettled(count, known):
        assert not known.keys() & set(todo)
        known |= {(a, b): judge(a, b) for a, b in todo}
    return known


def ordered(count: int, known: dict[Any, float | None]) -> list[int]:
    found = strengths(count, [Win(a, b, p) for (a, b), p in known.items() if p is not None])
    return sorted(range(count), key=lambda i: (found[i] is None, -(found[i] or 0), i))


@pytest.mark.parametrize("seed", range(5))
def test_an_order_without_contradictions_is_found_with_few_comparisons(seed: int) -> None:
    dice = random.Random(seed)
    true = [dice.gauss(0, 2) for _ in range(16)]
    right = sorted(range(16), key=lambda i: -true[i])
    soft = settle(16, lambda a, b: 1 / (1 + math.exp(true[b] - true[a])))
    assert ordered(16, soft) == right
    assert len(soft) <= 30
    # one that is always sure says nothing of distances, so that more has to be asked
    hard = settle(16, lambda a, b: float(true[a] > true[b]))
    assert ordered(16, hard) == right
    assert len(hard) < 100


@pytest.mark.parametrize("seed", range(10))
def test_a_judge_that_contradicts_itself_comes_to_an_end_with_all_neighbours_compared(
    seed: int,
) -> None:
    dice = random.Random(seed)
    known = settle(9, lambda a, b: dice.choice([dice.random(), dice.random(), None]))
    neighbours = itertools.pairwise(ordered(9, known))
    assert all((min(pair), max(pair)) in known for pair in neighbours)


def test_what_verdicts_do_not_connect_is_compared_with_everything() -> None:
    known = settle(5, lambda a, b: None if 2 in (a, b) else 0.9)
    assert {pair for pair in known if 2 in pair} == {(0, 2), (1, 2), (2, 3), (2, 4)}
    assert ordered(5, known)[0] == 0
    assert len(settle(4, lambda a, b: None)) == 6
