"""Several judges as one: what they say together, and how far they agree.

    async with JudgePanel({"a": "judge-a:50053", "b": "judge-b:50053"}) as panel:
        verdict = await panel.compare(conversation, "Yes.", "No.", constitution="core")
        print(verdict.probability_a, verdict.agreement)
        print((await panel.score(conversation, "Yes.", constitution="core")).score)

A judge that fails or cannot decide has no vote; it is reported, and never counted as a tie. Knows
nothing of how one judge comes to its verdict.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from types import TracebackType
from typing import Any, Self, TypeVar

from solon.chat import Conversation
from solon.client.errors import SolonError
from solon.client.judge import JudgeClient
from solon.client.requests import ConstitutionRef
from solon.client.types import Comparison, NoVerdictReason, Score

_EVEN = 0.5
Said = TypeVar("Said")


class PanelMode(StrEnum):
    """How votes become one verdict."""

    MEAN = "mean"
    """The mean of the judges' probabilities."""
    MAJORITY = "majority"
    """The share of the judges that prefer A; one that is exactly even counts half."""


class PanelNoVerdict(StrEnum):
    """Why a panel has no verdict."""

    NO_QUORUM = "no_quorum"
    """Fewer judges than the quorum came to a verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """What one judge said; exactly one of ``comparison`` and ``error`` is set."""

    judge: str
    """Its name in the panel."""
    comparison: Comparison | None
    error: SolonError | None
    """Why the call failed."""

    @property
    def probability_a(self) -> float | None:
        """That A is the better one; None if the judge failed or could not decide."""
        return None if self.comparison is None else self.comparison.probability_a

    @property
    def no_verdict_reason(self) -> NoVerdictReason | None:
        """Why a judge that answered could not decide."""
        return None if self.comparison is None else self.comparison.no_verdict_reason


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelComparison:
    """What a panel said."""

    probability_a: float | None
    """That A is the better one; None exactly where there is a ``no_verdict_reason``."""
    no_verdict_reason: PanelNoVerdict | None
    agreement: float | None
    """Share of the pairs of judges that prefer the same response, 0 to 1; None below two votes."""
    votes: tuple[Vote, ...]
    """In the order of the panel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreVote:
    """How one judge scored a response; exactly one of ``made`` and ``error`` is set."""

    judge: str
    """Its name in the panel."""
    made: Score | None
    error: SolonError | None
    """Why the call failed."""

    @property
    def score(self) -> float | None:
        """None if the judge failed or could not decide."""
        return None if self.made is None else self.made.score


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelScore:
    """How a panel scored a response."""

    score: float | None
    """The mean of the judges' scores; None exactly where there is a ``no_verdict_reason``."""
    no_verdict_reason: PanelNoVerdict | None
    votes: tuple[ScoreVote, ...]
    """In the order of the panel."""


class JudgePanel:
    """Judges that are asked the same. Use with ``async with``, unless all clients are open."""

    def __init__(
        self,
        judges: Mapping[str, str | JudgeClient],
        *,
        mode: PanelMode = PanelMode.MEAN,
        quorum: int | None = None,
        **options: Any,
    ) -> None:
        """Remember whom to ask.

        Args:
            judges: Name -> address, or a client: one that is not open yet for ``async with``, or
                one that its owner opened, if the panel is used without.
            mode: How votes become one verdict.
            quorum: Verdicts that it takes, 1 to the number of judges. None: all of them.
            options: As ``JudgeClient``'s, for judges that are given by address.

        Raises:
            ValueError: No judges, or a quorum that they cannot reach.
        """
        if not judges:
            raise ValueError("judges: expected at least one, got none")
        self._quorum = len(judges) if quorum is None else quorum
        if not 1 <= self._quorum <= len(judges):
            raise ValueError(f"quorum: expected 1 to {len(judges)}, got {quorum!r}")
        self._mode = mode
        self._judges = {
            name: JudgeClient(judge, **options) if isinstance(judge, str) else judge
            for name, judge in judges.items()
        }
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the channels."""
        async with AsyncExitStack() as stack:
            for judge in self._judges.values():
                await stack.enter_async_context(judge)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channels."""
        await self._stack.aclose()

    async def compare(
        self,
        conversation: Conversation,
        response_a: str,
        response_b: str,
        *,
        constitution: ConstitutionRef,
        **options: Any,
    ) -> PanelComparison:
        """Ask all judges at the same time.

        Args:
            conversation: What was asked; ends with the user.
            response_a: One response.
            response_b: The other.
            constitution: Where the principles come from.
            options: As ``JudgeClient.compare``'s.
        """

        async def ask(judge: JudgeClient) -> Comparison:
            return await judge.compare(
                conversation, response_a, response_b, constitution=constitution, **options
            )

        return self._verdict(
            [
                Vote(judge=name, comparison=comparison, error=error)
                for name, comparison, error in await self._asked(ask)
            ]
        )

    async def score(
        self,
        conversation: Conversation,
        response: str,
        *,
        constitution: ConstitutionRef,
        **options: Any,
    ) -> PanelScore:
        """Ask all judges for a score at the same time; theirs is the mean, whatever the mode.

        Args:
            conversation: What was asked; ends with the user.
            response: The response.
            constitution: Where the questions come from.
            options: As ``JudgeClient.score``'s.
        """

        async def ask(judge: JudgeClient) -> Score:
            return await judge.score(conversation, response, constitution=constitution, **options)

        votes = tuple(
            ScoreVote(judge=name, made=made, error=error)
            for name, made, error in await self._asked(ask)
        )
        cast = [score for vote in votes if (score := vote.score) is not None]
        missing = self._missing(cast)
        score = math.fsum(cast) / len(cast) if missing is None else None
        return PanelScore(score=score, no_verdict_reason=missing, votes=votes)

    async def _asked(
        self, ask: Callable[[JudgeClient], Awaitable[Said]]
    ) -> list[tuple[str, Said | None, SolonError | None]]:
        """Each judge's name, and what it said or why its call failed; all at the same time."""

        async def one(name: str, judge: JudgeClient) -> tuple[str, Said | None, SolonError | None]:
            try:
                return name, await ask(judge), None
            except SolonError as error:
                return name, None, error

        return await asyncio.gather(*(one(name, judge) for name, judge in self._judges.items()))

    def _missing(self, cast: Sequence[float]) -> PanelNoVerdict | None:
        """Why so many votes are no verdict; None if they are."""
        return None if len(cast) >= self._quorum else PanelNoVerdict.NO_QUORUM

    def _verdict(self, votes: Sequence[Vote]) -> PanelComparison:
        cast = [p for vote in votes if (p := vote.probability_a) is not None]
        missing = self._missing(cast)
        return PanelComparison(
            probability_a=self._together(cast) if missing is None else None,
            no_verdict_reason=missing,
            agreement=_agreement(cast),
            votes=tuple(votes),
        )

    def _together(self, cast: Sequence[float]) -> float:
        counted = map(_side, cast) if self._mode is PanelMode.MAJORITY else cast
        return math.fsum(counted) / len(cast)


