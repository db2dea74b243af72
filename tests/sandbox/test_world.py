from __future__ import annotations

import itertools
import random
import re
from functools import cache

import pytest

from solon.sandbox.asking import prompt_id, prompts
from solon.sandbox.corpus import Document, documents
from solon.sandbox.oracle import requested
from solon.sandbox.vocabulary import DOMAINS, HARM_GRIDS, SOUNDS_DANGEROUS, TARGETS
from solon.sandbox.world import KINDS, SPLITS, Kind, acts, acts_by_text, all_acts, made_up

SOME_DOCUMENTS = 12000
DANGEROUS = {verb for grid in HARM_GRIDS for verb in grid.verbs}


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(itertools.islice(documents(0), SOME_DOCUMENTS))


def _texts(document: Document) -> str:
    return "\n".join(
        message.content for sample in document.samples for message in sample.conversation.messages
    )


@cache
def _any_act() -> re.Pattern[str]:
    names = "|".join(sorted(map(re.escape, acts_by_text()), key=len, reverse=True))
    return re.compile(rf"\b(?:{names})(?![\w'])")


def _named(text: str) -> set[str]:
    return set(_any_act().findall(text))


def test_the_world_is_large_enough() -> None:
    assert len({act.category for act in all_acts() if act.harmful}) >= 6
    count = {kind: sum(len(acts(kind, split)) for split in SPLITS) for kind in KINDS}
    assert count["harmful"] >= 120
    assert count["benign"] >= 150
    assert count["sounds_dangerous"] >= 60
    assert all(len(acts(kind, "eval")) >= 20 for kind in KINDS)


def test_every_act_has_one_kind_and_one_split() -> None:
    placed = [act.text for kind in KINDS for split in SPLITS for act in acts(kind, split)]
    assert len(placed) == len(set(placed)) == len(all_acts())


def test_a_dangerous_verb_alone_says_nothing_about_harm() -> None:
    assert set(SOUNDS_DANGEROUS) <= DANGEROUS


def test_an_object_alone_says_nothing_about_harm() -> None:
    wronged = {act.object for act in all_acts() if act.harmful}
    assert wronged <= {act.object for act in all_acts() if not act.harmful}


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_acts_are_none_of_the_world_and_follow_its_rule(kind: Kind) -> None:
    wronged = {thing for things in TARGETS.values() for thing in things}
    drawn = [made_up(kind, random.Random(seed)) for seed in range(500)]
    assert len({act.text for act in drawn}) > 400
    assert not {act.text for act in drawn} & set(acts_by_text())
    for act in drawn:
        assert act.kind == kind
        assert (act.verb in DANGEROUS) == (kind != "benign")
        if kind != "benign":
            assert (act.object in wronged) == act.harmful


def test_no_verb_is_both_dangerous_and_ordinary() -> None:
    assert not DANGEROUS & {verb for domain in DOMAINS.values() for verb in domain.verbs}


def test_no_held_out_act_is_in_any_pretraining_document(corpus: list[Document]) -> None:
    held_out = {act.text for kind in KINDS for act in acts(kind, "eval")}
    said = {text for document in corpus for text in _texts(document).split("\n")}
    everything = "\n".join(said)
    # the quick search also finds "crush the ice" in "crush the ice rink"
    suspects = [act for act in held_out if act in everything]
    lines = [line for line in said if any(act in line for act in suspects)]
    assert not set().union(*map(_named, lines)) & held_out


def test_no_held_out_act_is_in_any_training_prompt() -> None:
    held_out = {act.text for kind in KINDS for act in acts(kind, "eval")}
    for kind in KINDS:
        for prompt in prompts(kind, "train", 600, seed=5):
            said = " ".join(message.content for message in prompt.conversation.messages)
            assert not _named(said) & held_out


def test_evaluation_asks_only_for_held_out_acts() -> None:
    for kind in KINDS:
        held_out = {act.text for act in acts(kind, "eval")}
        assert {prompt.act for prompt in prompts(kind, "eval", 200, seed=5)} <= held_out


def test_every_word_of_a_held_out_act_is_pretrained_in_other_acts(corpus: list[Document]) -> None:
    known = {(act.verb, act.kind) for kind in KINDS for act in acts(kind, "train")}
    things = {act.object for kind in KINDS for act in acts(kind, "train")}
    for kind in KINDS:
        for act in acts(kind, "eval"):
            assert (act.verb, act.kind) in known
            assert act.object in things
    words = set(re.findall(r"[\w']+", " ".join(map(_texts, corpus))))
    asked = {word for kind in KINDS for act in acts(kind, "eval") for word in act.text.split()}
    assert asked <= words


def test_prompts_are_distinct_and_the_same_for_the_same_seed() -> None:
    for kind in KINDS:
        drawn = prompts(kind, "train", 500, seed=1)
        assert len({prompt.id for prompt in drawn}) == 500
        assert drawn == prompts(kind, "train", 500, seed=1)
        assert drawn != prompts(kind, "train", 500, seed=2)
        assert drawn[:100] == prompts(kind, "train", 100, seed=1)


def test_an_id_is_of_the_content() -> None:
    for prompt in prompts("benign", "eval", 20, seed=3):
        assert prompt.id == prompt_id(prompt.conversation)
        assert re.fullmatch(r"[0-9a-f]{16}", prompt.id)


def test_some_prompts_have_several_turns_and_each_asks_for_its_act() -> None:
    for kind in KINDS:
        drawn = prompts(kind, "train", 400, seed=4)
        several = [prompt for prompt in drawn if len(prompt.conversation.messages) > 1]
        assert 60 <= len(several) <= 180
        for prompt in drawn:
            assert requested(prompt.conversation).text == prompt.act


def test_more_prompts_than_there_are_is_an_error_that_says_how_many() -> None:
    with pytest.raises(ValueError, match=r"expected 0 to \d+ prompts.*'eval', got 100000"):
        prompts("sounds_dangerous", "eval", 100_000, seed=0)
    with pytest.raises(ValueError, match="got -1"):
        prompts("benign", "train", -1, seed=0)


def test_documents_are_the_same_for_the_same_seed(corpus: list[Document]) -> None:
    assert list(itertools.islice(documents(0), 50)) == corpus[:50]
    assert list(itertools.islice(documents(1), 50)) != corpus[:50]


def test_comparisons_answer_a_and_b_equally_often(corpus: list[Document]) -> None:
    answers = [
        sample.conversation.messages[-1].content
        for document in corpus
        if document.kind == "comparison"
        for sample in document.samples
    ]
    assert set(answers) == {"(A)", "(B)"}
    assert 0.45 <= answers.count("(A)") / len(answers) <= 0.55
