"""A constitution as a message that travels with a request.

For services that were not started with the run's constitution. Knows nothing of files.
"""

from __future__ import annotations

from solon.chat import Conversation
from solon.constitution.types import (
    AbsoluteQuestion,
    ComparisonExemplar,
    Constitution,
    CritiqueExemplar,
    Principle,
)
from solon.v1 import common_pb2

_ROLES = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}
_OPTIONS = {"A": common_pb2.OPTION_A, "B": common_pb2.OPTION_B}


def by_name(constitution: Constitution) -> common_pb2.ConstitutionSource:
    """By name, for a service that has it; the digest makes sure that it is the same."""
    return common_pb2.ConstitutionSource(name=constitution.name, digest=constitution.digest)


def inline(constitution: Constitution) -> common_pb2.ConstitutionSource:
    """As a whole, for a service that does not have it."""
    message = common_pb2.Constitution(
        name=constitution.name,
        principles=[_principle(p) for p in constitution.principles],
        critique_exemplars=[_critique_exemplar(e) for e in constitution.critique_exemplars],
        comparison_exemplars=[_comparison_exemplar(e) for e in constitution.comparison_exemplars],
    )
    return common_pb2.ConstitutionSource(inline=message, digest=constitution.digest)


def _principle(principle: Principle) -> common_pb2.Principle:
    question = principle.absolute_question
    return common_pb2.Principle(
        id=principle.id,
        weight=principle.weight,
        tags=principle.tags,
        critique_request=principle.critique_request,
        revision_request=principle.revision_request,
        comparison_instruction=principle.comparison_instruction,
        absolute_question=None if question is None else _question(question),
        priority=principle.priority,
        questions=principle.questions,
        exemplars=[_critique_exemplar(exemplar) for exemplar in principle.exemplars],
    )


def _question(question: AbsoluteQuestion) -> common_pb2.AbsoluteQuestion:
    return common_pb2.AbsoluteQuestion(
        text=question.text,
        answers=[
            common_pb2.AbsoluteQuestion.Answer(text=text, value=value)
            for text, value in question.answers.items()
        ],
    )


def _critique_exemplar(exemplar: CritiqueExemplar) -> common_pb2.CritiqueExemplar:
    return common_pb2.CritiqueExemplar(
        conversation=_conversation(exemplar.conversation),
        response=exemplar.response,
        principle_id=exemplar.principle,
        answers=exemplar.answers,
        critique=exemplar.critique,
        revision=exemplar.revision,
    )


def _comparison_exemplar(exemplar: ComparisonExemplar) -> common_pb2.ComparisonExemplar:
    return common_pb2.ComparisonExemplar(
        conversation=_conversation(exemplar.conversation),
        response_a=exemplar.response_a,
        response_b=exemplar.response_b,
        principle_id=exemplar.principle,
        answer=_OPTIONS[exemplar.answer],
    )


def _conversation(conversation: Conversation) -> common_pb2.Conversation:
    return common_pb2.Conversation(
        messages=[
            common_pb2.Message(role=_ROLES[turn.role], content=turn.content)
            for turn in conversation.messages
        ]
    )
