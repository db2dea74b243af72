"""What a judge says, and how readings become verdicts: types and pure functions.

A verdict that cannot be given is a typed outcome with a reason; it never becomes a tie or a
default. Averaging over both orders: Lee et al. 2023 (RLAIF, arXiv 2309.00267), section 2.1. Knows
nothing of models or gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solon.constitution import Principle
from solon.engine import probability
from solon.engine.base import Timing, Usage
from solon.judge.ranking import Win, placed, strengths
from solon.serving import readings
from solon.serving.readings import NoVerdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the judge said of the two options, once."""

    logprob_a: float
    """Natural log, of the option that stood for response A; NaN where it is not told."""
    logprob_b: float
    probability_a: float | None
    """None where ``no_verdict`` is set."""
    no_verdict: NoVerdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderVerdict:
    """What the judge said with the responses in one order."""

    swapped: bool
    """Whether response B was shown first."""
    logprob_a: float
    """Mean over the chains that were read; NaN if none was, or where it is not told."""
    logprob_b: float
    probability_a: float | None
    no_verdict: NoVerdict | None
    chains: tuple[str, ...] = ()
    """The chains of thought."""
    readings: tuple[Reading, ...] = ()
    """What each chain led to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrincipleVerdict:
    """What the judge said by one principle."""

    principle: Principle
    orders: tuple[OrderVerdict, ...]
    """One or two."""
    probability_a: float | None
    """Mean over the orders; None unless each has a verdict."""
    position_dependent: bool | None
    """Whether the orders disagree; None unless both have a verdict."""
    no_verdict: NoVerdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Which of two responses is better."""

    probability_a: float | None
    """Weighted mean over the principles that have a verdict."""
    no_verdict: NoVerdict | None
    principles: tuple[PrincipleVerdict, ...]
    weight_version: str
    usage: Usage
    timing: Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class PrincipleScore:
    """How good a response is by one principle."""

    principle: Principle
    score: float | None
    """Expectation of the answers' values."""
    probabilities: Mapping[str, float]
    """Answer -> probability, summing to 1; empty where the log-probabilities are not finite."""
    option_mass: float
    """Probability of all answers together; NaN where the log-probabilities are not finite."""
    no_verdict: NoVerdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How good a response is."""

    score: float | None
    """Weighted mean over the principles that have a score."""
    no_verdict: NoVerdict | None
    principles: tuple[PrincipleScore, ...]
    weight_version: str
    usage: Usage
    timing: Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedResponse:
    """One response's place."""

    index: int
    strength: float | None
    """Bradley-Terry log-strength; None if no comparison of it has a verdict."""
    win_rate: float | None
    """Mean probability of being the better one; None as ``strength``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairVerdict:
    """One comparison that a ranking rests on."""

    index_a: int
    index_b: int
    probability_a: float | None
    no_verdict: NoVerdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """An order of responses."""

    ranking: tuple[RankedResponse, ...]
    """Best first; those without a strength last, in the order given."""
    pairs: tuple[PairVerdict, ...]
    weight_version: str
    usage: Usage
    timing: Timing


def unread(why: NoVerdict) -> Reading:
    """The reading of a chain that leads to no answer, or of words that are none."""
    return Reading(
        logprob_a=float("nan"), logprob_b=float("nan"), probability_a=None, no_verdict=why
    )


def read(logprob_a: float, logprob_b: float, *, min_option_mass: float) -> Reading:
    """Normalise the two options, if they are finite and likely enough together."""
    options = (logprob_a, logprob_b)
    no_verdict = readings.refusal(options, min_option_mass)
    return Reading(
        logprob_a=logprob_a,
        logprob_b=logprob_b,
        probability_a=probability.normalised(options)[0] if no_verdict is None else None,
        no_verdict=no_verdict,
    )


def heard(*, prefers_a: bool) -> Reading:
    """The reading of an answer in words."""
    return Reading(
        logprob_a=float("nan"),
        logprob_b=float("nan"),
        probability_a=float(prefers_a),
        no_verdict=None,
    )


def order_verdict(
    readings: Sequence[Reading], *, swapped: bool, clamp: float = 0.0, chains: Sequence[str] = ()
) -> OrderVerdict:
    """Average the readings that have a verdict, then clamp to [clamp, 1 - clamp].

    Without any, the reason is that of the first. ``clamp`` is for chains of thought, whose
    probabilities are near 0 or 1 (Bai et al. 2022, section 4.1).
    """
    given = [r for r in readings if r.no_verdict is None]
    probabilities = [r.probability_a for r in given if r.probability_a is not None]
    unseen = (NoVerdict.UNREADABLE_ANSWER, NoVerdict.FILTERED)
    seen = given or [r for r in readings if r.no_verdict not in unseen]
    return OrderVerdict(
        swapped=swapped,
        logprob_a=probability.mean([r.logprob_a for r in seen]),
        logprob_b=probability.mean([r.logprob_b for r in seen]),
        probability_a=probability.clamped(probability.mean(probabilities), clamp)
        if probabilities
        else None,
        no_verdict=None if probabilities else readings[0].no_verdict,
        chains=tuple(chains),
        readings=tuple(readings) if chains else (),
    )


def principle_verdict(principle: Principle, orders: Sequence[OrderVerdict]) -> PrincipleVerdict:
    """Average the orders; a principle has a verdict only if each of its orders has."""
    missing = [order.no_verdict for order in orders if order.no_verdict is not None]
    given = [order.probability_a for order in orders if order.probability_a is not None]
    decided = not missing
    return PrincipleVerdict(
        principle=principle,
        orders=tuple(orders),
        probability_a=probability.mean(given) if decided else None,
        position_dependent=_disagree(given) if decided and len(orders) == 2 else None,
        no_verdict=None if decided else missing[0],
    )


def overall(verdicts: Sequence[PrincipleVerdict]) -> float | None:
    """The weighted mean over the principles that have a verdict; None if none has."""
    return probability.weighted_mean(
        (v.probability_a, v.principle.weight) for v in verdicts if v.probability_a is not None
    )


def overall_score(scores: Sequence[PrincipleScore]) -> float | None:
    """The weighted mean over the principles that have a score; None if none has."""
    return probability.weighted_mean(
        (s.score, s.principle.weight) for s in scores if s.score is not None
    )


def principle_score(principle: Principle, reading: readings.Reading) -> PrincipleScore:
    """What the judge said to the principle's question."""
    return PrincipleScore(
        principle=principle,
        score=reading.value,
        probabilities=reading.probabilities,
        option_mass=reading.option_mass,
        no_verdict=reading.no_verdict,
    )


def ranked(count: int, pairs: Sequence[PairVerdict]) -> tuple[RankedResponse, ...]:
    """The responses in order of their strengths, best first; ties in the order given."""
    wins = [
        Win(pair.index_a, pair.index_b, pair.probability_a)
        for pair in pairs
        if pair.probability_a is not None
    ]
    shares: list[list[float]] = [[] for _ in range(count)]
    for first, second, won in wins:
        shares[first].append(won)
        shares[second].append(1 - won)
    found = strengths(count, wins)
    return tuple(
        RankedResponse(
            index=index,
            strength=found[index],
            win_rate=probability.mean(shares[index]) if shares[index] else None,
        )
        for index in placed(found)
    )


def _disagree(probabilities: Sequence[float]) -> bool:
    return min(probabilities) < 0.5 < max(probabilities)
