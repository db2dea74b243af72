"""Policy and PolicyService: answers, seeds, streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from solon.chat import Conversation, Message
from solon.constitution import derive_seed
from solon.engine.base import FinishReason, Sampling
from solon.policy.policy import Policy, sample_seed
from solon.policy.server import ROLE
from solon.serving.testing import FunctionEngine, Said, running
from solon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

HELLO = Conversation.from_user("Hello.")


def seeded(conversation: Conversation, sampling: Sampling) -> str:
    return f"answer {sampling.seed}"


@pytest.fixture
def engine() -> FunctionEngine:
    return FunctionEngine(answer=seeded)


@pytest.fixture
async def stub(engine: FunctionEngine) -> AsyncIterator[policy_pb2_grpc.PolicyServiceStub]:
    async with running(ROLE, engine) as address, grpc.aio.insecure_channel(address) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)


def messages(*turns: tuple[common_pb2.Role.ValueType, str]) -> common_pb2.Conversation:
    return common_pb2.Conversation(
        messages=[common_pb2.Message(role=role, content=text) for role, text in turns]
    )


ASKED = messages((common_pb2.ROLE_USER, "Hello."))


async def test_every_answer_has_a_seed_of_its_own_and_the_first_the_requests(
    engine: FunctionEngine,
) -> None:
    answers = await Policy(engine).generate(HELLO, Sampling(seed=7), n=3)
    assert [s.seed for s in answers.samples] == [
        7,
        derive_seed(7, "sample", 1),
        derive_seed(7, "sample", 2),
    ]
    assert [s.generation.text for s in answers.samples] == [
        f"answer {s.seed}" for s in answers.samples
    ]


async def test_an_answer_is_repeated_on_its_own_by_its_seed(engine: FunctionEngine) -> None:
    policy = Policy(engine)
    many = await policy.generate(HELLO, Sampling(seed=7), n=4)
    alone = await policy.generate(HELLO, Sampling(seed=many.samples[3].seed))
    assert alone.samples[0] == many.samples[3]


async def test_fewer_samples_are_the_first_of_more(engine: FunctionEngine) -> None:
    policy = Policy(engine)
    more = await policy.generate(HELLO, Sampling(seed=7), n=5)
    fewer = await policy.generate(HELLO, Sampling(seed=7), n=2)
    assert fewer.samples == more.samples[:2]


def test_seeds_of_neighbouring_requests_do_not_meet() -> None:
    seeds = {sample_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400


async def test_a_request_is_translated_whole(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub
) -> None:
    response = await stub.Generate(
        policy_pb2.GenerateRequest(
            request_id="mine",
            conversation=messages(
                (common_pb2.ROLE_SYSTEM, "Be brief."),
                (common_pb2.ROLE_USER, "Hello."),
                (common_pb2.ROLE_ASSISTANT, "Hi, I"),
            ),
            sampling=common_pb2.SamplingParams(
                temperature=0,
                top_p=0.5,
                top_k=40,
                max_tokens=9,
                seed=2**64 - 1,
                stop=["\n", "Human:"],
            ),
            return_tokens=True,
            weight_version="initial",
        )
    )
    (asked,) = engine.asked
    assert asked == (
        Conversation(
            (
                Message("system", "Be brief."),
                Message("user", "Hello."),
                Message("assistant", "Hi, I"),
            )
        ),
        Sampling(
            temperature=0,
            top_p=0.5,
            top_k=40,
            max_tokens=9,
            seed=2**64 - 1,
            stop=("\n", "Human:"),
        ),
    )
    assert (response.request_id, response.weight_version) == ("mine", "initial")
    (completion,) = response.completions
    assert (completion.text, completion.seed) == (f"answer {2**64 - 1}", 2**64 - 1)
    assert completion.finish_reason == common_pb2.FINISH_REASON_STOP
    assert [(t.text, t.logprob) for t in completion.tokens] == [
        ("answer", -0.5),
        (str(2**64 - 1), -0.5),
    ]
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (10, 2)
    assert response.timing.queue.ToMilliseconds() == 250
    assert response.timing.inference.ToMilliseconds() == 500


async def test_unset_sampling_takes_the_documented_defaults_and_a_seed_that_is_told(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub
) -> None:
    request = policy_pb2.GenerateRequest(conversation=ASKED)
    first, second = [(await stub.Generate(request)).completions[0] for _ in range(2)]
    assert first.seed != second.seed
    assert engine.asked[0][1] == Sampling(max_tokens=256, seed=first.seed)
    assert not first.tokens


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        (FinishReason.STOP, common_pb2.FINISH_REASON_STOP),
        (FinishReason.LENGTH, common_pb2.FINISH_REASON_LENGTH),
        (FinishReason.ABORT, common_pb2.FINISH_REASON_ABORT),
    ],
)
async def test_why_an_answer_ended_is_told(
    reason: FinishReason,
    sent: common_pb2.FinishReason.ValueType,
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
) -> None:
    engine.answer = lambda conversation, sampling: Said("so far", reason)
    response = await stub.Generate(policy_pb2.GenerateRequest(conversation=ASKED))
    assert response.completions[0].finish_reason == sent


@pytest.mark.parametrize("return_tokens", [True, False])
async def test_a_stream_gives_the_text_in_pieces_and_its_cost_in_the_last(
    return_tokens: bool, stub: policy_pb2_grpc.PolicyServiceStub
) -> None:
    request = policy_pb2.StreamGenerateRequest(
        request_id="mine",
        conversation=ASKED,
        sampling=common_pb2.SamplingParams(seed=7),
        return_tokens=return_tokens,
        weight_version="initial",
    )
    pieces = [piece async for piece in stub.StreamGenerate(request)]
    assert [piece.text for piece in pieces] == ["answer", " 7", ""]
    assert [len(piece.tokens) for piece in pieces] == [int(return_tokens)] * 2 + [0]
    assert [piece.HasField("finish_reason") for piece in pieces] == [False, False, True]
    assert [piece.HasField("usage") for piece in pieces] == [False, False, True]
    assert {piece.request_id for piece in pieces} == {"mine"}
    assert {piece.weight_version for piece in pieces} == {"initial"}
    last = pieces[-1]
    assert (last.seed, last.usage.completion_tokens) == (7, 2)


async def test_a_stream_of_other_weights_than_demanded_is_refused(
    stub: policy_pb2_grpc.PolicyServiceStub,
) -> None:
    request = policy_pb2.StreamGenerateRequest(conversation=ASKED, weight_version="step-1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StreamGenerate(request).read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
