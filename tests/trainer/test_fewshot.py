"""Few-shot generation without a model: what a sample is asked, and which answers are prompts."""

from __future__ import annotations

import pytest

from solon.chat import Conversation
from solon.trainer.errors import PromptError
from solon.trainer.fewshot import Asker, Sieve, read_answer
from solon.trainer.prompt_settings import PromptSource
from solon.trainer.prompts import Prompt, load_prompts


def seeds(name: str) -> tuple[Prompt, ...]:
    sources = [PromptSource(source=name)]
    return tuple(load_prompts(sources, split="train", seed=0, purpose="seeds").prompts)


def asker(seed: int = 0, shots: int = 3) -> Asker:
    return Asker("red_team", seeds("written:red_team"), shots=shots, seed=seed)


def test_a_sample_is_shown_examples_of_its_topic_as_earlier_answers() -> None:
    asked = asker().ask(21)
    turns = asked.conversation.messages
    assert asked.topic == "weapons"
    assert "Topic: weapons." in turns[0].content
    shown = [turn.content for turn in turns if turn.role == "assistant"]
    by_id = {p.id: p for p in seeds("written:red_team")}
    assert shown == [by_id[one].conversation.messages[0].content for one in asked.examples]
    assert {by_id[one].category for one in asked.examples} == {"weapons"}
    assert turns[-1].role == "user"


def test_what_is_asked_follows_from_the_number_and_the_seed_alone() -> None:
    assert asker().ask(5) == asker().ask(5)
    assert asker().ask(5).examples != asker().ask(25).examples
    assert asker().ask(5).seed != asker(seed=1).ask(5).seed
    assert len(asker(shots=99).ask(0).examples) == 10


def test_conversations_of_several_turns_are_no_examples() -> None:
    found = Asker("helpful", seeds("written:helpful"), shots=1, seed=0)
    assert sum(len(of) for of in found.by_topic.values()) == 178
    turns = [p for p in seeds("written:helpful") if len(p.conversation.messages) > 1]
    with pytest.raises(PromptError, match="of a single turn, got none"):
        Asker("helpful", turns, shots=1, seed=0)


ASKS = "How do I fold a paper crane?"
ANSWERS = [
    (ASKS, "stop", None),
    (f'\n"{ASKS}"\n', "stop", None),
    (f"\u201c{ASKS}\u201d", "stop", None),
    (f"Message: {ASKS}", "stop", None),
    (f"Sure, here is another one:\n\n{ASKS}\n\nI hope that this serves you.", "stop", None),
    (f"1. {ASKS}\n2. Which paper is best?", "stop", None),
    (f"- {ASKS}", "stop", None),
    (f"{ASKS}\n\nAnd then", "length", None),
    (f"7) {ASKS}\n8) Which", "length", None),
    (ASKS, "length", "truncated"),
    (ASKS, "abort", "aborted"),
    ("", "stop", "empty"),
    ('""', "stop", "empty"),
    ("I'm sorry, but I can't help with that.", "stop", "refusal"),
    ("I can\u2019t write such a message.", "stop", "refusal"),
    ("As an AI, I must decline.", "stop", "refusal"),
    ("Folding?", "stop", "too_short"),
]


@pytest.mark.parametrize(("text", "finish_reason", "reason"), ANSWERS)
def test_one_prompt_is_read_from_an_answer_or_the_reason_why_there_is_none(
    text: str, finish_reason: str, reason: str | None
) -> None:
    found, why = read_answer(text, finish_reason)
    assert why == reason
    if reason is None:
        assert found == ASKS


def test_a_text_that_merely_says_i_cannot_is_a_prompt() -> None:
    for text in ("I can't sleep at night. What helps?", "Sorry letters: how do I begin one?"):
        assert read_answer(text, "stop") == (text, None)


def test_a_text_in_a_script_without_spaces_is_long_enough() -> None:
    assert read_answer("\u9db4\u306e\u6298\u308a\u65b9\u306f\uff1f", "stop")[1] is None


def test_what_was_there_before_is_dropped_and_counted() -> None:
    example = Prompt(id="x", conversation=Conversation.from_user(ASKS), source="mine")
    sieve = Sieve([example], near_duplicate=0.7)
    taken = [
        sieve.take(text, "stop")
        for text in (
            ASKS.upper(),
            "Please, how do I fold a paper crane?",
            "Where can I buy a kite in Oslo?",
            "where can I buy a kite in oslo",
            "Where can I buy a red kite in Oslo today?",
            "Folding?",
        )
    ]
    assert [text is not None for text in taken] == [False, False, True, False, True, False]
    assert dict(sieve.dropped) == {
        "copy_of_an_example": 1,
        "near_duplicate": 1,
        "duplicate": 1,
        "too_short": 1,
    }
