"""Prompts and replies as rows of the Parquet files. Knows nothing of stages or files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import reduce
from operator import add
from typing import Any

from solon.client import (
    Assessment,
    ChainVerdict,
    Comparison,
    Completion,
    FinishReason,
    Generated,
    OrderVerdict,
    Outcome,
    PanelComparison,
    PrincipleScore,
    PrincipleVerdict,
    RefinedRound,
    Sampling,
    Score,
    ServerInfo,
    Timing,
    Usage,
    Vote,
)
from solon.trainer.prompts import Prompt
from solon.trainer.stages.settings import SamplingSettings

Row = dict[str, Any]

_FIELDS = {kind: tuple(one.name for one in fields(kind)) for kind in (Usage, Timing)}
_SPENT_NOTHING: Row = {"usage": asdict(Usage()), "timing": asdict(Timing())}
_OF_A_VOTE = (
    *("probability_a", "no_verdict_reason", "principles", "weight_version"),
    *("usage", "timing"),
)

_BY_FINISH: Mapping[str, Outcome] = {
    FinishReason.STOP: Outcome.MADE,
    FinishReason.LENGTH: Outcome.TRUNCATED,
    FinishReason.ABORT: Outcome.ABORTED,
}


def sampling(settings: SamplingSettings, seed: int) -> Sampling:
    """The request's sampling: the configuration's, with a seed."""
    return Sampling(**settings.model_dump(), seed=seed)


def origin(prompt: Prompt) -> Row:
    """As ``schemas.ORIGIN``."""
    return {"source": prompt.source, "row": prompt.row, "category": prompt.category}


def asked(prompt: Prompt) -> Row:
    """As ``schemas.RL_PROMPTS_EXPORT``."""
    return {"id": prompt.id, **origin(prompt), "prompt": prompt.conversation.as_dicts()}


def completion(made: Completion) -> Row:
    """As ``schemas.COMPLETION``."""
    return {"text": made.text, "finish_reason": made.finish_reason.value, "seed": made.seed}


def outcome(completion: Mapping[str, Any]) -> Outcome:
    """What became of a response, a row of ``schemas.COMPLETION``, in the critic's words."""
    if not completion["text"].strip():
        return Outcome.EMPTY
    return _BY_FINISH[completion["finish_reason"]]


def answered(reply: Generated, info: ServerInfo, settings: SamplingSettings) -> Row:
    """As ``schemas.ANSWERED``."""
    return {
        "model": info.model,
        "weight_version": reply.weight_version,
        "sampling": settings.model_dump(),
        "usage": plain(reply.usage),
        "timing": plain(reply.timing),
    }


def refined(made: RefinedRound) -> Row:
    """As ``schemas.ROUND``."""
    return {
        "round": made.round,
        "principle_id": made.principle_id,
        "assessment": None if made.assessment is None else assessment(made.assessment),
        "answers": [
            {
                "number": answer.number,
                "question": answer.question,
                "answer": completion(answer.answer),
                "outcome": answer.outcome.value,
            }
            for answer in made.answers
        ],
        "critique": None if made.critique is None else completion(made.critique),
        "critique_outcome": made.critique_outcome and made.critique_outcome.value,
        "revision": None if made.revision is None else completion(made.revision),
        "revision_outcome": made.revision_outcome.value,
        "weight_version": made.weight_version,
        "usage": plain(made.usage),
        "timing": plain(made.timing),
    }


def assessment(made: Assessment) -> Row:
    """As ``schemas.ASSESSMENT``."""
    return {
        "principle_id": made.principle_id,
        "probability": made.probability,
        "logprobs": [
            {"answer": answer, "logprob": logprob}
            for answer, logprob in sorted(made.logprobs.items())
        ],
        "option_mass": made.option_mass,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
    }


def seconds(record: Mapping[str, Any]) -> tuple[float, float]:
    """How long the calls waited in queues, and were worked on, that made a record of any stage."""
    made: list[Any] = [record, record.get("policy"), record.get("comparison")]
    made += [*record.get("rounds", ()), *record.get("comparisons", ())]
    found = [one["timing"] for one in made if one is not None and one.get("timing") is not None]
    return sum(one["queue"] for one in found), sum(one["inference"] for one in found)


def plain(spent: Usage | Timing) -> Row:
    """As ``schemas.USAGE`` or ``schemas.TIMING``."""
    # not asdict, which copies what needs no copy: a sixth of the coordinator's time
    return {name: getattr(spent, name) for name in _FIELDS[type(spent)]}


