"""What is left out of training, and why: texts, pairs and verdicts measured against hand counts."""

from __future__ import annotations

from typing import Any

import pytest

from solon.trainer.stages.candidates import choose
from solon.trainer.stages.filters import (
    Dropped,
    copies,
    is_repetitive,
    of_texts,
    of_verdict,
    repetition,
    similarity,
)
from solon.trainer.stages.preference_export import Labels
from solon.trainer.stages.preference_settings import PairFilters, PreferencesConfig


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one two three four five", 0),
        ("go on go on go on go on", 1 - 2 / 6),  # "go on go", "on go on" of six trigrams
        ("はいはいはいはい", 1 - 2 / 6),
        ("no", 0),
        ("", 0),
    ],
)
def test_repetition_is_the_share_of_trigrams_that_came_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)
    assert is_repetitive(text, 0.5) is (share > 0.5)
    assert not is_repetitive(text, None)


def test_similarity_counts_common_pairs_of_words_beginning_and_end_among_them() -> None:
    assert similarity("a b c", "A, b, c.") == 1
    assert similarity("a b c", "x y z") == 0
    # two of six: it begins with a, and goes on with b
    assert similarity("a b c", "a b d") == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("filters", "one", "other", "reason"),
    [
        ({}, "Yes, of course.", "No.", None),
        ({}, "ha " * 20, "No.", Dropped.REPETITIVE),
        ({"max_repetition": None}, "ha " * 20, "No.", None),
        ({"min_characters": 4}, "Yes, of course.", "No.", Dropped.LENGTH),
        ({"max_characters": 9}, "Yes, of course.", "No.", Dropped.LENGTH),
        ({"max_length_ratio": 4.9}, "Yes, of course.", "No.", Dropped.LENGTH),
        ({"max_length_ratio": 5}, "Yes, of course.", "No.", None),
        ({"max_similarity": 0.33}, "a b c", "a b d", Dropped.SIMILAR),
        ({"max_similarity": 0.34}, "a b c", "a b d", None),
    ],
)
def test_a_pair_is_left_out_for_what_its_texts_say(
    filters: dict[str, Any], one: str, other: str, reason: Dropped | None
) -> None:
    assert of_texts(one, other, PairFilters(**filters)) is reason
    assert of_texts(other, one, PairFilters(**filters)) is reason


def verdict(probability: float | None, given: float, swapped: float) -> dict[str, Any]:
    orders = [
        {"swapped": False, "probability_a": given},
        {"swapped": True, "probability_a": swapped},
    ]
    principles = [{"weight": 1.0, "orders": orders}]
    return {"probability_a": probability, "principles": principles, "votes": []}


def test_a_pair_is_left_out_for_what_its_verdict_says() -> None:
    sure, torn = verdict(0.9, 0.95, 0.85), verdict(0.55, 0.9, 0.2)
    everything = PairFilters(min_margin=0.1, consistent_orders=True)
    assert of_verdict(torn, PairFilters()) is None
    assert of_verdict(torn, PairFilters(min_margin=0.1)) is Dropped.NEAR_TIE
    assert of_verdict(torn, everything) is Dropped.FOLLOWS_POSITION
    assert of_verdict(sure, everything) is None
    assert of_verdict(verdict(None, 0.9, 0.2), everything) is None


def test_the_same_two_responses_are_a_pair_only_so_often_whichever_is_chosen() -> None:
    def pair(name: str, chosen: str, rejected: str) -> dict[str, Any]:
        sides = {"chosen": chosen, "rejected": rejected}
        return {"id": name} | {k: [{"content": text}] for k, text in sides.items()}

    pairs = [pair("1", "x", "y"), pair("2", "y", "x"), pair("3", "x", "z"), pair("4", "x", "y")]
    assert list(copies(pairs, 1)) == ["2", "4"]
    assert list(copies(pairs, 2)) == ["4"]
    assert list(copies(pairs, None)) == []


def responses(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text, "finish_reason": "stop", "origin": "sample"} for text in texts]


def test_pairs_are_a_repeatable_draw_of_usable_and_distinct_responses() -> None:
    made = [*responses("a", "b", "a", "c", " "), *responses("d")]
    made[-1]["finish_reason"] = "length"
    config = PreferencesConfig(responses=6, pairs=2)
    drawn = choose(made, config, seed=4)
    assert drawn == choose(made, config, seed=4)
    assert len(set(drawn)) == 2
    assert all(pair.a < pair.b and {pair.a, pair.b} <= {0, 1, 3} for pair in drawn)
    every = choose(made, PreferencesConfig(responses=6, pairs=99), seed=4)
    assert len(every) == 3
    assert choose(responses("a", "a"), config, seed=4) == []


def test_the_most_different_responses_are_compared_first() -> None:
    made = responses("to be or not", "to be or else", "nothing of the kind")
    config = PreferencesConfig(responses=3, selection="most_different")
    assert [(p.a, p.b) for p in choose(made, config, seed=0)] == [(0, 2)]


def test_a_ranking_is_compared_from_its_ends() -> None:
    made = responses("a", "b", "c", "d", "e")
    config = PreferencesConfig(responses=5, pairs=3, selection="best_worst")
    chosen = choose(made, config, seed=0, ranking=[3, 0, 4, 2, 1])
    assert [(pair.a, pair.b) for pair in chosen] == [(1, 3), (0, 2)]


def test_another_pair_takes_the_place_of_one_that_is_left_out_which_stays_on_record() -> None:
    made = responses("ha " * 20, "to be", "or not", "that is")
    config = PreferencesConfig(responses=4, pairs=3)
    chosen = choose(made, config, seed=1)
    assert len([pair for pair in chosen if pair.dropped is None]) == 3
    out = [pair for pair in chosen if pair.dropped is not None]
    assert {pair.dropped for pair in out} <= {Dropped.REPETITIVE}
    assert all(pair.a == 0 for pair in out)


def test_an_export_says_how_often_the_longer_response_won_and_how_labels_are_spread() -> None:
    def row(chosen: str, rejected: str, probability: float) -> dict[str, Any]:
        sides = {"chosen": [{"content": chosen}], "rejected": [{"content": rejected}]}
        return {"probability": probability} | sides

    labels = Labels()
    labels.add(row("long", "no", 0.5))
    labels.add(row("on", "off", 0.97))
    labels.add(row("off", "on", 1.0))
    labels.add(row("as", "as", 0.62))
    figures = labels.figures()
    assert figures["longer_chosen"] == pytest.approx(2 / 3)
    assert figures["labels"] == {"0.5-0.6": 1, "0.6-0.7": 1, "0.9-1.0": 2}
