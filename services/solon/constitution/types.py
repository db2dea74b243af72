"""What a constitution is, once it has been read: principles, exemplars, a digest.

Knows nothing of YAML (see ``loader``), of prompts (see ``prompts``), gRPC or torch.

The paper (Bai et al. 2022, arXiv 2212.08073, sections 3.1 and 4.1) uses two sets of principles:
pairs of critique and revision requests for the supervised phase, comparison instructions for the
RL phase. Here a principle may carry either or both; ``Constitution.for_revision`` and
``Constitution.for_comparison`` select.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from solon.chat import Conversation

_LATER = ("priority", "questions", "exemplars", "answers", "shared")
"""Fields that constitutions did not have at first: where they hold nothing, digests are as then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbsoluteQuestion:
    """A question about one response whose answer is one of a few fixed texts.

    The score is the expectation of the answers' values under the judge's normalised
    probabilities: yes/no questions and 1-10 scales (RLAIF, arXiv 2309.00267, section 2.4) are
    the same thing.
    """

    text: str
    """The question."""
    answers: Mapping[str, float]
    """Answer text -> value. At least two; a higher value is a better response."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CritiqueExemplar:
    """A worked example of critique and revision, shown before the real one (paper, section 3.1)."""

    conversation: Conversation
    """Ends with the user."""
    response: str
    principle: str
    """Id of the principle whose requests are shown."""
    critique: str
    revision: str
    answers: tuple[str, ...] = ()
    """To the principle's questions: one each, or none at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Principle:
    """One principle. Has critique and revision requests, a comparison instruction, or both."""

    id: str
    """Unique in its constitution: lower-case letters, digits and hyphens."""
    weight: float = 1.0
    """Relative odds of being drawn, and weight in a mean over principles. > 0."""
    tags: tuple[str, ...] = ()
    critique_request: str | None = None
    """Asks the critic what is wrong with a response. Present iff ``revision_request`` is."""
    revision_request: str | None = None
    """Asks for a better response, in the light of the critique."""
    comparison_instruction: str | None = None
    """Asks the judge which of (A) and (B) is better."""
    absolute_question: AbsoluteQuestion | None = None
    """Asks the judge about one response on its own."""
    priority: int | None = None
    """Its place where every principle has its turn: the lowest first. None: after all others."""
    questions: tuple[str, ...] = ()
    """What the critic answers, one after the other, before it writes the critique."""
    exemplars: tuple[CritiqueExemplar, ...] = ()
    """Shown with this principle only, after those of the constitution."""
    provenance: str | None = None
    """Where this principle comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonExemplar:
    """A worked example of a comparison, with its own principle (paper, section 4.1)."""

    conversation: Conversation
    """Ends with the user."""
    response_a: str
    response_b: str
    principle: str
    """Id of the principle whose instruction is shown."""
    answer: Literal["A", "B"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Who wrote a constitution, from what, under which licence."""

    author: str | None = None
    source: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)  # without slots: the digest is kept
class Constitution:
    """A named set of principles with the exemplars that go before every prompt."""

    name: str
    version: str
    description: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    principles: tuple[Principle, ...]
    critique_exemplars: tuple[CritiqueExemplar, ...] = ()
    comparison_exemplars: tuple[ComparisonExemplar, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that can change a result: principles and exemplars.

        Name, version, description and provenance are left out: renaming changes no label. Worked
        out once, since services tell it with every answer.
        """
        content = {
            "principles": [asdict(p, dict_factory=_content) for p in self.principles],
            "critique_exemplars": [
                asdict(e, dict_factory=_content) for e in self.critique_exemplars
            ],
            "comparison_exemplars": [
                asdict(e, dict_factory=_content) for e in self.comparison_exemplars
            ],
        }
        # the answers of a question keep their order, which its prompt shows
        canonical = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def for_revision(self) -> tuple[Principle, ...]:
        """The principles that can guide a critique and a revision."""
        return tuple(p for p in self.principles if p.revision_request is not None)

    @property
    def for_comparison(self) -> tuple[Principle, ...]:
        """The principles that can guide a comparison."""
        return tuple(p for p in self.principles if p.comparison_instruction is not None)

    @property
    def for_scoring(self) -> tuple[Principle, ...]:
        """The principles that can guide an absolute score."""
        return tuple(p for p in self.principles if p.absolute_question is not None)

    @property
    def for_assessment(self) -> tuple[Principle, ...]:
        """The principles by which it can be asked whether there is something to criticise."""
        return tuple(
            p for p in self.principles if p.critique_request or p.absolute_question is not None
        )

    def principle(self, principle_id: str) -> Principle:
        """The principle with this id.

        Raises:
            KeyError: There is none; the message lists those that exist.
        """
        for candidate in self.principles:
            if candidate.id == principle_id:
                return candidate
        known = ", ".join(p.id for p in self.principles)
        raise KeyError(
            f"principle {principle_id!r} is not in constitution {self.name!r}: it has {known}"
        )


def _content(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """What of a principle, an exemplar or a part of them can change a result."""
    return {
        key: value for key, value in fields if key != "provenance" and (value or key not in _LATER)
    }
