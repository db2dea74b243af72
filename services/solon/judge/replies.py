"""Verdicts as messages of the contract. Knows nothing of how they came about."""

from __future__ import annotations

from solon.judge.verdicts import (
    Comparison,
    OrderVerdict,
    PrincipleScore,
    PrincipleVerdict,
    Ranking,
    Reading,
    Score,
)
from solon.serving import convert
from solon.v1 import judge_pb2


def comparison(
    made: Comparison, *, request_id: str, digest: str, return_chains: bool
) -> judge_pb2.CompareResponse:
    """A comparison."""
    return judge_pb2.CompareResponse(
        request_id=request_id,
        weight_version=made.weight_version,
        constitution_digest=digest,
        probability_a=made.probability_a,
        no_verdict_reason=convert.no_verdict_reason(made.no_verdict),
        principles=[_principle(v, return_chains=return_chains) for v in made.principles],
        usage=convert.usage(made.usage),
        timing=convert.timing(made.timing),
    )


def score(made: Score, *, request_id: str, digest: str) -> judge_pb2.ScoreResponse:
    """Scores."""
    return judge_pb2.ScoreResponse(
        request_id=request_id,
        weight_version=made.weight_version,
        constitution_digest=digest,
        score=made.score,
        no_verdict_reason=convert.no_verdict_reason(made.no_verdict),
        principles=[_score(one) for one in made.principles],
        usage=convert.usage(made.usage),
        timing=convert.timing(made.timing),
    )


def ranking(made: Ranking, *, request_id: str, digest: str) -> judge_pb2.RankResponse:
    """An order."""
    return judge_pb2.RankResponse(
        request_id=request_id,
        weight_version=made.weight_version,
        constitution_digest=digest,
        ranking=[
            judge_pb2.RankedResponse(index=r.index, strength=r.strength, win_rate=r.win_rate)
            for r in made.ranking
        ],
        pairs=[
            judge_pb2.PairVerdict(
                index_a=pair.index_a,
                index_b=pair.index_b,
                probability_a=pair.probability_a,
                no_verdict_reason=convert.no_verdict_reason(pair.no_verdict),
            )
            for pair in made.pairs
        ],
        usage=convert.usage(made.usage),
        timing=convert.timing(made.timing),
    )


def _principle(verdict: PrincipleVerdict, *, return_chains: bool) -> judge_pb2.PrincipleVerdict:
    return judge_pb2.PrincipleVerdict(
        principle_id=verdict.principle.id,
        weight=verdict.principle.weight,
        orders=[_order(order, return_chains=return_chains) for order in verdict.orders],
        probability_a=verdict.probability_a,
        position_dependent=verdict.position_dependent,
        no_verdict_reason=convert.no_verdict_reason(verdict.no_verdict),
    )


def _order(verdict: OrderVerdict, *, return_chains: bool) -> judge_pb2.OrderVerdict:
    return judge_pb2.OrderVerdict(
        swapped=verdict.swapped,
        logprob_a=verdict.logprob_a,
        logprob_b=verdict.logprob_b,
        probability_a=verdict.probability_a,
        no_verdict_reason=convert.no_verdict_reason(verdict.no_verdict),
        chains=verdict.chains if return_chains else (),
        chain_verdicts=[_chain(reading) for reading in verdict.readings],
    )


def _chain(reading: Reading) -> judge_pb2.ChainVerdict:
    return judge_pb2.ChainVerdict(
        logprob_a=reading.logprob_a,
        logprob_b=reading.logprob_b,
        probability_a=reading.probability_a,
        no_verdict_reason=convert.no_verdict_reason(reading.no_verdict),
    )


def _score(one: PrincipleScore) -> judge_pb2.PrincipleScore:
    return judge_pb2.PrincipleScore(
        principle_id=one.principle.id,
        weight=one.principle.weight,
        score=one.score,
        probabilities=one.probabilities,
        option_mass=one.option_mass,
        no_verdict_reason=convert.no_verdict_reason(one.no_verdict),
    )
