"""The judge over log-probabilities that are known: orders, principles, chains, non-verdicts."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import pytest

from solon.chat import Conversation
from solon.constitution import AbsoluteQuestion, Constitution, Principle
from solon.constitution.prompts import (
    OPTION_A,
    OPTION_B,
    comparison_prompt,
    reasoning_prompt,
    score_prompt,
    verdict_prompt,
)
from solon.engine import EngineOptions, create
from solon.engine.base import ContextExceeded, FinishReason, Sampling
from solon.judge.judge import Judge
from solon.judge.questions import ChainOfThought, Manner, Question
from solon.serving.readings import NoVerdict
from solon.serving.testing import FunctionEngine, Said

KIND = Principle(id="kind", comparison_instruction="Which is kinder?")
CALM = Principle(id="calm", weight=3, comparison_instruction="Which is calmer?")
ASKED = Conversation.from_user("Can you help?")
CORE = Constitution(name="core", version="1", principles=(KIND, CALM))
Logprob = Callable[[Conversation, str], float]


def question(*principles: Principle) -> Question:
    return Question(constitution=CORE, principles=principles or (KIND,), conversation=ASKED)


def prefers(chance: Callable[[str], float], mass: float = 1.0) -> Logprob:
    """An option's probability: ``chance`` of the text that is shown as it, of ``mass``."""

    def logprob(prompt: Conversation, option: str) -> float:
        shown = prompt.messages[0].content
        first = shown.split(f"{OPTION_A} ")[1].split("\n")[0]
        probability = chance(first) * mass
        return math.log(probability if option == OPTION_A else mass - probability)

    return logprob


# a judge that sees which is good, and leans to what stands first
LEANING = prefers(lambda first: 0.9 if first == "good" else 0.4)


async def test_all_principles_and_both_orders_are_scored_in_one_call_with_prefixes_adjacent() -> (
    None
):
    engine = FunctionEngine(logprob=LEANING)
    await Judge(engine).compare(question(KIND, CALM), "good", "bad", Manner())
    assert engine.scored == [
        [
            comparison_prompt(CORE, KIND, ASKED, "good", "bad"),
            comparison_prompt(CORE, CALM, ASKED, "good", "bad"),
            comparison_prompt(CORE, KIND, ASKED, "bad", "good"),
            comparison_prompt(CORE, CALM, ASKED, "bad", "good"),
        ]
    ]


async def test_both_orders_are_averaged_and_given() -> None:
    judge = Judge(FunctionEngine(logprob=LEANING))
    comparison = await judge.compare(question(), "good", "bad", Manner())
    # as given: 0.9 that the first, good, is better; swapped: 0.4 that the first, bad, is
    (verdict,) = comparison.principles
    given, swapped = verdict.orders
    assert (given.swapped, swapped.swapped) == (False, True)
    assert given.probability_a == pytest.approx(0.9)
    assert swapped.probability_a == pytest.approx(0.6)
    assert (swapped.logprob_a, swapped.logprob_b) == pytest.approx((math.log(0.6), math.log(0.4)))
    assert verdict.probability_a == comparison.probability_a == pytest.approx(0.75)
    assert verdict.position_dependent is False


async def test_swapping_the_responses_turns_the_verdict_around() -> None:
    judge = Judge(FunctionEngine(logprob=LEANING))
    one = await judge.compare(question(KIND, CALM), "good", "bad", Manner())
    other = await judge.compare(question(KIND, CALM), "bad", "good", Manner())
    assert one.probability_a is not None
    assert other.probability_a == pytest.approx(1 - one.probability_a)


async def test_a_choice_that_follows_the_position_is_cancelled_and_said_to() -> None:
    judge = Judge(FunctionEngine(logprob=prefers(lambda first: 0.8)))
    (verdict,) = (await judge.compare(question(), "good", "bad", Manner())).principles
    assert verdict.probability_a == pytest.approx(0.5)
    assert verdict.position_dependent is True


async def test_one_order_is_half_the_work_and_says_nothing_of_position() -> None:
    engine = FunctionEngine(logprob=LEANING)
    manner = Manner(both_orders=False)
    comparison = await Judge(engine).compare(question(), "good", "bad", manner)
    (verdict,) = comparison.principles
    assert [order.swapped for order in verdict.orders] == [False]
    assert verdict.probability_a == pytest.approx(0.9)
    assert verdict.position_dependent is None
    assert comparison.usage.model_calls == 1


