"""The critic's chains: principles, seeds, outcomes, prompts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from solon.chat import Conversation
from solon.constitution import AbsoluteQuestion, Constitution, CritiqueExemplar, Principle
from solon.constitution.prompts import (
    assessment_prompt,
    critique_prompt,
    question_prompt,
    revision_prompt,
)
from solon.critic.critic import Critic, draw_rounds
from solon.critic.reviews import PAPER, Manner, Outcome, Review, Round
from solon.engine.base import EngineFailed, FinishReason, Sampling, Usage
from solon.serving.errors import WeightVersionMismatch
from solon.serving.readings import NoVerdict
from solon.serving.testing import FunctionEngine, Said

KIND = Principle(id="kind", critique_request="What is unkind?", revision_request="Be kind.")
CALM = Principle(id="calm", weight=3, critique_request="What is rash?", revision_request="Be calm.")
CORE = Constitution(name="core", version="1", principles=(KIND, CALM))
BY_NAME = {"kind": KIND, "calm": CALM}
ASKED = Conversation.from_user("Can you help?")
FIRST = Review(constitution=CORE, principle=KIND, conversation=ASKED, response="No.")


def is_critique(conversation: Conversation) -> bool:
    return "Critique request" in conversation.messages[-1].content


def model(critique: str | Said = "Curt.", revision: str | Said = "Gladly.") -> FunctionEngine:
    """An engine whose texts tell the seed, unless they are empty or cut."""

    def answer(conversation: Conversation, sampling: Sampling) -> str | Said:
        said = critique if is_critique(conversation) else revision
        return f"{said} {sampling.seed}" if isinstance(said, str) and said.strip() else said

    return FunctionEngine(answer=answer)


async def chain(engine: FunctionEngine, rounds: int = 2, **manner: Any) -> list[Round]:
    principles = [KIND, CALM, KIND, CALM][:rounds]
    sampling = Sampling(seed=7)
    made = Critic(engine).refine(FIRST, principles, sampling, Manner(**manner))
    return [one async for one in made]


async def test_a_critique_asks_by_the_principle_and_a_revision_in_the_light_of_it() -> None:
    engine = model()
    critic = Critic(engine)
    critique = await critic.critique(FIRST, Sampling(seed=1))
    revision = await critic.revise(FIRST, "Curt.", Sampling(seed=2))
    plain = await critic.revise(FIRST, None, Sampling(seed=3))
    assert [conversation for conversation, _ in engine.asked] == [
        critique_prompt(CORE, KIND, ASKED, "No."),
        revision_prompt(CORE, KIND, ASKED, "No.", "Curt."),
        revision_prompt(CORE, KIND, ASKED, "No.", None),
    ]
    assert critique.text.generation.text == "Curt. 1"
    assert [made.text.seed for made in (critique, revision, plain)] == [1, 2, 3]


async def test_each_round_works_on_the_revision_before_it() -> None:
    engine = model()
    first, second = await chain(engine)
    assert first.critique is not None
    assert first.revision is not None
    before = first.revision.generation.text
    assert second.critique is not None
    assert [conversation for conversation, _ in engine.asked] == [
        critique_prompt(CORE, KIND, ASKED, "No."),
        revision_prompt(CORE, KIND, ASKED, "No.", first.critique.generation.text),
        critique_prompt(CORE, CALM, ASKED, before),
        revision_prompt(CORE, CALM, ASKED, before, second.critique.generation.text),
    ]
    assert [(r.number, r.principle.id) for r in (first, second)] == [(1, "kind"), (2, "calm")]


async def test_every_call_of_a_chain_has_a_seed_of_its_own() -> None:
    engine = model()
    await chain(engine, rounds=4)
    assert len({sampling.seed for _, sampling in engine.asked}) == 8


async def test_a_chain_is_repeated_by_its_seed_and_does_not_depend_on_how_many_rounds_follow() -> (
    None
):
    assert await chain(model(), rounds=4) == await chain(model(), rounds=4)
    assert (await chain(model(), rounds=4))[:2] == await chain(model(), rounds=2)


async def test_a_call_of_a_chain_is_repeated_alone_by_its_own_seed() -> None:
    _, second = await chain(model())
    assert second.critique is not None
    alone = await Critic(model()).critique(FIRST, Sampling(seed=second.critique.seed))
    assert alone.text.generation.text == second.critique.generation.text


async def test_a_round_counts_its_own_cost() -> None:
    rounds = await chain(model())
    assert [r.usage for r in rounds] == [
        Usage(prompt_tokens=20, completion_tokens=4, model_calls=2)
    ] * 2


async def test_without_critiques_only_revisions_are_made() -> None:
    engine = model()
    rounds = await chain(engine, skip_critique=True)
    assert [r.critique for r in rounds] == [None, None]
    assert not any(is_critique(conversation) for conversation, _ in engine.asked)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (Said("text"), Outcome.MADE),
        (Said("text", FinishReason.LENGTH), Outcome.TRUNCATED),
        (Said("text", FinishReason.ABORT), Outcome.ABORTED),
        (Said("", FinishReason.ABORT), Outcome.ABORTED),
        (Said(""), Outcome.EMPTY),
        (Said(" \n"), Outcome.EMPTY),
        (Said(" \n", FinishReason.LENGTH), Outcome.EMPTY),
    ],
)
async def test_what_became_of_a_text_is_typed(said: Said, outcome: Outcome) -> None:
    made = await Critic(model(critique=said)).critique(FIRST, Sampling())
    assert made.text.outcome is outcome


async def test_an_empty_critique_is_no_critique_and_the_round_goes_on_without_one() -> None:
    engine = model(critique="")
    rounds = await chain(engine)
    assert [r.critique.outcome for r in rounds if r.critique] == [Outcome.EMPTY] * 2
    assert [r.revision_outcome for r in rounds] == [Outcome.MADE] * 2
    assert engine.asked[1][0] == revision_prompt(CORE, KIND, ASKED, "No.", None)


async def test_a_cut_critique_is_heeded_as_far_as_it_goes() -> None:
    engine = model(critique=Said("It is cu", FinishReason.LENGTH))
    (made,) = await chain(engine, rounds=1)
    assert made.critique is not None
    assert made.critique.outcome is Outcome.TRUNCATED
    assert engine.asked[1][0] == revision_prompt(CORE, KIND, ASKED, "No.", "It is cu")


async def test_an_aborted_critique_ends_the_chain_before_a_revision() -> None:
    engine = model(critique=Said("It is", FinishReason.ABORT))
    (made,) = await chain(engine, rounds=4)
    assert made.critique is not None
    assert made.critique.outcome is Outcome.ABORTED
    assert (made.revision, made.revision_outcome) == (None, Outcome.ABORTED)
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("said", "outcome"),
    [(Said(" "), Outcome.EMPTY), (Said("Glad", FinishReason.ABORT), Outcome.ABORTED)],
)
async def test_a_revision_that_is_no_response_ends_the_chain(said: Said, outcome: Outcome) -> None:
    (made,) = await chain(model(revision=said), rounds=4)
    assert made.revision_outcome is outcome


async def test_a_cut_revision_is_revised_further() -> None:
    rounds = await chain(model(revision=Said("Glad", FinishReason.LENGTH)), rounds=3)
    assert [r.revision_outcome for r in rounds] == [Outcome.TRUNCATED] * 3


async def test_new_weights_end_a_chain_rather_than_mix_with_the_old() -> None:
    engine = model()
    rounds = Critic(engine).refine(FIRST, [KIND, CALM], Sampling())
    assert (await anext(rounds)).weight_version == "initial"
    await engine.update_weights("/next", "step-1")
    with pytest.raises(WeightVersionMismatch):
        await anext(rounds)


async def test_rounds_before_an_error_are_given() -> None:
    engine = model()

    def fails_later(conversation: Conversation, sampling: Sampling) -> str:
        if len(engine.asked) > 2:
            raise EngineFailed("lost")
        return "text"

    engine.answer = fails_later
    rounds = Critic(engine).refine(FIRST, [KIND, CALM], Sampling())
    assert (await anext(rounds)).number == 1
    with pytest.raises(EngineFailed):
        await anext(rounds)


def finds(**faults: float) -> FunctionEngine:
    """A model that finds something to criticise with these probabilities, by principle."""
    engine = model()

    def logprob(prompt: Conversation, answer: str) -> float:
        asked = prompt.messages[-1].content
        fault = next(
            p for name, p in faults.items() if str(BY_NAME[name].critique_request) in asked
        )
        return math.log(fault if answer == "Yes" else 1 - fault)

    engine.logprob = logprob
    return engine


async def test_a_round_that_finds_too_little_is_not_made_and_the_next_looks_at_the_same() -> None:
    engine = finds(kind=0.01, calm=0.75)
    first, second, third = await chain(engine, rounds=3, not_needed_below=0.1)
    assert [r.revision_outcome for r in (first, second, third)] == [
        Outcome.NOT_NEEDED,
        Outcome.MADE,
        Outcome.NOT_NEEDED,
    ]
    assert (first.critique, first.revision) == (None, None)
    assert engine.asked[0][0] == critique_prompt(CORE, CALM, ASKED, "No.")
    assert second.revision is not None
    revised = second.revision.generation.text
    assert [prompt for (prompt,) in engine.scored] == [
        assessment_prompt(KIND, ASKED, "No."),
        assessment_prompt(CALM, ASKED, "No."),
        assessment_prompt(KIND, ASKED, revised),
    ]
    found = [r.assessment.probability for r in (first, second, third) if r.assessment]
    assert found == pytest.approx([0.01, 0.75, 0.01])
    # one that was not needed cost one prefill and no generation
    assert first.usage == Usage(prompt_tokens=10, model_calls=1)


async def test_rounds_that_are_made_are_those_of_a_chain_that_assesses_nothing() -> None:
    with_assessments = await chain(finds(kind=0.5, calm=0.5), not_needed_below=0.5)
    without = await chain(model())
    assert [(r.critique, r.revision) for r in with_assessments] == [
        (r.critique, r.revision) for r in without
    ]
    assert [r.assessment for r in without] == [None, None]


async def test_without_a_verdict_the_round_is_made_and_says_why_there_is_none() -> None:
    engine = finds(kind=0.01)
    engine.logprob = lambda prompt, answer: math.nan
    (made,) = await chain(engine, rounds=1, not_needed_below=1.0)
    assert made.assessment is not None
    assert (made.assessment.probability, made.assessment.no_verdict) == (None, NoVerdict.NOT_FINITE)
    assert made.revision_outcome is Outcome.MADE


async def test_a_principles_own_question_tells_how_much_there_is_to_criticise() -> None:
    def logprob(prompt: Conversation, answer: str) -> float:
        return math.log({"1": 0.5, "2": 0.25, "3": 0.25}[answer])

    # 2 for certain would be as good as it gets; expected are 0.5 of -2 to 2
    scaled = AbsoluteQuestion(text="How kind?", answers={"1": -2.0, "3": 2.0, "2": 2.0})
    rated = Principle(id="rated", absolute_question=scaled)
    critic = Critic(FunctionEngine(logprob=logprob))
    assessed = await critic.assess([rated], ASKED, "No.")
    assert assessed.principles[0].probability == pytest.approx(0.5)
    assert dict(assessed.principles[0].logprobs) == pytest.approx(
        {"1": math.log(0.5), "2": math.log(0.25), "3": math.log(0.25)}
    )
    huge = AbsoluteQuestion(text="?", answers={"1": -1.7e308, "2": 1.7e308, "3": 1.7e308})
    tiny = AbsoluteQuestion(text="?", answers={"1": 0.0, "2": 5e-324, "3": 5e-324})
    for question in (huge, tiny):
        odd = Principle(id="odd", absolute_question=question)
        assessed = await critic.assess([odd], ASKED, "No.")
        assert 0 <= (assessed.probability or math.nan) <= 1


async def test_the_worst_principle_decides_and_one_without_a_verdict_does_not() -> None:
    engine = finds(kind=0.25, calm=0.5)
    assessed = await Critic(engine).assess([KIND, CALM], ASKED, "No.")
    assert assessed.probability == pytest.approx(0.5)
    assert len(engine.scored) == 1
    silent = await Critic(engine).assess([KIND, CALM], ASKED, "No.", min_option_mass=1.1)
    assert (silent.probability, silent.no_verdict) == (None, NoVerdict.NO_PRINCIPLE)
    assert {one.no_verdict for one in silent.principles} == {NoVerdict.LOW_OPTION_MASS}


def test_principles_are_drawn_anew_for_every_round_with_odds_by_weight() -> None:
    pairs = Counter(
        tuple(p.id for p in draw_rounds(CORE.principles, 2, seed)) for seed in range(1_000)
    )
    # odds of 3 to 1 in each round, whatever the other drew; 63 is four standard deviations
    expected = {("calm", "calm"): 562.5, ("calm", "kind"): 187.5, ("kind", "calm"): 187.5}
    assert all(abs(pairs[pair] - count) < 63 for pair, count in expected.items())


def test_drawn_principles_do_not_depend_on_how_many_rounds_follow() -> None:
    assert draw_rounds(CORE.principles, 8, 5)[:3] == draw_rounds(CORE.principles, 3, 5)


STEPS = Principle(
    id="steps",
    critique_request="What is unkind?",
    revision_request="Be kind.",
    questions=("Who is hurt?", "How?", "Why?"),
)
ASKS = replace(FIRST, principle=STEPS, constitution=replace(CORE, principles=(STEPS, CALM)))


def stepwise(**said: str | Said) -> FunctionEngine:
    """A model that answers each turn of a chain by what it is."""

    def answer(conversation: Conversation, sampling: Sampling) -> str | Said:
        asked = conversation.messages[-1].content
        turns = {"Who": "who", "How": "how", "Why": "why", "Critique": "critique"}
        named = next((name for word, name in turns.items() if word in asked), "revision")
        return said.get(named, f"{named} {sampling.seed}")

    return FunctionEngine(answer=answer)


async def steps(engine: FunctionEngine, review: Review = ASKS, manner: Manner = PAPER) -> Round:
    made = Critic(engine).refine(review, [STEPS], Sampling(seed=7), manner)
    (only,) = [one async for one in made]
    return only


async def test_each_question_is_a_turn_and_critique_and_revision_rest_on_every_answer() -> None:
    engine = stepwise()
    made = await steps(engine)
    answers = [answer.text.generation.text for answer in made.answers]
    assert [(a.number, a.question) for a in made.answers] == [
        *enumerate(("Who is hurt?", "How?", "Why?"), start=1)
    ]
    assert made.critique is not None
    critique = made.critique.generation.text
    where = (ASKS.constitution, STEPS, ASKED, "No.")
    asked = [conversation for conversation, _ in engine.asked]
    assert asked == [
        question_prompt(*where),
        question_prompt(*where, answers[:1]),
        question_prompt(*where, answers[:2]),
        critique_prompt(*where, answers),
        revision_prompt(*where, critique, answers),
    ]
    # each prompt extends the one before it, so that a prefix cache has all of it but a turn
    for before, after in itertools.pairwise(asked):
        assert after.messages[: len(before.messages)] == before.messages
    assert len({sampling.seed for _, sampling in engine.asked}) == 5
    alone = await Critic(stepwise()).critique(ASKS, Sampling(seed=made.critique.seed))
    assert (alone.text, alone.answers) == (made.critique, made.answers)


async def test_an_answer_that_is_missing_is_said_to_be_and_left_out_of_what_follows() -> None:
    engine = stepwise(how=" ", why=Said("cut", FinishReason.LENGTH))
    made = await steps(engine)
    assert [a.text.outcome for a in made.answers] == [
        Outcome.MADE,
        Outcome.EMPTY,
        Outcome.TRUNCATED,
    ]
    said = [m.content for m in engine.asked[-1][0].messages]
    assert not any("How?" in text for text in said)
    assert "Question 3: Why?" in said
    assert made.revision_outcome is Outcome.MADE


async def test_an_answer_that_was_aborted_ends_the_chain_before_a_critique() -> None:
    engine = stepwise(how=Said("It", FinishReason.ABORT))
    made = await steps(engine)
    assert [a.text.outcome for a in made.answers] == [Outcome.MADE, Outcome.ABORTED]
    assert made.critique is not None
    assert (made.critique.generation.text, made.critique.outcome) == ("", Outcome.ABORTED)
    assert (made.revision, made.revision_outcome) == (None, Outcome.ABORTED)


async def test_questions_are_skipped_where_asked_to_and_without_critiques() -> None:
    for review, manner in (
        (replace(ASKS, skip_questions=True), PAPER),
        (ASKS, Manner(skip_critique=True)),
    ):
        engine = stepwise()
        made = await steps(engine, review, manner)
        assert made.answers == ()
        assert not any("Question" in c.messages[-1].content for c, _ in engine.asked)


def test_an_exemplar_of_a_principle_is_shown_with_it_alone_after_those_of_all() -> None:
    def exemplar(text: str, principle: Principle, *answers: str) -> CritiqueExemplar:
        return CritiqueExemplar(
            conversation=Conversation.from_user(text),
            response="r",
            principle=principle.id,
            answers=answers,
            critique="c",
            revision="v",
        )

    own = replace(STEPS, exemplars=(exemplar("own", STEPS, "a1", "a2", "a3"),))
    both = replace(CORE, principles=(own, CALM), critique_exemplars=(exemplar("all", CALM),))

    def shown(principle: Principle, **options: Any) -> list[str]:
        prompt = critique_prompt(both, principle, ASKED, "No.", **options)
        return [m.content for m in prompt.messages]

    with_own, without = shown(own), shown(CALM)
    # what all prompts share comes first, for the prefix cache
    assert with_own[:4] == without[:4]
    assert [text for text in with_own if text in ("a1", "a2", "a3")] == ["a1", "a2", "a3"]
    assert not any("own" in text for text in without)
    skipped = shown(own, skip_questions=True)
    assert any("own" in text for text in skipped)
    assert not any("Question" in text for text in skipped)
