"""JudgeService over a real port."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import grpc
import pytest

from solon.chat import Conversation
from solon.client import ChainOfThought, JudgeClient, errors
from solon.constitution import AbsoluteQuestion, Constitution, Principle, draw
from solon.constitution.prompts import OPTION_A
from solon.engine.base import ContentFiltered, Load, Sampling, Unsupported
from solon.judge.server import ROLE
from solon.serving.testing import FunctionEngine, running
from solon.v1 import common_pb2, judge_pb2, judge_pb2_grpc

PRINCIPLES = tuple(
    Principle(id=name, weight=weight, comparison_instruction=f"Which is more {name}?")
    for name, weight in (("kind", 1.0), ("calm", 3.0), ("brief", 1.0))
)
SCORING = Principle(
    id="score", absolute_question=AbsoluteQuestion(text="Kind?", answers={"Yes": 1.0, "No": 0.0})
)
CORE = Constitution(name="core", version="1", principles=(*PRINCIPLES, SCORING))
ASKED = common_pb2.Conversation(
    messages=[common_pb2.Message(role=common_pb2.ROLE_USER, content="Can you help?")]
)
NAMED = common_pb2.ConstitutionSource(name="core")


def logprob(prompt: Conversation, text: str) -> float:
    """0.8 for what is shown as (A), and for Yes."""
    return math.log(0.8 if text in (OPTION_A, "Yes") else 0.1)


@pytest.fixture
def engine() -> FunctionEngine:
    return FunctionEngine(logprob=logprob)


@pytest.fixture
async def stub(engine: FunctionEngine) -> AsyncIterator[judge_pb2_grpc.JudgeServiceStub]:
    async with (
        running(ROLE, engine, constitutions=[CORE]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield judge_pb2_grpc.JudgeServiceStub(channel)


def compare(**fields: object) -> judge_pb2.CompareRequest:
    return judge_pb2.CompareRequest(
        conversation=ASKED,
        response_a="No.",
        response_b="Gladly.",
        constitution=NAMED,
        **fields,  # type: ignore[arg-type]
    )


async def test_a_comparison_is_told_by_principle_and_order(
    stub: judge_pb2_grpc.JudgeServiceStub,
) -> None:
    response = await stub.Compare(compare(request_id="mine", weight_version="initial"))
    assert (response.request_id, response.weight_version) == ("mine", "initial")
    assert response.constitution_digest == CORE.digest
    assert [v.principle_id for v in response.principles] == ["kind", "calm", "brief"]
    assert [v.weight for v in response.principles] == [1, 3, 1]
    assert response.probability_a == pytest.approx(0.5)
    assert response.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_UNSPECIFIED
    for verdict in response.principles:
        assert [order.swapped for order in verdict.orders] == [False, True]
        assert [o.probability_a for o in verdict.orders] == pytest.approx([8 / 9, 1 / 9])
        assert verdict.orders[1].logprob_a == pytest.approx(math.log(0.1))
        assert verdict.probability_a == pytest.approx(0.5)
        assert verdict.position_dependent
    assert response.usage.model_calls == 6
    assert response.timing.inference.ToMilliseconds() == 500


async def test_one_order_leaves_the_positions_unsaid(
    stub: judge_pb2_grpc.JudgeServiceStub,
) -> None:
    response = await stub.Compare(compare(order_mode=judge_pb2.ORDER_MODE_AS_GIVEN))
    assert response.probability_a == pytest.approx(8 / 9)
    (order,) = response.principles[0].orders
    assert not order.swapped
    assert not response.principles[0].HasField("position_dependent")


async def test_principles_are_sampled_by_seed_or_chosen_by_id(
    stub: judge_pb2_grpc.JudgeServiceStub,
) -> None:
    sample = common_pb2.PrincipleSelection.Sample(count=2, seed=9)
    response = await stub.Compare(compare(principles=common_pb2.PrincipleSelection(sample=sample)))
    assert [v.principle_id for v in response.principles] == [p.id for p in draw(PRINCIPLES, 2, 9)]
    ids = common_pb2.PrincipleSelection.Ids(ids=["brief", "kind"])
    response = await stub.Compare(compare(principles=common_pb2.PrincipleSelection(ids=ids)))
    assert [v.principle_id for v in response.principles] == ["brief", "kind"]


async def test_a_missing_verdict_is_unset_with_a_reason(
    stub: judge_pb2_grpc.JudgeServiceStub,
) -> None:
    response = await stub.Compare(compare(min_option_mass=0.95))
    assert not response.HasField("probability_a")
    assert response.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_NO_PRINCIPLE
    for verdict in response.principles:
        assert verdict.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_LOW_OPTION_MASS
        assert not verdict.HasField("probability_a")
        assert not verdict.orders[0].HasField("probability_a")


@pytest.mark.parametrize("return_chains", [True, False])
async def test_chains_of_thought_have_their_documented_defaults(
    return_chains: bool, engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    thought = judge_pb2.ChainOfThought(
        sampling=common_pb2.SamplingParams(temperature=0.5, seed=3), return_chains=return_chains
    )
    response = await stub.Compare(compare(chain_of_thought=thought))
    # one chain for each of three principles in two orders, clamped at 0.4
    assert len(engine.asked) == 6
    assert {sampling.temperature for _, sampling in engine.asked} == {0.5}
    order = response.principles[0].orders[0]
    assert order.probability_a == pytest.approx(0.6)
    assert list(order.chains) == (["Yes."] if return_chains else [])
    assert len(order.chain_verdicts) == 1


async def test_chains_without_an_end_are_unreadable(
    engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    engine.answer = lambda conversation, sampling: ""
    response = await stub.Compare(compare(chain_of_thought=judge_pb2.ChainOfThought(chains=2)))
    reason = response.principles[0].no_verdict_reason
    assert reason == judge_pb2.NO_VERDICT_REASON_UNREADABLE_ANSWER


async def test_a_score_is_told_with_its_probabilities(
    stub: judge_pb2_grpc.JudgeServiceStub,
) -> None:
    response = await stub.Score(
        judge_pb2.ScoreRequest(
            request_id="mine", conversation=ASKED, response="No.", constitution=NAMED
        )
    )
    (one,) = response.principles
    assert (response.request_id, one.principle_id, one.weight) == ("mine", "score", 1)
    assert response.score == one.score == pytest.approx(8 / 9)
    assert one.option_mass == pytest.approx(0.9)
    assert dict(one.probabilities) == pytest.approx({"Yes": 8 / 9, "No": 1 / 9})
    assert response.constitution_digest == CORE.digest


async def test_a_score_that_is_missing_is_unset_with_a_reason(
    engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    engine.logprob = lambda prompt, text: math.nan
    response = await stub.Score(
        judge_pb2.ScoreRequest(conversation=ASKED, response="No.", constitution=NAMED)
    )
    assert not response.HasField("score")
    assert response.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_NO_PRINCIPLE
    assert response.principles[0].no_verdict_reason == judge_pb2.NO_VERDICT_REASON_NOT_FINITE


async def test_a_ranking_is_told_with_what_it_rests_on(
    engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    def by_length(prompt: Conversation, option: str) -> float:
        shown = prompt.messages[0].content
        longer = len(shown.split("(A) ")[1].split("\n")[0]) > len(
            shown.split("(B) ")[1].split("\n")[0]
        )
        return math.log(0.75 if (option == OPTION_A) == longer else 0.25)

    engine.logprob = by_length
    response = await stub.Rank(
        judge_pb2.RankRequest(
            request_id="mine",
            conversation=ASKED,
            responses=["No.", "Gladly, at once.", "Gladly."],
            constitution=NAMED,
        )
    )
    assert [place.index for place in response.ranking] == [1, 2, 0]
    assert [place.win_rate for place in response.ranking] == pytest.approx([0.75, 0.5, 0.25])
    assert sum(place.strength for place in response.ranking) == pytest.approx(0)
    assert [(p.index_a, p.index_b) for p in response.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [p.probability_a for p in response.pairs] == pytest.approx([0.25, 0.25, 0.75])
    fewest = await stub.Rank(
        judge_pb2.RankRequest(
            conversation=ASKED,
            responses=["Gladly, at once.", "Gladly.", "No."],
            constitution=NAMED,
            pair_mode=judge_pb2.PAIR_MODE_FEWEST,
        )
    )
    assert [place.index for place in fewest.ranking] == [0, 1, 2]
    assert [(p.index_a, p.index_b) for p in fewest.pairs] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("said", "first", "score"),
    [
        ("(A)", 1.0, None),
        (" **(B)** is kinder", 0.0, None),
        ("Yes.", None, 1.0),
        ("Yesterday", None, None),
    ],
)
async def test_an_engine_without_logprobs_is_heard_and_what_it_says_counts_or_is_no_verdict(
    engine: FunctionEngine,
    stub: judge_pb2_grpc.JudgeServiceStub,
    said: str,
    first: float | None,
    score: float | None,
) -> None:
    engine.supports_logprobs = False
    engine.answer = lambda conversation, sampling: said
    response = await stub.Compare(compare(min_option_mass=0.5))
    assert engine.scored == []
    assert {sampling.temperature for _, sampling in engine.asked} == {0}
    for verdict in response.principles:
        a_first, b_first = verdict.orders
        assert math.isnan(a_first.logprob_a)
        assert math.isnan(b_first.logprob_b)
        if first is None:
            assert not verdict.HasField("probability_a")
            assert a_first.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_UNREADABLE_ANSWER
        else:
            # whoever prefers a position does so in both orders, and cannot be told from a tie
            assert (a_first.probability_a, b_first.probability_a) == (first, 1 - first)
            assert verdict.probability_a == 0.5
            assert verdict.position_dependent
    assert response.HasField("probability_a") == (first is not None)
    scored = await stub.Score(
        judge_pb2.ScoreRequest(conversation=ASKED, response="Gladly.", constitution=NAMED)
    )
    (by_principle,) = scored.principles
    if score is None:
        assert by_principle.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_UNREADABLE_ANSWER
        assert not scored.HasField("score")
    else:
        assert scored.score == score
        assert dict(by_principle.probabilities) == {"Yes": 1.0, "No": 0.0}


async def test_what_a_filter_withholds_is_no_verdict_and_the_others_stand(
    engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    engine.supports_logprobs = False

    def answer(conversation: Conversation, sampling: Sampling) -> str:
        if "more kind" in conversation.messages[0].content:
            raise ContentFiltered("withheld")
        return "(A)" if sampling.max_tokens == 16 else "The first is better."

    engine.answer = answer
    filtered = judge_pb2.NO_VERDICT_REASON_FILTERED
    for thought in (None, judge_pb2.ChainOfThought(chains=2)):
        response = await stub.Compare(compare(chain_of_thought=thought))
        kind, *others = response.principles
        assert kind.no_verdict_reason == filtered
        assert not kind.HasField("probability_a")
        assert {one.no_verdict_reason for o in kind.orders for one in o.chain_verdicts} <= {
            filtered
        }
        assert [one.probability_a for one in others] == [0.5, 0.5]
    scored = await stub.Score(
        judge_pb2.ScoreRequest(conversation=ASKED, response="more kind", constitution=NAMED)
    )
    assert scored.principles[0].no_verdict_reason == filtered


async def test_chains_of_thought_of_an_engine_without_logprobs_are_averaged_and_clamped(
    engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    engine.supports_logprobs = False

    def answer(conversation: Conversation, sampling: Sampling) -> str:
        if len(conversation.messages) == 1:
            # an odd chain finds for what is shown first, an even one says nothing to the purpose
            return f"Reason {len(engine.asked) % 2}."
        return "(A)" if "1" in conversation.messages[1].content else "Neither."

    engine.answer = answer
    thought = judge_pb2.ChainOfThought(chains=4, clamp=0.3, return_chains=True)
    mode = judge_pb2.ORDER_MODE_AS_GIVEN
    response = await stub.Compare(compare(chain_of_thought=thought, order_mode=mode))
    for verdict in response.principles:
        (order,) = verdict.orders
        assert order.probability_a == pytest.approx(0.7)
        reasons = sorted(one.no_verdict_reason for one in order.chain_verdicts)
        unread = judge_pb2.NO_VERDICT_REASON_UNREADABLE_ANSWER
        assert reasons == [0, 0, unread, unread]
        assert [one.probability_a for one in order.chain_verdicts if not one.no_verdict_reason] == [
            1.0
        ] * 2


async def test_an_engine_that_refuses_to_score_is_unsupported(
    engine: FunctionEngine, stub: judge_pb2_grpc.JudgeServiceStub
) -> None:
    def refuse(prompt: Conversation, text: str) -> float:
        raise Unsupported("this engine gives no log-probabilities")

    engine.logprob = refuse
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Compare(compare())
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@dataclass(kw_only=True)
class Slow(FunctionEngine):
    """Says that whoever comes after so many would wait a little longer than they have time."""

    busy: int
    time: float

    def load(self) -> Load:
        return replace(super().load(), wait=self.time + 0.05 if self.running >= self.busy else 0)


async def test_a_slow_judge_that_is_asked_too_much_at_once_is_asked_less_and_answers_all() -> None:
    engine = Slow(logprob=logprob, busy=60, time=30)
    engine.gate.clear()
    thought = ChainOfThought(chains=10)

    async def ask(judge: JudgeClient, number: int) -> float | None:
        text = f"{number}"
        conversation = Conversation.from_user(text)
        compared = await judge.compare(
            conversation,
            *("No.", "Gladly."),
            constitution="core",
            principle_ids=["kind"],
            chain_of_thought=thought,
            request_id=text,
        )
        return compared.probability_a

    async with (
        running(ROLE, engine, constitutions=[CORE]) as address,
        JudgeClient(address, timeout=engine.time) as judge,
    ):
        together = [asyncio.ensure_future(ask(judge, number)) for number in range(3)]
        while engine.running < engine.busy:
            await asyncio.sleep(0)
        together += [asyncio.ensure_future(ask(judge, number)) for number in range(3, 40)]
        while judge.retried < 37:
            await asyncio.sleep(0)
        assert engine.running == engine.busy
        engine.gate.set()
        crowded = await asyncio.gather(*together)
        # what was refused for want of time had not been begun
        assert len(engine.asked) == 40 * 20
        assert crowded == [pytest.approx(0.5)] * 40


async def test_a_call_that_is_refused_for_want_of_time_until_its_patience_ends_is_late() -> None:
    engine = Slow(logprob=logprob, busy=0, time=30)
    async with (
        running(ROLE, engine, constitutions=[CORE]) as address,
        JudgeClient(address, timeout=engine.time, retry_for=0.05) as judge,
    ):
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await judge.score(Conversation.from_user("Hi"), "Hello.", constitution="core")
    assert "allow more time" in str(caught.value)
    assert engine.scored == []