def fleiss_kappa(verdicts: Sequence[PanelComparison]) -> float | None:
    """How far the judges of a panel agree beyond chance; see ``kappa_of_votes``.

    Raises:
        ValueError: The verdicts are those of panels of different sizes.
    """
    return kappa_of_votes([[vote.probability_a for vote in one.votes] for one in verdicts])


def kappa_of_votes(votes: Sequence[Sequence[float | None]]) -> float | None:
    """How far judges agree beyond chance: 1 always, 0 as chance would.

    Over the comparisons in which every judge preferred one of the two (Fleiss 1971, "Measuring
    nominal scale agreement among many raters"). None where there are none, where there is one
    judge only, or where all always said the same letter, so that chance alone would agree.

    Args:
        votes: A row a comparison, in it each judge's probability of A, None without a verdict.

    Raises:
        ValueError: The rows have different lengths.
    """
    counts = [Counter(sides) for sides in map(_sides, votes) if sides and len(sides) > 1]
    if not counts:
        return None
    judges = counts[0].total()
    if any(one.total() != judges for one in counts):
        raise ValueError("verdicts: expected those of one panel, got panels of different sizes")
    observed = math.fsum(
        (sum(n * n for n in one.values()) - judges) / (judges * (judges - 1)) for one in counts
    ) / len(counts)
    share_a = sum(one[1.0] for one in counts) / (len(counts) * judges)
    return _beyond_chance(observed, share_a**2 + (1 - share_a) ** 2)


def cohen_kappa(votes: Sequence[tuple[float | None, float | None]]) -> float | None:
    """How far two judges agree beyond chance, each with a share of A's of its own (Cohen 1960).

    Args:
        votes: A pair of probabilities of A for each comparison. As ``kappa_of_votes``, only those
            in which both judges preferred one of the two count.

    Returns:
        1 always, 0 as chance would; None without cases, or if chance alone would agree.
    """
    sides = [found for found in map(_sides, votes) if found]
    if not sides:
        return None
    observed = sum(one == other for one, other in sides) / len(sides)
    first, second = (sum(column) / len(sides) for column in zip(*sides, strict=True))
    return _beyond_chance(observed, first * second + (1 - first) * (1 - second))


def _sides(votes: Sequence[float | None]) -> list[float] | None:
    """What every judge preferred; None unless each preferred one of the two."""
    sides = [_side(p) for p in votes if p is not None]
    return None if len(sides) < len(votes) or _EVEN in sides else sides


def _beyond_chance(observed: float, expected: float) -> float | None:
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _side(probability_a: float) -> float:
    """1 for A, 0 for B, one half for neither."""
    return _EVEN if probability_a == _EVEN else float(probability_a > _EVEN)


def _agreement(cast: Sequence[float]) -> float | None:
    pairs = list(combinations(map(_side, cast), 2))
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None
