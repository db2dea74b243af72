"""Verdicts and what a server tells of itself arrive whole, with typed reasons for none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from solon.chat import Conversation, Message
from solon.client import (
    ChainOfThought,
    ChainVerdict,
    Comparison,
    ConstitutionInfo,
    ControlClient,
    JudgeClient,
    Load,
    NoVerdictReason,
    OrderVerdict,
    PairVerdict,
    PauseMode,
    PrincipleSample,
    PrincipleScore,
    PrincipleVerdict,
    RankedResponse,
    Ranking,
    Score,
    ServerInfo,
    Timing,
    Usage,
    WeightsUpdated,
)
from solon.v1 import (
    common_pb2,
    control_pb2,
    judge_pb2,
)

SPENT = common_pb2.Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=3, model_calls=2)
TOOK = common_pb2.Timing(queue=Duration(nanos=250_000_000), inference=Duration(seconds=2))
USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=3, model_calls=2)
TIMING = Timing(queue=0.25, inference=2.0)
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
LOW_MASS = judge_pb2.NO_VERDICT_REASON_LOW_OPTION_MASS
REPLY = judge_pb2.CompareResponse(
    **HEAD,
    constitution_digest="d",
    probability_a=0.0,
    principles=[
        judge_pb2.PrincipleVerdict(
            principle_id="harm",
            weight=2.0,
            probability_a=0.0,
            position_dependent=False,
            orders=[
                judge_pb2.OrderVerdict(
                    swapped=True,
                    logprob_a=-9,
                    logprob_b=0,
                    probability_a=0.0,
                    chains=["Hm"],
                    chain_verdicts=[
                        judge_pb2.ChainVerdict(logprob_a=-9, logprob_b=0, probability_a=0.0),
                        judge_pb2.ChainVerdict(no_verdict_reason=LOW_MASS),
                    ],
                )
            ],
        ),
        judge_pb2.PrincipleVerdict(
            principle_id="kind",
            weight=1.0,
            no_verdict_reason=LOW_MASS,
            orders=[judge_pb2.OrderVerdict(no_verdict_reason=LOW_MASS)],
        ),
    ],
)
REFUSED = NoVerdictReason.LOW_OPTION_MASS
CLEAR = OrderVerdict(
    swapped=True,
    logprob_a=-9.0,
    logprob_b=0.0,
    probability_a=0.0,
    no_verdict_reason=None,
    chains=("Hm",),
    chain_verdicts=(
        ChainVerdict(logprob_a=-9, logprob_b=0, probability_a=0.0, no_verdict_reason=None),
        ChainVerdict(logprob_a=0, logprob_b=0, probability_a=None, no_verdict_reason=REFUSED),
    ),
)
UNCLEAR = OrderVerdict(
    swapped=False, logprob_a=0, logprob_b=0, probability_a=None, no_verdict_reason=REFUSED
)
COMPARISON = Comparison(
    **HEAD_RESULT,
    constitution_digest="d",
    probability_a=0.0,
    no_verdict_reason=None,
    principles=(
        PrincipleVerdict(
            principle_id="harm",
            weight=2.0,
            orders=(CLEAR,),
            probability_a=0.0,
            position_dependent=False,
            no_verdict_reason=None,
        ),
        PrincipleVerdict(
            principle_id="kind",
            weight=1.0,
            orders=(UNCLEAR,),
            probability_a=None,
            position_dependent=None,
            no_verdict_reason=REFUSED,
        ),
    ),
)


async def test_a_comparison_returns_each_principle_and_order_and_typed_non_verdicts(
    serve: Any,
    record: Any,
) -> None:
    asked = record("Judge", "Compare", REPLY)
    server = await serve(asked.add)
    async with JudgeClient(server.address) as client:
        result = await client.compare(
            TALK,
            "Yes.",
            "No.",
            constitution=CORE,
            sample=PrincipleSample(2, seed=5),
            both_orders=False,
            min_option_mass=0.5,
            chain_of_thought=ChainOfThought(chains=2, return_chains=True),
        )
    assert result == COMPARISON
    sample = common_pb2.PrincipleSelection.Sample(count=2, seed=5)
    assert asked.request == judge_pb2.CompareRequest(
        request_id=asked.request.request_id,
        conversation=TALK_SENT,
        response_a="Yes.",
        response_b="No.",
        constitution=CORE,
        principles=common_pb2.PrincipleSelection(sample=sample),
        order_mode=judge_pb2.ORDER_MODE_AS_GIVEN,
        min_option_mass=0.5,
        chain_of_thought=judge_pb2.ChainOfThought(chains=2, return_chains=True),
    )


async def test_a_score_returns_the_probabilities_it_rests_on(serve: Any, record: Any) -> None:
    reply = judge_pb2.ScoreResponse(
        **HEAD,
        constitution_digest="d",
        no_verdict_reason=judge_pb2.NO_VERDICT_REASON_NO_PRINCIPLE,
        principles=[
            judge_pb2.PrincipleScore(
                principle_id="harm",
                weight=1.0,
                probabilities={"Yes": 0.25, "No": 0.75},
                option_mass=0.1,
                no_verdict_reason=judge_pb2.NO_VERDICT_REASON_LOW_OPTION_MASS,
            )
        ],
    )
    asked = record("Judge", "Score", reply)
    server = await serve(asked.add)
    async with JudgeClient(server.address) as client:
        result = await client.score(TALK, "Yes.", constitution="core", principle_ids=["harm"])
    assert result == Score(
        **HEAD_RESULT,
        constitution_digest="d",
        score=None,
        no_verdict_reason=NoVerdictReason.NO_PRINCIPLE,
        principles=(
            PrincipleScore(
                principle_id="harm",
                weight=1.0,
                score=None,
                probabilities={"Yes": 0.25, "No": 0.75},
                option_mass=0.1,
                no_verdict_reason=NoVerdictReason.LOW_OPTION_MASS,
            ),
        ),
    )


async def test_a_ranking_returns_places_and_the_pairs_it_rests_on(serve: Any, record: Any) -> None:
    reply = judge_pb2.RankResponse(
        **HEAD,
        constitution_digest="d",
        ranking=[
            judge_pb2.RankedResponse(index=1, strength=0.0, win_rate=0.5),
            judge_pb2.RankedResponse(index=0),
        ],
        pairs=[judge_pb2.PairVerdict(index_a=0, index_b=1, probability_a=0.5)],
    )
    asked = record("Judge", "Rank", reply)
    server = await serve(asked.add)
    async with JudgeClient(server.address) as client:
        result = await client.rank(TALK, ["Yes.", "No."], constitution="core")
    assert result == Ranking(
        **HEAD_RESULT,
        constitution_digest="d",
        ranking=(
            RankedResponse(index=1, strength=0.0, win_rate=0.5),
            RankedResponse(index=0, strength=None, win_rate=None),
        ),
        pairs=(PairVerdict(index_a=0, index_b=1, probability_a=0.5, no_verdict_reason=None),),
    )
    assert list(asked.request.responses) == ["Yes.", "No."]
    assert asked.request.order_mode == judge_pb2.ORDER_MODE_BOTH
    assert asked.request.pair_mode == judge_pb2.PAIR_MODE_EVERY
    async with JudgeClient(server.address) as client:
        await client.rank(TALK, ["Yes.", "No."], constitution="core", every_pair=False)
    assert asked.request.pair_mode == judge_pb2.PAIR_MODE_FEWEST


async def test_a_server_tells_what_it_is(serve: Any, record: Any) -> None:
    reply = control_pb2.GetServerInfoResponse(
        service_role=control_pb2.SERVICE_ROLE_JUDGE,
        solon_version="0.1.0",
        engine="scripted",
        model="m",
        weight_version="w",
        context_tokens=256,
        constitutions=[
            control_pb2.ConstitutionInfo(
                name="core", version="1", digest="d", principle_ids=["harm"]
            )
        ],
        start_time=Timestamp(seconds=60),
        supports_logprobs=True,
        instance_id="i",
    )
    server = await serve(record("Control", "GetServerInfo", reply).add)
    async with ControlClient(server.address) as client:
        info = await client.get_server_info()
    assert info == ServerInfo(
        service_role="judge",
        solon_version="0.1.0",
        engine="scripted",
        model="m",
        weight_version="w",
        context_tokens=256,
        start_time=datetime(1970, 1, 1, 0, 1, tzinfo=UTC),
        supports_logprobs=True,
        supports_weight_update=False,
        instance_id="i",
        constitutions=(
            ConstitutionInfo(name="core", version="1", digest="d", principle_ids=("harm",)),
        ),
    )


async def test_load_weights_and_pauses_are_under_control(serve: Any, record: Any) -> None:
    load = control_pb2.GetLoadResponse(
        queued=1, running=2, queue_capacity=3, paused=True, weight_version="w"
    )
    update = control_pb2.UpdateWeightsResponse(
        weight_version="rl-1", previous_weight_version="initial"
    )
    updating = record("Control", "UpdateWeights", update)
    pausing = record("Control", "PauseGeneration", control_pb2.PauseGenerationResponse(aborted=4))
    loaded = await serve(record("Control", "GetLoad", load).add)
    updated = await serve(updating.add)
    paused = await serve(pausing.add)
    resuming = record("Control", "ResumeGeneration", control_pb2.ResumeGenerationResponse())
    resumed = await serve(resuming.add)
    async with ControlClient(loaded.address) as client:
        assert await client.get_load() == Load(
            queued=1, running=2, queue_capacity=3, paused=True, weight_version="w"
        )
    async with ControlClient(updated.address) as client:
        assert await client.update_weights("/models/rl", "rl-1") == WeightsUpdated(
            weight_version="rl-1", previous_weight_version="initial"
        )
    async with ControlClient(paused.address) as client:
        assert await client.pause(PauseMode.ABORT) == 4
    async with ControlClient(resumed.address) as client:
        await client.resume()
    assert (updating.request.path, updating.request.weight_version) == ("/models/rl", "rl-1")
    assert pausing.request.mode == control_pb2.PAUSE_MODE_ABORT
    assert resuming.request.request_id
