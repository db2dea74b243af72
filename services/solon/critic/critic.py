"""The critic: critiques a response by a principle and revises it, once or in a chain.

Method: Bai et al. 2022 (arXiv 2212.08073), section 3.1; without critiques, section 3.5. Every text
that the model makes comes with its ``Outcome``: an empty or aborted one is said to be so, and is
never passed on as a response. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from solon.chat import Conversation
from solon.constitution import Principle, derive_seed, draw
from solon.critic.assessing import Assessed, Assessment, assess
from solon.critic.reviews import PAPER, Answer, Made, Manner, Outcome, Review, Round, Text
from solon.engine.base import Engine, Sampling
from solon.serving.readings import NoVerdict
from solon.serving.session import Session


class Critic:
    """A model that assesses, critiques and revises."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: runs the model."""
        self._engine = engine

    async def critique(
        self, review: Review, sampling: Sampling, *, weight_version: str | None = None
    ) -> Made:
        """Critique one response, in the light of the answers to the principle's questions.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.generate``.
        """
        session = Session(self._engine, weight_version=weight_version)
        answers, text = await _critique(session, review, sampling)
        return _made(session, text, answers)

    async def revise(
        self,
        review: Review,
        critique: str | None,
        sampling: Sampling,
        *,
        answers: Sequence[str] = (),
        weight_version: str | None = None,
    ) -> Made:
        """Revise one response, in the light of a critique and its answers or (None) without.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.generate``.
        """
        session = Session(self._engine, weight_version=weight_version)
        return _made(
            session, await _text(session, review.revision_prompt(critique, answers), sampling)
        )

    async def refine(
        self,
        first: Review,
        principles: Sequence[Principle],
        sampling: Sampling,
        manner: Manner = PAPER,
        *,
        weight_version: str | None = None,
    ) -> AsyncGenerator[Round, None]:
        """Run a chain from ``first``: a round for each principle, on the revision before it.

        A round by whose principle there is too little to criticise is not made: the next looks at
        the same response. Without a verdict on that, the round is made.

        An empty critique is no critique: the revision of that round is made without one, and the
        round says so. The chain ends early with a round whose critique was aborted, or whose
        revision was aborted or empty. Every call has a seed of its own, derived from
        ``sampling.seed``, the round and what it makes, so that a round does not depend on how many
        follow. The weights of the first round hold for the whole chain.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``, or were replaced.
            EngineError: As ``Engine.generate`` and, with assessments, ``Engine.score``. Rounds that
                were yielded before are whole.
        """
        review, expected = first, weight_version
        for number, principle in enumerate(principles, start=1):
            review = replace(review, principle=principle)
            session = Session(self._engine, weight_version=expected)
            seeded = replace(sampling, seed=derive_seed(sampling.seed, number))
            made = await _round(session, review, number, seeded, manner)
            yield made
            expected = session.weight_version
            if not made.needed:
                continue
            if made.revision is None or not made.revision.outcome.has_text:
                return
            review = replace(review, response=made.revision.generation.text)

    async def assess(
        self,
        principles: Sequence[Principle],
        conversation: Conversation,
        response: str,
        *,
        min_option_mass: float = 0.0,
        weight_version: str | None = None,
    ) -> Assessed:
        """How probable it is, by each principle, that there is something to criticise.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.score``.
        """
        session = Session(self._engine, weight_version=weight_version)
        found = await assess(
            session, principles, conversation, response, min_option_mass=min_option_mass
        )
        known = [one.probability for one in found if one.probability is not None]
        return Assessed(
            probability=max(known, default=None),
            no_verdict=None if known else NoVerdict.NO_PRINCIPLE,
            principles=found,
            weight_version=session.weight_version,
            usage=session.usage,
            timing=session.timing,
        )


def draw_rounds(principles: Sequence[Principle], rounds: int, seed: int) -> tuple[Principle, ...]:
    """A principle for each round, drawn anew and independently, with odds by weight."""
    return tuple(
        draw(principles, 1, derive_seed(seed, number))[0] for number in range(1, rounds + 1)
    )


async def _round(
    session: Session, review: Review, number: int, sampling: Sampling, manner: Manner
) -> Round:
    assessment, needed = await _assessed(session, review, manner)
    answers: tuple[Answer, ...] = ()
    critique = revision = None
    if needed:
        if not manner.skip_critique:
            seeded = replace(sampling, seed=derive_seed(sampling.seed, "critique"))
            answers, critique = await _critique(session, review, seeded)
        revision = await _revision(session, review, answers, critique, sampling)
    return Round(
        number=number,
        principle=review.principle,
        assessment=assessment,
        answers=answers,
        critique=critique,
        revision=revision,
        needed=needed,
        weight_version=session.weight_version,
        usage=session.usage,
        timing=session.timing,
    )


async def _assessed(
    session: Session, review: Review, manner: Manner
) -> tuple[Assessment | None, bool]:
    """What the critic makes of the response by the round's principle; is the round needed?"""
    if manner.not_needed_below is None:
        return None, True
    (found,) = await assess(
        session,
        [review.principle],
        review.conversation,
        review.response,
        min_option_mass=manner.min_option_mass,
    )
    return found, found.probability is None or found.probability >= manner.not_needed_below


async def _critique(
    session: Session, review: Review, sampling: Sampling
) -> tuple[tuple[Answer, ...], Text]:
    """The answers to the principle's questions, one turn each, and the critique after them."""
    answers: list[Answer] = []
    for number, question in enumerate(review.questions, start=1):
        seeded = replace(sampling, seed=derive_seed(sampling.seed, "question", number))
        text = await _text(session, review.question_prompt(_heeded(answers)), seeded)
        answers.append(Answer(number=number, question=question, text=text))
        if text.outcome is Outcome.ABORTED:
            unbegun = replace(text.generation, text="", tokens=())
            return tuple(answers), replace(text, generation=unbegun, seed=sampling.seed)
    return tuple(answers), await _text(session, review.critique_prompt(_heeded(answers)), sampling)


async def _revision(
    session: Session,
    review: Review,
    answers: Sequence[Answer],
    critique: Text | None,
    sampling: Sampling,
) -> Text | None:
    """None after a critique that was aborted."""
    if critique is not None and critique.outcome is Outcome.ABORTED:
        return None
    heeded = None
    if critique is not None and critique.outcome.has_text:
        heeded = critique.generation.text
    prompt = review.revision_prompt(heeded, _heeded(answers))
    seeded = replace(sampling, seed=derive_seed(sampling.seed, "revision"))
    return await _text(session, prompt, seeded)


def _heeded(answers: Sequence[Answer]) -> list[str]:
    return [answer.heeded for answer in answers]


def _made(session: Session, text: Text, answers: tuple[Answer, ...] = ()) -> Made:
    return Made(
        text=text,
        answers=answers,
        weight_version=session.weight_version,
        usage=session.usage,
        timing=session.timing,
    )


async def _text(session: Session, prompt: Conversation, sampling: Sampling) -> Text:
    generation = await session.generate(prompt, sampling)
    return Text(generation=generation, outcome=Outcome.of(generation), seed=sampling.seed)
