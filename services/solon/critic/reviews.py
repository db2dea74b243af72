"""What is reviewed, what is made of it, and how a chain goes. Knows nothing of models or gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from solon.chat import Conversation
from solon.constitution import Constitution, Principle
from solon.constitution.prompts import critique_prompt, question_prompt, revision_prompt
from solon.critic.assessing import Assessment
from solon.engine.base import FinishReason, Generation, Timing, Usage


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
    skip_questions: bool = False
    """Critique at once, even if the principle has questions."""

    @property
    def questions(self) -> tuple[str, ...]:
        """What is answered before the critique."""
        return () if self.skip_questions else self.principle.questions

    def question_prompt(self, answers: Sequence[str]) -> Conversation:
        """Asks the question after those that were answered."""
        return question_prompt(
            self.constitution, self.principle, self.conversation, self.response, answers
        )

    def critique_prompt(self, answers: Sequence[str] = ()) -> Conversation:
        """Asks for the critique, in the light of the answers."""
        return critique_prompt(
            self.constitution,
            self.principle,
            self.conversation,
            self.response,
            answers,
            skip_questions=self.skip_questions,
        )

    def revision_prompt(self, critique: str | None, answers: Sequence[str] = ()) -> Conversation:
        """Asks for the revision, in the light of answers and critique or (None) without."""
        return revision_prompt(
            self.constitution,
            self.principle,
            self.conversation,
            self.response,
            critique,
            answers,
            skip_questions=self.skip_questions,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A critique or a revision, and the seed that repeats it."""

    generation: Generation
    outcome: Outcome
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the critic answered to one of a principle's questions."""

    number: int
    """1 for the first."""
    question: str
    text: Text

    @property
    def heeded(self) -> str:
        """What the critique rests on; empty where there is no answer."""
        return self.text.generation.text if self.text.outcome.has_text else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One text and what it cost."""

    text: Text
    answers: tuple[Answer, ...] = ()
    """To the principle's questions, if a critique was asked for."""
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
    answers: tuple[Answer, ...] = ()
    """To the principle's questions, before the critique."""
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
