"""The written prompts that come with Solon: as many, as varied and as distinct as they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from solon.trainer.config import load_config
from solon.trainer.errors import ConfigError
from solon.trainer.prompt_settings import WRITTEN, WRITTEN_KINDS, PromptSource
from solon.trainer.prompts import Prompt, load_prompts
from solon.trainer.similarity import NearDuplicates, diversity

EXPECTED = {"red_team": (200, 20), "helpful": (200, 20), "sounds_harmful": (100, 10)}
"""Kind -> prompts, categories."""


def written(kind: str) -> tuple[Prompt, ...]:
    sources = [PromptSource(source=WRITTEN + kind)]
    found = load_prompts(sources, split="train", seed=0, purpose="x")
    assert found.duplicates == 0
    return tuple(found.prompts)


@pytest.mark.parametrize("kind", WRITTEN_KINDS)
def test_each_set_has_its_number_of_prompts_in_categories_of_ten(kind: str) -> None:
    prompts, categories = EXPECTED[kind]
    found = written(kind)
    assert len(found) == prompts
    assert Counter(Counter(p.category for p in found).values()) == {10: categories}
    assert {p.source for p in found} == {WRITTEN + kind}


def test_some_helpful_ones_are_conversations_of_several_turns() -> None:
    turns = Counter(len(prompt.conversation.messages) for prompt in written("helpful"))
    assert turns[3] >= 20


def test_no_two_of_all_five_hundred_say_nearly_the_same() -> None:
    index = NearDuplicates(0.3)
    for kind in WRITTEN_KINDS:
        for prompt in written(kind):
            text = " ".join(turn.content for turn in prompt.conversation.messages)
            assert index.find(text) is None, text
            index.keep(text)


def test_they_differ_from_one_another_throughout() -> None:
    for kind in WRITTEN_KINDS:
        found = diversity([p.conversation.messages[-1].content for p in written(kind)])
        assert (found.nearest or 1.0) < 0.15, (kind, found)


def test_a_set_is_named_in_a_configuration_and_an_unknown_one_refused(tmp_path: Path) -> None:
    config = load_config("sandbox", ["prompts.helpfulness=[{source: 'written:helpful', count: 9}]"])
    (source,) = config.prompts.helpfulness
    assert (source.source, source.count) == ("written:helpful", 9)
    with pytest.raises(ConfigError, match=r"written:sounds_harmful, got 'written:evil'"):
        load_config("sandbox", ["prompts.red_team=['written:evil']"])
