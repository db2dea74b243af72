"""The judge: compares, scores and ranks responses by log-probabilities.

Method: Bai et al. 2022 (arXiv 2212.08073), section 4.1: the normalised probabilities of the answers
"(A)" and "(B)", kept soft. Both orders and expected scores: Lee et al. 2023 (RLAIF, arXiv
2309.00267), sections 2.1 and 2.4. An engine that tells no log-probabilities answers in words: each
reading is then 0 or 1, and what is soft comes from orders, principles and chains alone. Knows
nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

from solon.constitution import AbsoluteQuestion, Principle
from solon.constitution.prompts import score_prompt
from solon.engine.base import Engine
from solon.judge import verdicts
from solon.judge.comparing import compare_pairs
from solon.judge.questions import Manner, Question
from solon.judge.ranking import unsettled
from solon.judge.verdicts import (
    Comparison,
    PairVerdict,
    PrincipleVerdict,
    Ranking,
    Score,
)
from solon.serving import asking
from solon.serving.readings import NoVerdict, Prompts
from solon.serving.session import Session


class Judge:
    """A model that judges responses."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: runs the model."""
        self._engine = engine

    async def compare(
        self,
        question: Question,
        response_a: str,
        response_b: str,
        manner: Manner,
        *,
        weight_version: str | None = None,
    ) -> Comparison:
        """The probability that A is better, per principle and overall.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.score`` and, with a chain of thought, ``Engine.generate``.
        """
        session = Session(self._engine, weight_version=weight_version)
        (judged,) = await compare_pairs(session, question, [(response_a, response_b)], manner)
        probability_a = verdicts.overall(judged)
        return Comparison(
            probability_a=probability_a,
            no_verdict=NoVerdict.NO_PRINCIPLE if probability_a is None else None,
            principles=judged,
            weight_version=session.weight_version,
            usage=session.usage,
            timing=session.timing,
        )

    async def score(
        self,
        question: Question,
        response: str,
        *,
        min_option_mass: float = 0.0,
        weight_version: str | None = None,
    ) -> Score:
        """How good a response is by each principle's absolute question, and overall.

        An answer's probability is that of the model's reply beginning with it, so answers of which
        one begins another ("1", "10") overlap under tokenizers that split them.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.score``.
        """
        session = Session(self._engine, weight_version=weight_version)
        found = await asking.ask(
            session,
            [_question(principle) for principle in question.principles],
            Prompts(
                [
                    partial(score_prompt, p, question.conversation, response)
                    for p in question.principles
                ]
            ),
            min_option_mass=min_option_mass,
        )
        by_principle = tuple(
            verdicts.principle_score(principle, reading)
            for principle, reading in zip(question.principles, found, strict=True)
        )
        score = verdicts.overall_score(by_principle)
        return Score(
            score=score,
            no_verdict=NoVerdict.NO_PRINCIPLE if score is None else None,
            principles=by_principle,
            weight_version=session.weight_version,
            usage=session.usage,
            timing=session.timing,
        )

    async def rank(
        self,
        question: Question,
        responses: Sequence[str],
        manner: Manner,
        *,
        every_pair: bool = True,
        weight_version: str | None = None,
    ) -> Ranking:
        """Order responses by comparing every pair, or as few as settle it.

        Args:
            question: What they answer, and by which principles they are compared.
            responses: 2 or more.
            manner: How pairs are compared.
            every_pair: Whether to compare all; else as ``ranking.unsettled`` says.
            weight_version: Refuse any other weights.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``compare``.
        """
        session = Session(self._engine, weight_version=weight_version)
        count = len(responses)
        found: dict[tuple[int, int], PairVerdict] = {}
        todo = list(combinations(range(count), 2)) if every_pair else unsettled(count, {})
        while todo:
            texts = [(responses[a], responses[b]) for a, b in todo]
            judged = await compare_pairs(session, question, texts, manner)
            for (a, b), by_principle in zip(todo, judged, strict=True):
                found[a, b] = _pair(a, b, by_principle)
            known = {pair: verdict.probability_a for pair, verdict in found.items()}
            todo = [] if every_pair else unsettled(count, known)
        pairs = tuple(found.values())
        return Ranking(
            ranking=verdicts.ranked(count, pairs),
            pairs=pairs,
            weight_version=session.weight_version,
            usage=session.usage,
            timing=session.timing,
        )


def _pair(a: int, b: int, by_principle: Sequence[PrincipleVerdict]) -> PairVerdict:
    probability_a = verdicts.overall(by_principle)
    return PairVerdict(
        index_a=a,
        index_b=b,
        probability_a=probability_a,
        no_verdict=NoVerdict.NO_PRINCIPLE if probability_a is None else None,
    )


def _question(principle: Principle) -> AbsoluteQuestion:
    question = principle.absolute_question
    if question is None:
        raise ValueError(f"principle {principle.id!r} has no absolute_question")
    return question
