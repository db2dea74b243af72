"""CriticService over a real port."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc
import pytest

from solon.chat import Conversation
from solon.constitution import Constitution, Principle
from solon.critic.critic import draw_rounds
from solon.critic.server import ROLE
from solon.engine.base import FinishReason, Sampling
from solon.serving.testing import FunctionEngine, Said, running
from solon.v1 import common_pb2, critic_pb2, critic_pb2_grpc, judge_pb2

PRINCIPLES = tuple(
    Principle(
        id=name, critique_request=f"Is it {name}?", revision_request=f"Be {name}.", priority=place
    )
    for name, place in (("kind", 7), ("calm", None), ("brief", 2))
)
CORE = Constitution(
    name="core",
    version="1",
    principles=(*PRINCIPLES, Principle(id="judged", comparison_instruction="Which?")),
)
ASKED = common_pb2.Conversation(
    messages=[common_pb2.Message(role=common_pb2.ROLE_USER, content="Can you help?")]
)
NAMED = common_pb2.ConstitutionSource(name="core")


def seeded(conversation: Conversation, sampling: Sampling) -> str:
    return f"text {sampling.seed}"


@pytest.fixture
def engine() -> FunctionEngine:
    return FunctionEngine(answer=seeded)


@pytest.fixture
async def stub(engine: FunctionEngine) -> AsyncIterator[critic_pb2_grpc.CriticServiceStub]:
    async with (
        running(ROLE, engine, constitutions=[CORE]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield critic_pb2_grpc.CriticServiceStub(channel)


def ids(*names: str) -> common_pb2.PrincipleSelection:
    return common_pb2.PrincipleSelection(ids=common_pb2.PrincipleSelection.Ids(ids=names))


def sample(seed: int, count: int = 1) -> common_pb2.PrincipleSelection:
    return common_pb2.PrincipleSelection(
        sample=common_pb2.PrincipleSelection.Sample(count=count, seed=seed)
    )


def refine(**fields: object) -> critic_pb2.RefineRequest:
    return critic_pb2.RefineRequest(
        conversation=ASKED,
        response="No.",
        constitution=NAMED,
        **fields,  # type: ignore[arg-type]
    )


async def test_a_critique_says_by_what_it_was_made(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    response = await stub.Critique(
        critic_pb2.CritiqueRequest(
            request_id="mine",
            conversation=ASKED,
            response="No.",
            constitution=NAMED,
            principles=ids("calm"),
            sampling=common_pb2.SamplingParams(seed=7),
            weight_version="initial",
        )
    )
    assert (response.request_id, response.weight_version) == ("mine", "initial")
    assert (response.principle_id, response.constitution_digest) == ("calm", CORE.digest)
    assert (response.critique.text, response.critique.seed) == ("text 7", 7)
    assert response.outcome == critic_pb2.OUTCOME_MADE
    assert response.usage.model_calls == 1
    assert "Is it calm?" in engine.asked[0][0].messages[-1].content


@pytest.mark.parametrize("critique", ["Curt.", None])
async def test_a_revision_heeds_the_critique_if_there_is_one(
    critique: str | None,
    engine: FunctionEngine,
    stub: critic_pb2_grpc.CriticServiceStub,
) -> None:
    response = await stub.Revise(
        critic_pb2.ReviseRequest(
            conversation=ASKED,
            response="No.",
            critique=critique,
            constitution=NAMED,
            principles=ids("kind"),
            sampling=common_pb2.SamplingParams(seed=7),
        )
    )
    assert (response.revision.text, response.principle_id) == ("text 7", "kind")
    asked = [message.content for message in engine.asked[0][0].messages]
    assert ("Curt." in asked) == (critique is not None)


async def test_a_principle_is_drawn_if_none_is_chosen(
    stub: critic_pb2_grpc.CriticServiceStub,
) -> None:
    request = critic_pb2.CritiqueRequest(conversation=ASKED, response="No.", constitution=NAMED)
    drawn = {(await stub.Critique(request)).principle_id for _ in range(30)}
    assert drawn == {"kind", "calm", "brief"}


async def test_a_chain_sends_each_round_as_it_is_made(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    def answer(conversation: Conversation, sampling: Sampling) -> str:
        if len(engine.asked) == 2:
            engine.gate.clear()
        return seeded(conversation, sampling)

    engine.answer = answer
    call = stub.Refine(refine(request_id="mine", principles=ids("kind", "calm"), rounds=2))
    rounds = aiter(call)
    first = await anext(rounds)
    # the second round waits for its critique until the first has been read
    engine.gate.set()
    rest = [made async for made in rounds]
    assert [made.round for made in (first, *rest)] == [1, 2]
    assert [made.principle_id for made in (first, *rest)] == ["kind", "calm"]
    assert first.critique_outcome == first.revision_outcome == critic_pb2.OUTCOME_MADE
    assert (first.request_id, first.weight_version) == ("mine", "initial")
    assert first.constitution_digest == CORE.digest
    assert first.usage.model_calls == 2
    assert first.revision.text in engine.asked[2][0].messages[-1].content


async def test_a_chain_has_four_rounds_unless_told_otherwise(
    stub: critic_pb2_grpc.CriticServiceStub,
) -> None:
    assert [made.round async for made in stub.Refine(refine())] == [1, 2, 3, 4]


async def test_two_seeds_repeat_a_chain(stub: critic_pb2_grpc.CriticServiceStub) -> None:
    async def texts(principle_seed: int, seed: int) -> list[tuple[str, str, str]]:
        request = refine(
            principles=sample(principle_seed), sampling=common_pb2.SamplingParams(seed=seed)
        )
        return [
            (made.principle_id, made.critique.text, made.revision.text)
            async for made in stub.Refine(request)
        ]

    assert await texts(1, 2) == await texts(1, 2)
    assert await texts(1, 2) != await texts(1, 3)
    drawn = [principle for principle, _, _ in await texts(1, 2)]
    assert drawn == [p.id for p in draw_rounds(PRINCIPLES, 4, 1)]


async def test_without_critiques_a_round_has_none(
    stub: critic_pb2_grpc.CriticServiceStub,
) -> None:
    async for made in stub.Refine(refine(skip_critique=True, rounds=1)):
        assert not made.HasField("critique")
        assert not made.HasField("critique_outcome")
        assert made.revision.text


async def test_an_aborted_critique_gives_an_aborted_round(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    engine.answer = lambda conversation, sampling: Said("It is", FinishReason.ABORT)
    (made,) = [made async for made in stub.Refine(refine())]
    assert made.critique_outcome == made.revision_outcome == critic_pb2.OUTCOME_ABORTED
    assert (made.critique.text, made.revision.text) == ("It is", "")
    assert made.revision.finish_reason == common_pb2.FINISH_REASON_ABORT


async def test_principles_may_come_once_each_or_by_priority(
    stub: critic_pb2_grpc.CriticServiceStub,
) -> None:
    async def chosen(selection: common_pb2.PrincipleSelection, **fields: object) -> list[str]:
        request = refine(principles=selection, **fields)
        return [made.principle_id async for made in stub.Refine(request)]

    for seed in range(5):
        three = await chosen(sample(seed, 3), rounds=3)
        assert sorted(three) == ["brief", "calm", "kind"]
        # a longer chain begins as a shorter one
        assert await chosen(sample(seed, 2), rounds=2) == three[:2]
    everything = common_pb2.PrincipleSelection(all=common_pb2.PrincipleSelection.All())
    assert await chosen(everything) == ["brief", "kind", "calm"]
    assert await chosen(everything, rounds=2) == ["brief", "kind"]
    for selection, rounds, field in ((sample(5, 4), 4, "sample.count"), (everything, 4, "rounds")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chosen(selection, rounds=rounds)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in (caught.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError, match=r"expected 1 or as many as rounds, 3, got 2"):
        await chosen(sample(5, 2), rounds=3)


STEPS = common_pb2.Constitution(
    name="steps",
    principles=[
        common_pb2.Principle(
            id="steps",
            critique_request="Is it kind?",
            revision_request="Be kind.",
            questions=["Who is hurt?", "How?"],
            exemplars=[
                common_pb2.CritiqueExemplar(
                    conversation=ASKED,
                    response="r",
                    critique="c",
                    revision="v",
                    answers=["shown first", "shown second"],
                )
            ],
        )
    ],
)


async def test_answers_come_back_by_question_and_a_revision_takes_them(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    shared = {
        "conversation": ASKED,
        "response": "No.",
        "constitution": common_pb2.ConstitutionSource(inline=STEPS),
    }
    seeded = common_pb2.SamplingParams(seed=7)
    critique = await stub.Critique(critic_pb2.CritiqueRequest(**shared, sampling=seeded))  # type: ignore[arg-type]
    assert [(a.number, a.question) for a in critique.answers] == [(1, "Who is hurt?"), (2, "How?")]
    assert critique.usage.model_calls == 3
    assert "shown second" in [m.content for m in engine.asked[0][0].messages]
    (made,) = [
        one
        async for one in stub.Refine(
            critic_pb2.RefineRequest(**shared, sampling=seeded, rounds=1)  # type: ignore[arg-type]
        )
    ]
    assert [a.outcome for a in made.answers] == [critic_pb2.OUTCOME_MADE] * 2
    in_chain, _ = engine.asked[-1]
    answers = [answer.answer.text for answer in made.answers]
    again = {"critique": made.critique.text, "answers": answers}
    await stub.Revise(critic_pb2.ReviseRequest(**shared, **again))  # type: ignore[arg-type]
    assert engine.asked[-1][0] == in_chain
    for wrong in ({"critique": "c", "answers": ["one"]}, {"answers": ["one", "two"]}):
        with pytest.raises(grpc.aio.AioRpcError, match="answers") as caught:
            await stub.Revise(critic_pb2.ReviseRequest(**shared, **wrong))  # type: ignore[arg-type]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_every_call_may_skip_questions_and_the_answers_of_exemplars(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    shared = {
        "conversation": ASKED,
        "response": "No.",
        "constitution": common_pb2.ConstitutionSource(inline=STEPS),
        "skip_questions": True,
    }
    critique = await stub.Critique(critic_pb2.CritiqueRequest(**shared))  # type: ignore[arg-type]
    await stub.Revise(critic_pb2.ReviseRequest(**shared, critique="c"))  # type: ignore[arg-type]
    refined = stub.Refine(critic_pb2.RefineRequest(**shared, rounds=1))  # type: ignore[arg-type]
    (made,) = [one async for one in refined]
    assert (len(critique.answers), len(made.answers)) == (0, 0)
    # a critique, a revision, and one of each in the chain
    assert len(engine.asked) == 4
    said = [m.content for prompt, _ in engine.asked for m in prompt.messages]
    assert not any("Question" in text or "shown" in text for text in said)


async def test_a_response_is_assessed_by_every_principle_without_any_generation(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    faults = {"kind": 0.75, "calm": 0.25}

    def logprob(prompt: Conversation, answer: str) -> float:
        fault = next((p for name, p in faults.items() if name in prompt.messages[-1].content), None)
        if fault is None:
            return math.nan
        return math.log(fault if answer == "Yes" else 1 - fault)

    engine.logprob = logprob
    response = await stub.Assess(
        critic_pb2.AssessRequest(
            request_id="mine", conversation=ASKED, response="No.", constitution=NAMED
        )
    )
    kind, calm, brief = response.principles
    assert (response.request_id, response.constitution_digest) == ("mine", CORE.digest)
    assert [one.principle_id for one in response.principles] == ["kind", "calm", "brief"]
    assert response.probability == kind.probability == pytest.approx(0.75)
    assert dict(calm.logprobs) == pytest.approx({"Yes": math.log(0.25), "No": math.log(0.75)})
    assert calm.option_mass == pytest.approx(1)
    assert not brief.HasField("probability")
    assert brief.no_verdict_reason == judge_pb2.NO_VERDICT_REASON_NOT_FINITE
    assert (engine.asked, response.usage.model_calls) == ([], 3)


async def test_a_round_that_is_not_needed_is_sent_without_any_text(
    engine: FunctionEngine, stub: critic_pb2_grpc.CriticServiceStub
) -> None:
    engine.logprob = lambda prompt, answer: -9.0 if answer == "Yes" else -0.001
    made = [one async for one in stub.Refine(refine(not_needed_below=0.01, rounds=2))]
    assert [one.revision_outcome for one in made] == [critic_pb2.OUTCOME_NOT_NEEDED] * 2
    for one in made:
        assert 0 < one.assessment.probability < 0.01
        assert one.assessment.principle_id == one.principle_id
        assert not one.HasField("critique")
        assert not one.HasField("revision")
    assert engine.asked == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"principles": ids("judged")}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"principles": ids("kind", "calm")}, grpc.StatusCode.INVALID_ARGUMENT),
        (
            {"constitution": common_pb2.ConstitutionSource(name="x")},
            grpc.StatusCode.NOT_FOUND,
        ),
        (
            {"constitution": common_pb2.ConstitutionSource(name="core", digest="0" * 64)},
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        ({"weight_version": "step-1"}, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_what_the_server_cannot_work_by_is_refused_before_work(
    fields: dict[str, object],
    code: grpc.StatusCode,
    engine: FunctionEngine,
    stub: critic_pb2_grpc.CriticServiceStub,
) -> None:
    request = critic_pb2.CritiqueRequest(
        **{"conversation": ASKED, "response": "No.", "constitution": NAMED, **fields}  # type: ignore[arg-type]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Critique(request)
    assert caught.value.code() is code
    assert engine.asked == []
