"""What the caller says arrives, and nothing else; what the server says is returned, all of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from solon.chat import Conversation, Message
from solon.client import (
    Assessment,
    Completion,
    CriticClient,
    CritiqueResult,
    Final,
    FinishReason,
    Generated,
    JudgeClient,
    NoVerdictReason,
    Outcome,
    Piece,
    PolicyClient,
    PrincipleSample,
    QuestionAnswer,
    RefinedRound,
    RevisionResult,
    Sampling,
    Timing,
    Token,
    Usage,
)
from solon.v1 import (
    common_pb2,
    critic_pb2,
    judge_pb2,
    policy_pb2,
)

SPENT = common_pb2.Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=3, model_calls=2)
TOOK = common_pb2.Timing(queue=Duration(nanos=250_000_000), inference=Duration(seconds=2))
USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=3, model_calls=2)
TIMING = Timing(queue=0.25, inference=2.0)
SAID = common_pb2.Completion(
    text="No.",
    finish_reason=common_pb2.FINISH_REASON_LENGTH,
    tokens=[common_pb2.Token(id=7, text="No", logprob=-0.5)],
    seed=2**64 - 1,
)
COMPLETION = Completion(
    text="No.",
    finish_reason=FinishReason.LENGTH,
    tokens=(Token(id=7, text="No", logprob=-0.5),),
    seed=2**64 - 1,
)
ANSWERED = critic_pb2.QuestionAnswer(
    number=1, question="Who?", answer=SAID, outcome=critic_pb2.OUTCOME_EMPTY
)
ANSWER = QuestionAnswer(number=1, question="Who?", answer=COMPLETION, outcome=Outcome.EMPTY)
HEAD: Any = {"request_id": "r", "weight_version": "w", "usage": SPENT, "timing": TOOK}
HEAD_RESULT: Any = {"request_id": "r", "weight_version": "w", "usage": USAGE, "timing": TIMING}
TALK = Conversation((Message("system", "Be kind."), Message("user", "Hi")))
TALK_SENT = common_pb2.Conversation(
    messages=[
        common_pb2.Message(role=common_pb2.ROLE_SYSTEM, content="Be kind."),
        common_pb2.Message(role=common_pb2.ROLE_USER, content="Hi"),
    ]
)
CORE = common_pb2.ConstitutionSource(name="core")


async def test_generate_sends_what_was_set_and_returns_every_completion(
    serve: Any, record: Any
) -> None:
    asked = record(
        "Policy", "Generate", policy_pb2.GenerateResponse(**HEAD, completions=[SAID, SAID])
    )
    server = await serve(asked.add)
    sampling = Sampling(temperature=0.0, top_p=0.9, top_k=5, max_tokens=8, seed=3, stop=("\n",))
    async with PolicyClient(server.address) as client:
        result = await client.generate(
            TALK, sampling=sampling, n=2, return_tokens=True, weight_version="w", request_id="r"
        )
    assert result == Generated(**HEAD_RESULT, completions=(COMPLETION, COMPLETION))
    assert asked.request == policy_pb2.GenerateRequest(
        request_id="r",
        conversation=TALK_SENT,
        sampling=common_pb2.SamplingParams(
            temperature=0.0, top_p=0.9, top_k=5, max_tokens=8, seed=3, stop=["\n"]
        ),
        n=2,
        return_tokens=True,
        weight_version="w",
    )


async def test_what_the_caller_leaves_out_is_not_sent_and_the_request_gets_an_id(
    serve: Any, record: Any, question: Conversation
) -> None:
    asked = record("Policy", "Generate", policy_pb2.GenerateResponse(completions=[SAID]))
    server = await serve(asked.add)
    async with PolicyClient(server.address) as client:
        await client.generate(question, sampling=Sampling(top_k=0))
    sent = asked.request
    assert len(sent.request_id) == 32
    assert not sent.HasField("weight_version")
    assert [field.name for field, _ in sent.sampling.ListFields()] == ["top_k"]


async def test_a_stream_yields_its_pieces_and_the_last_one_is_final(
    serve: Any, record: Any
) -> None:
    head: Any = {"request_id": "r", "weight_version": "w"}
    asked = record(
        "Policy",
        "StreamGenerate",
        [
            policy_pb2.StreamGenerateResponse(**head, text="N", tokens=SAID.tokens),
            policy_pb2.StreamGenerateResponse(
                **HEAD, text="o.", finish_reason=common_pb2.FINISH_REASON_STOP, seed=5
            ),
        ],
    )
    server = await serve(asked.add)
    async with PolicyClient(server.address) as client:
        pieces = [piece async for piece in client.stream(TALK, request_id="r")]
    final = Final(finish_reason=FinishReason.STOP, seed=5, usage=USAGE, timing=TIMING)
    assert pieces == [
        Piece(request_id="r", weight_version="w", text="N", tokens=COMPLETION.tokens),
        Piece(request_id="r", weight_version="w", text="o.", final=final),
    ]


async def test_critique_names_the_principle_and_returns_the_text(serve: Any, record: Any) -> None:
    asked = record(
        "Critic",
        "Critique",
        critic_pb2.CritiqueResponse(
            **HEAD,
            principle_id="harm",
            constitution_digest="d",
            critique=SAID,
            outcome=critic_pb2.OUTCOME_TRUNCATED,
            answers=[ANSWERED],
        ),
    )
    server = await serve(asked.add)
    async with CriticClient(server.address) as client:
        result = await client.critique(
            TALK, "Sure.", constitution="core", principle_id="harm", skip_questions=True
        )
    assert result == CritiqueResult(
        **HEAD_RESULT,
        principle_id="harm",
        constitution_digest="d",
        critique=COMPLETION,
        outcome=Outcome.TRUNCATED,
        answers=(ANSWER,),
    )
    assert asked.request.constitution == CORE
    assert list(asked.request.principles.ids.ids) == ["harm"]
    assert asked.request.response == "Sure."
    assert asked.request.skip_questions


async def test_revise_takes_an_inline_constitution_and_a_seed_for_the_principle(
    serve: Any,
    record: Any,
) -> None:
    asked = record(
        "Critic",
        "Revise",
        critic_pb2.ReviseResponse(
            **HEAD,
            principle_id="harm",
            constitution_digest="d",
            revision=SAID,
            outcome=critic_pb2.OUTCOME_MADE,
        ),
    )
    server = await serve(asked.add)
    inline = common_pb2.Constitution(name="mine", principles=[common_pb2.Principle(id="harm")])
    async with CriticClient(server.address) as client:
        result = await client.revise(
            TALK,
            "Sure.",
            constitution=inline,
            critique="Bad.",
            answers=["A."],
            skip_questions=True,
            principle_seed=11,
        )
    assert result == RevisionResult(
        **HEAD_RESULT,
        principle_id="harm",
        constitution_digest="d",
        revision=COMPLETION,
        outcome=Outcome.MADE,
    )
    assert asked.request.constitution.inline == inline
    assert asked.request.critique == "Bad."
    assert list(asked.request.answers) == ["A."]
    assert asked.request.skip_questions
    sample = asked.request.principles.sample
    assert (sample.count, sample.seed) == (1, 11)


async def test_refine_yields_each_round_and_sends_seeds_that_make_it_repeatable(
    serve: Any,
    record: Any,
) -> None:
    made = critic_pb2.RefineResponse(
        **HEAD,
        round=1,
        principle_id="harm",
        constitution_digest="d",
        critique=SAID,
        critique_outcome=critic_pb2.OUTCOME_EMPTY,
        answers=[ANSWERED],
        revision=SAID,
        revision_outcome=critic_pb2.OUTCOME_MADE,
    )
    skipped = critic_pb2.RefineResponse(
        **HEAD,
        round=2,
        principle_id="harm",
        constitution_digest="d",
        revision=SAID,
        revision_outcome=critic_pb2.OUTCOME_ABORTED,
    )
    asked = record("Critic", "Refine", [made, skipped])
    server = await serve(asked.add)
    async with CriticClient(server.address) as client:
        rounds = [
            refined
            async for refined in client.refine(
                TALK, "Sure.", constitution="core", rounds=2, skip_critique=True
            )
        ]
    shared: Any = {
        **HEAD_RESULT,
        "principle_id": "harm",
        "constitution_digest": "d",
        "revision": COMPLETION,
    }
    assert rounds == [
        RefinedRound(
            **shared,
            round=1,
            critique=COMPLETION,
            critique_outcome=Outcome.EMPTY,
            answers=(ANSWER,),
            revision_outcome=Outcome.MADE,
        ),
        RefinedRound(
            **shared,
            round=2,
            critique=None,
            critique_outcome=None,
            revision_outcome=Outcome.ABORTED,
        ),
    ]
    assert (asked.request.rounds, asked.request.skip_critique) == (2, True)
    assert asked.request.sampling.HasField("seed")
    assert asked.request.principles.sample.HasField("seed")


async def test_a_chain_says_how_its_principles_are_chosen(serve: Any, record: Any) -> None:
    asked = record("Critic", "Refine", [])
    server = await serve(asked.add)
    async with CriticClient(server.address) as client:
        ways: list[dict[str, Any]] = [{"draw": "once", "principle_seed": 3}, {"draw": "priority"}]
        sent = []
        for way in ways:
            chain = client.refine(TALK, "Sure.", constitution="core", rounds=2, **way)
            assert [one async for one in chain] == []
            sent.append(asked.request.principles)
        assert (sent[0].sample.count, sent[0].sample.seed) == (2, 3)
        assert sent[1].WhichOneof("selection") == "all"
        for wrong in (
            {"draw": "priority", "principle_seed": 1},
            {"draw": "once", "principle_ids": ["a"]},
        ):
            with pytest.raises(ValueError, match="expected"):
                await anext(client.refine(TALK, "Sure.", constitution="core", **wrong))


async def test_an_assessment_is_returned_whole_and_a_round_that_was_not_needed_has_one(
    serve: Any, record: Any
) -> None:
    clean = critic_pb2.Assessment(
        principle_id="harm", probability=0.25, logprobs={"Yes": -1.5, "No": -0.5}, option_mass=0.9
    )
    silent = critic_pb2.Assessment(
        principle_id="tone", no_verdict_reason=judge_pb2.NO_VERDICT_REASON_NOT_FINITE
    )
    found = Assessment(
        principle_id="harm",
        probability=0.25,
        logprobs={"Yes": -1.5, "No": -0.5},
        option_mass=0.9,
        no_verdict_reason=None,
    )
    asked = record(
        "Critic",
        "Assess",
        critic_pb2.AssessResponse(
            **HEAD, constitution_digest="d", probability=0.25, principles=[clean, silent]
        ),
    )
    server = await serve(asked.add)
    async with CriticClient(server.address) as client:
        result = await client.assess(
            TALK,
            "Sure.",
            constitution="core",
            sample=PrincipleSample(2, 7),
            min_option_mass=0.5,
            weight_version="w",
        )
    assert (result.probability, result.no_verdict_reason) == (0.25, None)
    assert result.principles[0] == found
    assert result.principles[1].no_verdict_reason is NoVerdictReason.NOT_FINITE
    assert (asked.request.min_option_mass, asked.request.weight_version) == (0.5, "w")
    assert asked.request.principles.sample.count == 2
    skipped = critic_pb2.RefineResponse(
        **HEAD, round=1, revision_outcome=critic_pb2.OUTCOME_NOT_NEEDED, assessment=clean
    )
    asked = record("Critic", "Refine", [skipped])
    server = await serve(asked.add)
    async with CriticClient(server.address) as client:
        chain = client.refine(
            TALK,
            "Sure.",
            constitution="core",
            skip_questions=True,
            not_needed_below=0.5,
            min_option_mass=0.25,
        )
        (made,) = [one async for one in chain]
    assert (made.revision_outcome, made.revision, made.assessment) == (
        Outcome.NOT_NEEDED,
        None,
        found,
    )
    assert (asked.request.not_needed_below, asked.request.min_option_mass) == (0.5, 0.25)
    assert asked.request.skip_questions


async def test_a_principle_by_id_and_by_draw_at_once_is_refused_before_any_call(
    question: Conversation,
) -> None:
    both: Any = {"constitution": "core", "principle_seed": 1}
    async with CriticClient("localhost:1") as critic, JudgeClient("localhost:1") as judge:
        with pytest.raises(ValueError, match="at most one"):
            await critic.critique(question, "x", **both, principle_id="a")
        with pytest.raises(ValueError, match="at most one"):
            await anext(critic.refine(question, "x", **both, principle_ids=["a"]))
        with pytest.raises(ValueError, match="at most one"):
            await judge.score(
                question,
                "x",
                constitution="core",
                principle_ids=["a"],
                sample=PrincipleSample(1),
            )


def test_usage_and_timing_add_up() -> None:
    assert (
        Usage(prompt_tokens=18, cached_tokens=8, completion_tokens=6, model_calls=4)
        == USAGE + USAGE
    )
    assert Timing(queue=0.5, inference=4.0) == TIMING + TIMING
