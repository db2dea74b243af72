"""The critic: critiques a response by a principle and revises it, once or in a chain.

Method: Bai et al. 2022 (arXiv 2212.08073), section 3.1; without critiques, section 3.5. Every text
that the model makes comes with its ``Outcome``: an empty or aborted one is said to be so, and is
never passed on as a response. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from solon.chat import Conversation
from solon.constitution import Constitution, Principle, derive_seed, draw
from solon.constitution.prompts import critique_prompt, revision_prompt
from solon.critic.assessing import Assessed, Assessment, assess
from solon.engine.base import Engine, FinishReason, Generation, Sampling, Timing, Usage
from solon.serving.readings import NoVerdict
from solon.serving.session import Session


class Outcome(Enum):
    """What became of a critique or a revision."""

    MADE = "made"
    """There is a text."""
    EMPTY = "empty"
    """The model said nothing but white space."""
    TRUNCATED = "truncated"
    """The text was cut at max_tokens."""
    ABORTED = "aborted"
    """Generation was paused with ``PauseMode.ABORT``."""
    NOT_NEEDED = "not_needed"
    """The critic found too little to criticise: the response stands as it is."""

    @classmethod
    def of(cls, generation: Generation) -> Outcome:
        """What became of a generation."""
        if generation.finish_reason is FinishReason.ABORT:
            return cls.ABORTED
        if not generation.text.strip():
            return cls.EMPTY
        return cls.TRUNCATED if generation.finish_reason is FinishReason.LENGTH else cls.MADE

    @property
    def has_text(self) -> bool:
        """Whether the text can be built upon."""
        return self in (Outcome.MADE, Outcome.TRUNCATED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A response under review by a principle."""

    constitution: Constitution
    """Gives the exemplars that go first."""
    principle: Principle
    """Has a critique and a revision request."""
    conversation: Conversation
    """Ends with the user."""
    response: str

    def critique_prompt(self) -> Conversation:
        """Asks for the critique."""
        return critique_prompt(self.constitution, self.principle, self.conversation, self.response)

    def revision_prompt(self, critique: str | None) -> Conversation:
        """Asks for the revision, in the light of a critique or (None) without one."""
        return revision_prompt(
            self.constitution, self.principle, self.conversation, self.response, critique
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A critique or a revision, and the seed that repeats it."""

    generation: Generation
    outcome: Outcome
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One text and what it cost."""

    text: Text
    weight_version: str
    usage: Usage
    timing: Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One critique and revision of a chain."""

    number: int
    """1 for the first."""
    principle: Principle
    assessment: Assessment | None
    """Of the response before this round; None unless rounds may be found not to be needed."""
    critique: Text | None
    """None in skip-critique mode, and where the round was not needed."""
    revision: Text | None
    """None where the critique was aborted, so that no revision was begun, and where the round was
    not needed."""
    needed: bool = True
    """Whether the round was made."""
    weight_version: str
    usage: Usage
    """Of this round alone."""
    timing: Timing
    """Of this round alone."""

    @property
    def revision_outcome(self) -> Outcome:
        """What became of the revision."""
        if not self.needed:
            return Outcome.NOT_NEEDED
        return Outcome.ABORTED if self.revision is None else self.revision.outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a chain goes."""

    skip_critique: bool = False
    """Revise without critiques (section 3.5 of the paper)."""
    not_needed_below: float | None = None
    """Probability of there being something to criticise below which a round is not made, 0 to 1.
    None: every round is made, and nothing is assessed."""
    min_option_mass: float = 0.0
    """Least probability that the answers to an assessment must hold together. 0 to 1; 0 is off."""


PAPER = Manner()
"""Every round is made, with a critique (section 3.1 of the paper)."""


class Critic:
    """A model that assesses, critiques and revises."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: runs the model."""
        self._engine = engine

    async def critique(
        self, review: Review, sampling: Sampling, *, weight_version: str | None = None
    ) -> Made:
        """Critique one response.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.generate``.
        """
        return await self._made(review.critique_prompt(), sampling, weight_version)

    async def revise(
        self,
        review: Review,
        critique: str | None,
        sampling: Sampling,
        *,
        weight_version: str | None = None,
    ) -> Made:
        """Revise one response, in the light of a critique or (None) without.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.generate``.
        """
        return await self._made(review.revision_prompt(critique), sampling, weight_version)

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

    async def _made(
        self, prompt: Conversation, sampling: Sampling, weight_version: str | None
    ) -> Made:
        session = Session(self._engine, weight_version=weight_version)
        text = await _text(session, prompt, sampling)
        return Made(
            text=text,
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
    critique = revision = None
    if needed:
        critique, revision = await _made(
            session, review, sampling, skip_critique=manner.skip_critique
        )
    return Round(
        number=number,
        principle=review.principle,
        assessment=assessment,
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


async def _made(
    session: Session, review: Review, sampling: Sampling, *, skip_critique: bool
) -> tuple[Text | None, Text | None]:
    critique = None
    heeded = None
    if not skip_critique:
        critique_sampling = replace(sampling, seed=derive_seed(sampling.seed, "critique"))
        critique = await _text(session, review.critique_prompt(), critique_sampling)
        if critique.outcome is Outcome.ABORTED:
            return critique, None
        if critique.outcome.has_text:
            heeded = critique.generation.text
    revision_sampling = replace(sampling, seed=derive_seed(sampling.seed, "revision"))
    return critique, await _text(session, review.revision_prompt(heeded), revision_sampling)


async def _text(session: Session, prompt: Conversation, sampling: Sampling) -> Text:
    generation = await session.generate(prompt, sampling)
    return Text(generation=generation, outcome=Outcome.of(generation), seed=sampling.seed)