async def test_principles_are_averaged_by_weight() -> None:
    def logprob(prompt: Conversation, option: str) -> float:
        chance = 0.2 if "kinder" in prompt.messages[-1].content else 0.6
        return math.log(chance if option == OPTION_A else 1 - chance)

    judge = Judge(FunctionEngine(logprob=logprob))
    manner = Manner(both_orders=False)
    comparison = await judge.compare(question(KIND, CALM), "x", "y", manner)
    # (1 * 0.2 + 3 * 0.6) / 4
    assert comparison.probability_a == pytest.approx(0.5)
    assert [v.principle.id for v in comparison.principles] == ["kind", "calm"]


async def test_options_that_the_model_did_not_mean_give_no_verdict() -> None:
    engine = FunctionEngine(logprob=prefers(lambda first: 0.9, mass=0.01))
    refused = await Judge(engine).compare(question(), "x", "y", Manner(min_option_mass=0.02))
    assert (refused.probability_a, refused.no_verdict) == (None, NoVerdict.NO_PRINCIPLE)
    (verdict,) = refused.principles
    assert (verdict.probability_a, verdict.no_verdict) == (None, NoVerdict.LOW_OPTION_MASS)
    assert verdict.position_dependent is None
    assert math.exp(verdict.orders[0].logprob_a) == pytest.approx(0.009)
    trusted = await Judge(engine).compare(question(), "x", "y", Manner(min_option_mass=0.0099))
    assert trusted.probability_a == pytest.approx(0.5)
    assert trusted.no_verdict is None


@pytest.mark.parametrize("odd", [math.nan, -math.inf, math.inf])
async def test_a_logprob_that_is_no_number_gives_no_verdict(odd: float) -> None:
    def logprob(prompt: Conversation, option: str) -> float:
        return odd if option == OPTION_B else -1.0

    comparison = await Judge(FunctionEngine(logprob=logprob)).compare(
        question(), "x", "y", Manner()
    )
    assert comparison.principles[0].no_verdict is NoVerdict.NOT_FINITE
    assert comparison.no_verdict is NoVerdict.NO_PRINCIPLE


async def test_a_missing_order_leaves_its_principle_without_a_verdict_and_the_others_with() -> None:
    def logprob(prompt: Conversation, option: str) -> float:
        content = prompt.messages[-1].content
        broken = "kinder" in content and f"{OPTION_A} y" in content
        return math.nan if broken else LEANING(prompt, option)

    judge = Judge(FunctionEngine(logprob=logprob))
    comparison = await judge.compare(question(KIND, CALM), "x", "y", Manner())
    kind, calm = comparison.principles
    assert [order.no_verdict for order in kind.orders] == [None, NoVerdict.NOT_FINITE]
    assert (kind.probability_a, kind.no_verdict) == (None, NoVerdict.NOT_FINITE)
    assert comparison.probability_a == calm.probability_a
    assert comparison.no_verdict is None


def thought(chains: int = 1, clamp: float = 0.0) -> Manner:
    sampling = Sampling(seed=7, max_tokens=50)
    return Manner(chain_of_thought=ChainOfThought(chains=chains, clamp=clamp, sampling=sampling))


def reasons(*chains: str | Said) -> FunctionEngine:
    """A judge whose nth chain is the nth given; "A 0.9" then gives (A) 0.9 of the mass."""
    seen: dict[str, int] = {}

    def answer(conversation: Conversation, sampling: Sampling) -> str | Said:
        asked = conversation.messages[-1].content
        seen[asked] = seen.get(asked, -1) + 1
        return chains[seen[asked]]

    def logprob(prompt: Conversation, option: str) -> float:
        chance = float(prompt.messages[1].content.split()[1])
        return math.log(chance if option == OPTION_A else 1 - chance)

    return FunctionEngine(answer=answer, logprob=logprob)


async def test_a_chain_of_thought_is_reasoned_first_and_answered_in_a_further_turn() -> None:
    engine = reasons("A 0.9")
    comparison = await Judge(engine).compare(question(), "x", "y", thought())
    asked = [conversation for conversation, _ in engine.asked]
    reasoned = [
        reasoning_prompt(KIND, ASKED, "x", "y"),
        reasoning_prompt(KIND, ASKED, "y", "x"),
    ]
    assert asked == reasoned
    assert engine.scored == [[verdict_prompt(prompt, "A 0.9") for prompt in reasoned]]
    given, swapped = comparison.principles[0].orders
    assert given.chains == swapped.chains == ("A 0.9",)
    assert given.probability_a == pytest.approx(0.9)
    assert swapped.probability_a == pytest.approx(0.1)
    assert comparison.usage.model_calls == 4


