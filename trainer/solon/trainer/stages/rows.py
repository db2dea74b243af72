"""Replies of the services as rows of the Parquet files. Knows nothing of stages or files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from solon.client import (
    Comparison,
    Completion,
    FinishReason,
    Generated,
    Outcome,
    PrincipleVerdict,
    RefinedRound,
    Sampling,
    ServerInfo,
)
from solon.trainer.stages.settings import SamplingSettings

Row = dict[str, Any]

_BY_FINISH = {FinishReason.LENGTH: Outcome.TRUNCATED, FinishReason.ABORT: Outcome.ABORTED}


def sampling(settings: SamplingSettings, seed: int) -> Sampling:
    """The request's sampling: the configuration's, with a seed."""
    return Sampling(**settings.model_dump(), seed=seed)


def outcome(completion: Completion) -> Outcome:
    """What became of a response, in the critic's words for a revision."""
    if not completion.text.strip():
        return Outcome.EMPTY
    return _BY_FINISH.get(completion.finish_reason, Outcome.MADE)


def completion(made: Completion) -> Row:
    """As ``schemas.COMPLETION``."""
    return {"text": made.text, "finish_reason": made.finish_reason.value, "seed": made.seed}


def answered(reply: Generated, info: ServerInfo, settings: SamplingSettings) -> Row:
    """As ``schemas.ANSWERED``."""
    return {
        "model": info.model,
        "weight_version": reply.weight_version,
        "sampling": settings.model_dump(),
        "usage": asdict(reply.usage),
        "timing": asdict(reply.timing),
    }


def refined(made: RefinedRound) -> Row:
    """As ``schemas.ROUND``."""
    return {
        "round": made.round,
        "principle_id": made.principle_id,
        "critique": None if made.critique is None else completion(made.critique),
        "critique_outcome": made.critique_outcome and made.critique_outcome.value,
        "revision": completion(made.revision),
        "revision_outcome": made.revision_outcome.value,
        "weight_version": made.weight_version,
        "usage": asdict(made.usage),
        "timing": asdict(made.timing),
    }


def comparison(a: int, b: int, made: Comparison, principle_seed: int | None) -> Row:
    """As ``schemas.COMPARISON``."""
    return {
        "a": a,
        "b": b,
        "probability_a": made.probability_a,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
        "principle_seed": principle_seed,
        "principles": [_verdict(verdict) for verdict in made.principles],
        "weight_version": made.weight_version,
        "usage": asdict(made.usage),
        "timing": asdict(made.timing),
    }


def _verdict(made: PrincipleVerdict) -> Row:
    orders = [
        {
            "swapped": order.swapped,
            "logprob_a": order.logprob_a,
            "logprob_b": order.logprob_b,
            "probability_a": order.probability_a,
            "no_verdict_reason": order.no_verdict_reason and order.no_verdict_reason.value,
        }
        for order in made.orders
    ]
    return {
        "principle_id": made.principle_id,
        "weight": made.weight,
        "probability_a": made.probability_a,
        "position_dependent": made.position_dependent,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
        "orders": orders,
    }