def comparison(
    a: int,
    b: int,
    made: Comparison,
    *,
    principle_seed: int | None = None,
    chain_seed: int | None = None,
) -> Row:
    """As ``schemas.COMPARISON``."""
    return _compared(a, b, made, principle_seed, chain_seed) | {
        "principles": [_verdict(verdict) for verdict in made.principles],
        "votes": [],
        "agreement": None,
        "weight_version": made.weight_version,
        "usage": plain(made.usage),
        "timing": plain(made.timing),
    }


def not_compared(a: int, b: int, dropped: str) -> Row:
    """As ``schemas.COMPARISON``, of a pair that was left out before it was judged."""
    empty = dict.fromkeys(
        ("probability_a", "no_verdict_reason", "principle_seed", "chain_seed", "weight_version")
    )
    nothing = {"principles": [], "votes": [], "agreement": None, **_SPENT_NOTHING}
    return {"a": a, "b": b, "dropped": dropped} | empty | nothing


def panel_comparison(
    a: int,
    b: int,
    made: PanelComparison,
    models: Mapping[str, str],
    *,
    principle_seed: int | None = None,
    chain_seed: int | None = None,
) -> Row:
    """As ``schemas.COMPARISON``; ``models``: judge -> what it runs."""
    answered = [vote.comparison for vote in made.votes if vote.comparison is not None]
    return _compared(a, b, made, principle_seed, chain_seed) | {
        "principles": [],
        "votes": [_vote(vote, models[vote.judge]) for vote in made.votes],
        "agreement": made.agreement,
        "weight_version": None,
        "usage": asdict(reduce(add, (one.usage for one in answered), Usage())),
        "timing": asdict(reduce(add, (one.timing for one in answered), Timing())),
    }


def _compared(
    a: int,
    b: int,
    made: Comparison | PanelComparison,
    principle_seed: int | None,
    chain_seed: int | None,
) -> Row:
    return {
        "a": a,
        "b": b,
        "probability_a": made.probability_a,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
        "dropped": None,
        "principle_seed": principle_seed,
        "chain_seed": chain_seed,
    }


def judgement(judge: str, model: str, made: Score | Exception, score: float | None = None) -> Row:
    """As ``schemas.JUDGEMENT``; ``made``: what the judge said, or why its call failed."""
    head = {"judge": judge, "model": model, "score": score}
    if isinstance(made, Exception):
        empty = dict.fromkeys(("no_verdict_reason", "constitution_digest", "weight_version"))
        return head | empty | {"error": _failed(made), "principles": [], **_SPENT_NOTHING}
    return head | {
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
        "error": None,
        "principles": [_scored(principle) for principle in made.principles],
        "constitution_digest": made.constitution_digest,
        "weight_version": made.weight_version,
        "usage": plain(made.usage),
        "timing": plain(made.timing),
    }


def was_judged(comparison: Mapping[str, Any]) -> bool:
    """Whether a judge was asked at all."""
    return bool(comparison["principles"] or comparison["votes"])


def verdicts_of(comparison: Mapping[str, Any]) -> list[Row]:
    """What was said by each principle, by all judges that answered."""
    said = [comparison, *comparison["votes"]]
    return [verdict for one in said for verdict in one["principles"]]


def _vote(vote: Vote, model: str) -> Row:
    head = {"judge": vote.judge, "model": model}
    if vote.comparison is None:
        said: Row = dict.fromkeys(("probability_a", "no_verdict_reason", "weight_version"))
        assert vote.error is not None
        return head | said | {"error": _failed(vote.error), "principles": [], **_SPENT_NOTHING}
    made = comparison(0, 1, vote.comparison)
    return head | {"error": None} | {key: made[key] for key in _OF_A_VOTE}


def _failed(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _scored(made: PrincipleScore) -> Row:
    return {
        "principle_id": made.principle_id,
        "weight": made.weight,
        "score": made.score,
        "probabilities": [
            {"answer": answer, "probability": probability}
            for answer, probability in sorted(made.probabilities.items())
        ],
        "option_mass": made.option_mass,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
    }


def _verdict(made: PrincipleVerdict) -> Row:
    orders = [
        _reading(order)
        | {
            "swapped": order.swapped,
            "chains": [
                _reading(chain) | {"text": text}
                for text, chain in zip(order.chains, order.chain_verdicts, strict=True)
            ],
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


def _reading(made: OrderVerdict | ChainVerdict) -> Row:
    return {
        "logprob_a": _number(made.logprob_a),
        "logprob_b": _number(made.logprob_b),
        "probability_a": made.probability_a,
        "no_verdict_reason": made.no_verdict_reason and made.no_verdict_reason.value,
    }


def _number(value: float) -> float | None:
    """None for what is no number, for which JSON has no word, and which equals nothing."""
    return value if math.isfinite(value) else None