async def test_chains_are_averaged_then_clamped() -> None:
    judge = Judge(reasons("A 0.9", "A 0.5"))
    free = await judge.compare(question(), "x", "y", thought(chains=2))
    (given, _) = free.principles[0].orders
    assert given.probability_a == pytest.approx(0.7)
    assert given.logprob_a == pytest.approx((math.log(0.9) + math.log(0.5)) / 2)
    judge = Judge(reasons("A 0.9", "A 0.5"))
    clamped = await judge.compare(question(), "x", "y", thought(chains=2, clamp=0.4))
    readings = clamped.principles[0].orders[0].readings
    assert [r.probability_a for r in readings] == pytest.approx([0.9, 0.5])
    assert [o.probability_a for o in clamped.principles[0].orders] == pytest.approx([0.6, 0.4])


async def test_only_chains_of_thought_are_clamped() -> None:
    judge = Judge(FunctionEngine(logprob=prefers(lambda first: 0.99 if first == "x" else 0.01)))
    assert (await judge.compare(question(), "x", "y", Manner())).probability_a == pytest.approx(
        0.99
    )


@pytest.mark.parametrize(
    "unreadable",
    [
        "",
        " \n",
        "(A)",
        "(B) (B) (A). 42!?",
        Said("A 0.9", FinishReason.LENGTH),
        Said("A 0.9", FinishReason.ABORT),
    ],
)
async def test_a_chain_without_an_end_gives_no_answer(unreadable: str | Said) -> None:
    engine = reasons(unreadable)
    comparison = await Judge(engine).compare(question(), "x", "y", thought())
    (verdict,) = comparison.principles
    assert verdict.no_verdict is NoVerdict.UNREADABLE_ANSWER
    assert all(math.isnan(order.logprob_a) for order in verdict.orders)
    assert engine.scored == []


async def test_unreadable_chains_are_left_out_of_the_mean() -> None:
    judge = Judge(reasons("", "A 0.8", Said("A 0.1", FinishReason.LENGTH)))
    comparison = await judge.compare(question(), "x", "y", thought(chains=3))
    given, _ = comparison.principles[0].orders
    assert given.probability_a == pytest.approx(0.8)
    assert len(given.chains) == 3
    assert [r.no_verdict for r in given.readings] == [
        NoVerdict.UNREADABLE_ANSWER,
        None,
        NoVerdict.UNREADABLE_ANSWER,
    ]
    assert given.readings[1].probability_a == pytest.approx(0.8)


async def test_every_chain_has_a_seed_that_depends_on_nothing_else_in_the_request() -> None:
    async def seeds(*principles: Principle) -> dict[Conversation, list[int]]:
        engine = reasons("A 0.9", "A 0.9", "A 0.9")
        await Judge(engine).compare(question(*principles), "x", "y", thought(chains=3))
        found: dict[Conversation, list[int]] = {}
        for conversation, sampling in engine.asked:
            found.setdefault(conversation, []).append(sampling.seed)
        return found

    both, alone = await seeds(KIND, CALM), await seeds(CALM)
    assert len({seed for chain in both.values() for seed in chain}) == 12
    assert alone.items() <= both.items()


SCALE = Principle(
    id="scale",
    weight=3,
    absolute_question=AbsoluteQuestion(text="How kind?", answers={"1": 1.0, "2": 2.0, "3": 3.0}),
)
YES = Principle(
    id="yes", absolute_question=AbsoluteQuestion(text="Kind?", answers={"Yes": 1.0, "No": 0.0})
)


def says(**probabilities: float) -> FunctionEngine:
    return FunctionEngine(logprob=lambda prompt, text: math.log(probabilities[f"_{text}"]))


async def test_a_score_is_the_expectation_of_the_answers_and_principles_are_weighted() -> None:
    engine = says(_1=0.1, _2=0.1, _3=0.2, _Yes=0.6, _No=0.2)
    score = await Judge(engine).score(question(SCALE, YES), "No.")
    scale, yes = score.principles
    # 0.25 * 1 + 0.25 * 2 + 0.5 * 3, of a mass of 0.4
    assert scale.score == pytest.approx(2.25)
    assert scale.probabilities == pytest.approx({"1": 0.25, "2": 0.25, "3": 0.5})
    assert scale.option_mass == pytest.approx(0.4)
    assert yes.score == pytest.approx(0.75)
    assert score.score == pytest.approx((3 * 2.25 + 0.75) / 4)
    assert engine.scored == [[score_prompt(p, ASKED, "No.") for p in (SCALE, YES)]]


