"""Near-duplicates against the definition, and figures of diversity that mean what they say."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.trainer.similarity import (
    NearDuplicates,
    diversity,
    normal_form,
    resemblance,
    shingles,
)

JAPANESE = "\u30d1\u30f3\u306e\u713c\u304d\u65b9\u3092\u6559\u3048\u3066\u304f\u3060\u3055\u3044"
"""Please teach me how to bake bread: a sentence without a space."""


def test_the_normal_form_leaves_words_alone() -> None:
    assert normal_form("  How do I -- KILL\ta `process`?! ") == "how do i kill a process"
    assert normal_form("C++ or C?") == "c++ or c"
    assert normal_form("?!") == "?!"


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), max_size=30),
    threshold=st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]),
)
def test_the_index_finds_exactly_what_comparing_all_pairs_finds(
    texts: list[list[str]], threshold: float
) -> None:
    index, kept = NearDuplicates(threshold), list[str]()
    for words in texts:
        text = " ".join(words)
        like = [t for t in kept if resemblance(shingles(text), shingles(t)) >= threshold]
        found = index.find(text)
        assert found == (like[0] if like else None)
        if found is None:
            index.keep(text)
            kept.append(text)
    assert all(resemblance(shingles(a), shingles(b)) < threshold for a, b in combinations(kept, 2))


def test_a_word_more_or_less_is_a_near_duplicate_and_another_object_is_none() -> None:
    index = NearDuplicates(0.6)
    index.keep("Tell me a funny story about a horse and a duck")
    index.keep(
        "\u30d1\u30f3\u306e\u713c\u304d\u65b9\u3092\u6559\u3048\u3066\u304f\u3060\u3055\u3044"
    )
    assert index.find("please tell me a funny story about a horse and a duck!")
    assert index.find(
        "\u30d1\u30f3\u306e\u713c\u304d\u65b9\u3092\u6559\u3048\u3066\u304f\u3060\u3055\u3044\u306d"
    )
    assert index.find("Tell me a funny story about an egg and a pan") is None


def test_diversity_falls_with_repetition() -> None:
    rng = random.Random(0)
    words = [f"word{n}" for n in range(1000)]
    varied = [" ".join(rng.sample(words, 8)) for _ in range(100)]
    alike = [f"tell me how to do number {n}" for n in range(100)]
    same = ["tell me"] * 100
    figures = [diversity(texts) for texts in (varied, alike, same)]
    nearest = [one.nearest for one in figures]
    assert nearest[2] == 1.0
    assert (nearest[0] or 0) < 0.2 < (nearest[1] or 0) < 1.0
    assert figures[0].distinct_1 > figures[1].distinct_1 > figures[2].distinct_1 == 0.01
    assert figures[0].distinct_2 > 0.99


def test_the_nearest_is_the_mean_of_each_texts_likest() -> None:
    # shingles: (^a, ab, b$), (^a, ac, c$), and one that shares none
    found = diversity(["a b", "a c", "x"])
    assert found.nearest == pytest.approx((0.2 + 0.2 + 0) / 3)
    assert diversity(["alone"]).nearest is None
    assert diversity(["a"] * 1500).compared == 1000
