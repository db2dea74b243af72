"""Messages of the contract as the client's types.

A value that the contract forbids, or that a newer server invented, raises ``BadReply``: nothing
becomes a default. Knows nothing of channels or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from solon.client.errors import BadReply
from solon.client.types import (
    Assessed,
    Assessment,
    ChainVerdict,
    Comparison,
    Completion,
    ConstitutionInfo,
    CritiqueResult,
    Final,
    FinishReason,
    Generated,
    Load,
    NoVerdictReason,
    OrderVerdict,
    Outcome,
    PairVerdict,
    Piece,
    PrincipleScore,
    PrincipleVerdict,
    QuestionAnswer,
    RankedResponse,
    Ranking,
    RefinedRound,
    RevisionResult,
    Score,
    ServerInfo,
    ServiceRole,
    Timing,
    Token,
    Usage,
    WeightsUpdated,
)
from solon.v1 import common_pb2, control_pb2, critic_pb2, judge_pb2, policy_pb2

Key = TypeVar("Key")
Value = TypeVar("Value")

_FINISH: Mapping[common_pb2.FinishReason.ValueType, FinishReason] = {
    common_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    common_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    common_pb2.FINISH_REASON_ABORT: FinishReason.ABORT,
}
_OUTCOME: Mapping[critic_pb2.Outcome.ValueType, Outcome] = {
    critic_pb2.OUTCOME_MADE: Outcome.MADE,
    critic_pb2.OUTCOME_EMPTY: Outcome.EMPTY,
    critic_pb2.OUTCOME_TRUNCATED: Outcome.TRUNCATED,
    critic_pb2.OUTCOME_ABORTED: Outcome.ABORTED,
    critic_pb2.OUTCOME_NOT_NEEDED: Outcome.NOT_NEEDED,
}
_NO_VERDICT: Mapping[judge_pb2.NoVerdictReason.ValueType, NoVerdictReason] = {
    judge_pb2.NO_VERDICT_REASON_LOW_OPTION_MASS: NoVerdictReason.LOW_OPTION_MASS,
    judge_pb2.NO_VERDICT_REASON_NOT_FINITE: NoVerdictReason.NOT_FINITE,
    judge_pb2.NO_VERDICT_REASON_UNREADABLE_ANSWER: NoVerdictReason.UNREADABLE_ANSWER,
    judge_pb2.NO_VERDICT_REASON_FILTERED: NoVerdictReason.FILTERED,
    judge_pb2.NO_VERDICT_REASON_NO_PRINCIPLE: NoVerdictReason.NO_PRINCIPLE,
}
_SERVICE_ROLE: Mapping[control_pb2.ServiceRole.ValueType, ServiceRole] = {
    control_pb2.SERVICE_ROLE_POLICY: "policy",
    control_pb2.SERVICE_ROLE_CRITIC: "critic",
    control_pb2.SERVICE_ROLE_JUDGE: "judge",
}


def generated(reply: policy_pb2.GenerateResponse) -> Generated:
    """The completions."""
    return Generated(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        completions=tuple(_completion(completion) for completion in reply.completions),
    )


def piece(reply: policy_pb2.StreamGenerateResponse) -> Piece:
    """A piece of a streamed answer."""
    final = None
    if reply.HasField("finish_reason"):
        final = Final(
            finish_reason=_known(_FINISH, reply.finish_reason, "finish_reason"),
            seed=reply.seed,
            usage=_usage(reply.usage),
            timing=_timing(reply.timing),
        )
    return Piece(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        text=reply.text,
        tokens=_tokens(reply.tokens),
        final=final,
    )


def critique(reply: critic_pb2.CritiqueResponse) -> CritiqueResult:
    """A critique."""
    return CritiqueResult(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        principle_id=reply.principle_id,
        constitution_digest=reply.constitution_digest,
        critique=_completion(reply.critique),
        outcome=_known(_OUTCOME, reply.outcome, "outcome"),
        answers=tuple(map(_question_answer, reply.answers)),
    )


def revision(reply: critic_pb2.ReviseResponse) -> RevisionResult:
    """A revision."""
    return RevisionResult(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        principle_id=reply.principle_id,
        constitution_digest=reply.constitution_digest,
        revision=_completion(reply.revision),
        outcome=_known(_OUTCOME, reply.outcome, "outcome"),
    )


def refined_round(reply: critic_pb2.RefineResponse) -> RefinedRound:
    """One round of a chain."""
    critique_outcome = None
    if reply.HasField("critique_outcome"):
        critique_outcome = _known(_OUTCOME, reply.critique_outcome, "critique_outcome")
    return RefinedRound(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        round=reply.round,
        principle_id=reply.principle_id,
        constitution_digest=reply.constitution_digest,
        critique=_completion(reply.critique) if reply.HasField("critique") else None,
        critique_outcome=critique_outcome,
        revision=_completion(reply.revision) if reply.HasField("revision") else None,
        revision_outcome=_known(_OUTCOME, reply.revision_outcome, "revision_outcome"),
        assessment=_assessment(reply.assessment) if reply.HasField("assessment") else None,
        answers=tuple(map(_question_answer, reply.answers)),
    )


def assessed(reply: critic_pb2.AssessResponse) -> Assessed:
    """Assessments."""
    return Assessed(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        constitution_digest=reply.constitution_digest,
        probability=_assessed_probability(reply),
        no_verdict_reason=_reason(reply.no_verdict_reason),
        principles=tuple(_assessment(one) for one in reply.principles),
    )


def comparison(reply: judge_pb2.CompareResponse) -> Comparison:
    """A comparison."""
    return Comparison(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        constitution_digest=reply.constitution_digest,
        probability_a=_probability_a(reply),
        no_verdict_reason=_reason(reply.no_verdict_reason),
        principles=tuple(_principle_verdict(verdict) for verdict in reply.principles),
    )


def score(reply: judge_pb2.ScoreResponse) -> Score:
    """A score."""
    return Score(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        constitution_digest=reply.constitution_digest,
        score=_score(reply),
        no_verdict_reason=_reason(reply.no_verdict_reason),
        principles=tuple(_principle_score(score) for score in reply.principles),
    )


def ranking(reply: judge_pb2.RankResponse) -> Ranking:
    """An order of responses."""
    return Ranking(
        request_id=reply.request_id,
        weight_version=reply.weight_version,
        usage=_usage(reply.usage),
        timing=_timing(reply.timing),
        constitution_digest=reply.constitution_digest,
        ranking=tuple(_ranked(response) for response in reply.ranking),
        pairs=tuple(_pair(pair) for pair in reply.pairs),
    )


def server_info(reply: control_pb2.GetServerInfoResponse) -> ServerInfo:
    """What a process is."""
    return ServerInfo(
        service_role=_known(_SERVICE_ROLE, reply.service_role, "service_role"),
        solon_version=reply.solon_version,
        engine=reply.engine,
        model=reply.model,
        weight_version=reply.weight_version,
        context_tokens=reply.context_tokens,
        start_time=reply.start_time.ToDatetime(tzinfo=UTC),
        supports_logprobs=reply.supports_logprobs,
        supports_weight_update=reply.supports_weight_update,
        instance_id=reply.instance_id,
        constitutions=tuple(
            ConstitutionInfo(
                name=known.name,
                version=known.version,
                digest=known.digest,
                principle_ids=tuple(known.principle_ids),
            )
            for known in reply.constitutions
        ),
    )


def load(reply: control_pb2.GetLoadResponse) -> Load:
    """How busy a process is."""
    return Load(
        queued=reply.queued,
        running=reply.running,
        queue_capacity=reply.queue_capacity,
        paused=reply.paused,
        weight_version=reply.weight_version,
    )


def weights_updated(reply: control_pb2.UpdateWeightsResponse) -> WeightsUpdated:
    """Which weights are in use now, and were before."""
    return WeightsUpdated(
        weight_version=reply.weight_version,
        previous_weight_version=reply.previous_weight_version,
    )


def _known(table: Mapping[Key, Value], value: Key, field: str) -> Value:
    if value not in table:
        raise BadReply(
            f"{field}: expected one of {sorted(str(known) for known in table.values())}, got the "
            f"number {value!r}; a newer server needs a newer client"
        )
    return table[value]


def _usage(usage: common_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        model_calls=usage.model_calls,
        cost_usd=usage.cost_usd,
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _timing(timing: common_pb2.Timing) -> Timing:
    return Timing(queue=_seconds(timing.queue), inference=_seconds(timing.inference))


def _tokens(tokens: Iterable[common_pb2.Token]) -> tuple[Token, ...]:
    return tuple(Token(id=token.id, text=token.text, logprob=token.logprob) for token in tokens)


def _completion(completion: common_pb2.Completion) -> Completion:
    return Completion(
        text=completion.text,
        finish_reason=_known(_FINISH, completion.finish_reason, "finish_reason"),
        seed=completion.seed,
        tokens=_tokens(completion.tokens),
    )


def _question_answer(answer: critic_pb2.QuestionAnswer) -> QuestionAnswer:
    return QuestionAnswer(
        number=answer.number,
        question=answer.question,
        answer=_completion(answer.answer),
        outcome=_known(_OUTCOME, answer.outcome, "outcome"),
    )


def _reason(reason: judge_pb2.NoVerdictReason.ValueType) -> NoVerdictReason | None:
    if reason == judge_pb2.NO_VERDICT_REASON_UNSPECIFIED:
        return None
    return _known(_NO_VERDICT, reason, "no_verdict_reason")


_Judged = (
    judge_pb2.CompareResponse
    | judge_pb2.PrincipleVerdict
    | judge_pb2.OrderVerdict
    | judge_pb2.ChainVerdict
    | judge_pb2.PairVerdict
)


def _probability_a(verdict: _Judged) -> float | None:
    given = verdict.HasField("probability_a")
    _require_either("probability_a", given, verdict.no_verdict_reason)
    return verdict.probability_a if given else None


def _score(score: judge_pb2.ScoreResponse | judge_pb2.PrincipleScore) -> float | None:
    given = score.HasField("score")
    _require_either("score", given, score.no_verdict_reason)
    return score.score if given else None


def _assessed_probability(
    assessed: critic_pb2.AssessResponse | critic_pb2.Assessment,
) -> float | None:
    given = assessed.HasField("probability")
    _require_either("probability", given, assessed.no_verdict_reason)
    return assessed.probability if given else None


def _assessment(assessment: critic_pb2.Assessment) -> Assessment:
    return Assessment(
        principle_id=assessment.principle_id,
        probability=_assessed_probability(assessment),
        logprobs=dict(assessment.logprobs),
        option_mass=assessment.option_mass,
        no_verdict_reason=_reason(assessment.no_verdict_reason),
    )


def _require_either(field: str, given: bool, reason: judge_pb2.NoVerdictReason.ValueType) -> None:
    reasoned = reason != judge_pb2.NO_VERDICT_REASON_UNSPECIFIED
    if given == reasoned:
        got = "both" if given else "neither"
        raise BadReply(f"expected either {field} or no_verdict_reason, got {got}")


def _order_verdict(verdict: judge_pb2.OrderVerdict) -> OrderVerdict:
    return OrderVerdict(
        swapped=verdict.swapped,
        logprob_a=verdict.logprob_a,
        logprob_b=verdict.logprob_b,
        probability_a=_probability_a(verdict),
        no_verdict_reason=_reason(verdict.no_verdict_reason),
        chains=tuple(verdict.chains),
        chain_verdicts=tuple(_chain_verdict(chain) for chain in verdict.chain_verdicts),
    )


def _chain_verdict(verdict: judge_pb2.ChainVerdict) -> ChainVerdict:
    return ChainVerdict(
        logprob_a=verdict.logprob_a,
        logprob_b=verdict.logprob_b,
        probability_a=_probability_a(verdict),
        no_verdict_reason=_reason(verdict.no_verdict_reason),
    )


def _principle_verdict(verdict: judge_pb2.PrincipleVerdict) -> PrincipleVerdict:
    dependent = verdict.position_dependent if verdict.HasField("position_dependent") else None
    return PrincipleVerdict(
        principle_id=verdict.principle_id,
        weight=verdict.weight,
        orders=tuple(_order_verdict(order) for order in verdict.orders),
        probability_a=_probability_a(verdict),
        position_dependent=dependent,
        no_verdict_reason=_reason(verdict.no_verdict_reason),
    )


def _principle_score(score: judge_pb2.PrincipleScore) -> PrincipleScore:
    return PrincipleScore(
        principle_id=score.principle_id,
        weight=score.weight,
        score=_score(score),
        probabilities=dict(score.probabilities),
        option_mass=score.option_mass,
        no_verdict_reason=_reason(score.no_verdict_reason),
    )


def _ranked(response: judge_pb2.RankedResponse) -> RankedResponse:
    return RankedResponse(
        index=response.index,
        strength=response.strength if response.HasField("strength") else None,
        win_rate=response.win_rate if response.HasField("win_rate") else None,
    )


def _pair(pair: judge_pb2.PairVerdict) -> PairVerdict:
    return PairVerdict(
        index_a=pair.index_a,
        index_b=pair.index_b,
        probability_a=_probability_a(pair),
        no_verdict_reason=_reason(pair.no_verdict_reason),
    )