async def test_a_score_of_answers_that_the_model_did_not_mean_is_none() -> None:
    engine = says(_1=0.1, _2=0.1, _3=0.2, _Yes=0.6, _No=0.2)
    score = await Judge(engine).score(question(SCALE, YES), "No.", min_option_mass=0.5)
    scale, _ = score.principles
    assert (scale.score, scale.no_verdict) == (None, NoVerdict.LOW_OPTION_MASS)
    assert scale.probabilities == pytest.approx({"1": 0.25, "2": 0.25, "3": 0.5})
    assert score.score == pytest.approx(0.75)


async def test_no_score_at_all_says_so() -> None:
    engine = FunctionEngine(logprob=lambda prompt, text: -math.inf)
    score = await Judge(engine).score(question(YES), "No.")
    assert (score.score, score.no_verdict) == (None, NoVerdict.NO_PRINCIPLE)
    assert score.principles[0].no_verdict is NoVerdict.NOT_FINITE
    assert score.principles[0].probabilities == {}


def by_quality(prompt: Conversation, option: str) -> float:
    """Responses are numbers; the chance of being better is that of their difference."""
    shown = prompt.messages[0].content
    first, second = (
        float(shown.split(f"{one} ")[1].split("\n")[0]) for one in (OPTION_A, OPTION_B)
    )
    margin = first - second if option == OPTION_A else second - first
    return -math.log1p(math.exp(-margin))


async def test_a_ranking_finds_the_order_and_the_distances() -> None:
    engine = FunctionEngine(logprob=by_quality)
    ranking = await Judge(engine).rank(question(KIND, CALM), ["-1", "1.5", "-0.5"], Manner())
    assert [place.index for place in ranking.ranking] == [1, 2, 0]
    assert [place.strength for place in ranking.ranking] == pytest.approx([1.5, -0.5, -1.0])
    pairs = [(pair.index_a, pair.index_b) for pair in ranking.pairs]
    assert pairs == [(0, 1), (0, 2), (1, 2)]
    better = 1 / (1 + math.exp(-2.0))
    best = 1 / (1 + math.exp(-2.5))
    assert ranking.ranking[0].win_rate == pytest.approx((better + best) / 2)
    assert len(engine.scored) == 1
    assert ranking.usage.model_calls == 12


async def test_a_ranking_may_compare_only_as_many_pairs_as_settle_it() -> None:
    engine = FunctionEngine(logprob=by_quality)
    said = ["-1", "1.5", "-0.5", "0.75", "3", "-2"]
    ranking = await Judge(engine).rank(question(), said, Manner(), every_pair=False)
    assert [place.index for place in ranking.ranking] == [4, 1, 3, 2, 0, 5]
    whole = await Judge(engine).rank(question(), said, Manner())
    assert [p.strength for p in ranking.ranking] == pytest.approx(
        [p.strength for p in whole.ranking]
    )
    # a chain, then those neighbours of the order that were not in it
    assert (len(ranking.pairs), len(whole.pairs)) == (9, 15)


async def test_a_response_without_a_verdict_comes_last_without_a_strength() -> None:
    def logprob(prompt: Conversation, option: str) -> float:
        return math.nan if "broken" in prompt.messages[0].content else -1.0

    judge = Judge(FunctionEngine(logprob=logprob))
    ranking = await judge.rank(question(), ["broken", "x", "y"], Manner())
    assert [place.index for place in ranking.ranking] == [1, 2, 0]
    last = ranking.ranking[-1]
    assert (last.strength, last.win_rate) == (None, None)
    assert [pair.no_verdict for pair in ranking.pairs] == [
        NoVerdict.NO_PRINCIPLE,
        NoVerdict.NO_PRINCIPLE,
        None,
    ]


async def test_a_request_whose_first_prompt_does_not_fit_makes_no_others() -> None:
    # sixteen responses are 120 pairs, each shown in both orders with all of the conversation
    responses = ["much too long " * 10_000 + str(index) for index in range(16)]
    engine = create("scripted", EngineOptions(model=""))
    tracemalloc.start()
    with pytest.raises(ContextExceeded):
        await Judge(engine).rank(question(KIND, CALM), responses, Manner())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60 * len(responses[0])
