"""How a principle becomes a prompt: pure functions from text to conversations.

Every prompt is prefix-first: exemplars (the same for a whole constitution; then those of a
principle, if it has its own), then the conversation and the responses, then the principle. Calls
that differ only in the principle share all that comes before it, so that prefix caches work. A
critique prompt extends those of its questions, and a revision prompt its critique prompt.

A text that holds a line such as "Assistant: ..." cannot pass for a turn, nor for a response or a
request: such lines of conversations and responses are shown with ">" before them.

No system message is made, since some chat templates refuse one; a conversation's own system
message is shown inside the transcript. Knows nothing of tokens, models or gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from solon.chat import Conversation, Message
from solon.constitution.types import (
    AbsoluteQuestion,
    ComparisonExemplar,
    Constitution,
    Principle,
)

OPTION_A = "(A)"
OPTION_B = "(B)"

_SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
_REVIEW = "Review the last response of the assistant in this conversation."
_ANYTHING = "Yes: there is something to criticise. No: there is nothing."
_REVISION_ONLY = "Write only the revised response."
_COMPARE = "Compare two responses to the last message of this conversation."
_ANSWER_ONLY = "Answer only (A) or (B)."
# those that are quoted already get one more, so that no two texts are shown alike
_HEADING = re.compile(
    r"(?<=\n)(?=>*(?:System:|Human:|Assistant:|\(A\)|\(B\)|Question \d+:|Critique request:"
    r"|Revision request:))"
)
_REASON_FIRST = "Reason step by step about which is better. Do not answer yet."


def transcript(conversation: Conversation) -> str:
    """The conversation as plain text, a paragraph a turn: ``Human: ...``, ``Assistant: ...``."""
    return "\n\n".join(f"{_SPEAKERS[m.role]}: {_said(m.content)}" for m in conversation.messages)


def question_prompt(
    constitution: Constitution,
    principle: Principle,
    conversation: Conversation,
    response: str,
    answers: Sequence[str] = (),
) -> Conversation:
    """Ask the next of the principle's questions about ``response``. The reply is its answer.

    A critique in steps, each a turn that extends the one before it: what was answered is kept
    apart by question, and nothing has to be found in a text.

    Args:
        constitution: Gives the exemplars.
        principle: Has more questions than there are answers.
        conversation: What was asked; ends with the user.
        response: What is under review.
        answers: To the questions before, in their order; an empty one is left out, with its
            question.
    """
    number = len(answers) + 1
    turns, head = _steps(principle, _reviewed(conversation, response), answers)
    asked = f"{head}Question {number}: {principle.questions[number - 1]}"
    shown = _critique_exemplar_turns(constitution, principle)
    return Conversation((*shown, *turns, Message("user", asked)), len(shown))


def critique_prompt(
    constitution: Constitution,
    principle: Principle,
    conversation: Conversation,
    response: str,
    answers: Sequence[str] = (),
    *,
    skip_questions: bool = False,
) -> Conversation:
    """Ask for a critique of ``response`` (paper, section 3.1). The reply is the critique.

    Args:
        constitution: Gives the exemplars.
        principle: Has a critique request.
        conversation: What was asked; ends with the user.
        response: What is under review.
        answers: To the principle's questions, as in ``question_prompt``; the critique follows.
        skip_questions: Show exemplars without the answers to their questions.

    Raises:
        ValueError: The principle has no critique request.
    """
    shown = _critique_exemplar_turns(constitution, principle, skip_questions=skip_questions)
    turns, head = _steps(principle, _reviewed(conversation, response), answers)
    asked = head + _critique_request(principle)
    return Conversation((*shown, *turns, Message("user", asked)), len(shown))


def revision_prompt(
    constitution: Constitution,
    principle: Principle,
    conversation: Conversation,
    response: str,
    critique: str | None,
    answers: Sequence[str] = (),
    *,
    skip_questions: bool = False,
) -> Conversation:
    """Ask for a revision. The reply is the revised response.

    With a critique, the prompt is the critique prompt (of the same ``answers`` and
    ``skip_questions``), the critique and one more turn. Without (``None``: the paper's
    skip-critique mode, section 3.5), the revision request follows the conversation at once.

    Raises:
        ValueError: The principle has no revision request.
    """
    if critique is None:
        shown = _critique_exemplar_turns(constitution, principle, skip_critique=True)
        asked = _reviewed(conversation, response) + _revision_request(principle)
        return Conversation((*shown, Message("user", asked)), len(shown))
    before = critique_prompt(
        constitution, principle, conversation, response, answers, skip_questions=skip_questions
    )
    return before.then(
        Message("assistant", critique), Message("user", _revision_request(principle))
    )


def comparison_prompt(
    constitution: Constitution,
    principle: Principle,
    conversation: Conversation,
    response_a: str,
    response_b: str,
) -> Conversation:
    """Ask which response is better (paper, section 4.1). The reply is ``(A)`` or ``(B)``.

    Raises:
        ValueError: The principle has no comparison instruction.
    """
    turns: list[Message] = []
    for e in constitution.comparison_exemplars:
        asked = _comparison_question(
            constitution.principle(e.principle), e.conversation, e.response_a, e.response_b
        )
        turns += [Message("user", asked), Message("assistant", _answer(e))]
    asked = _comparison_question(principle, conversation, response_a, response_b)
    return Conversation((*turns, Message("user", asked)), len(turns))


def reasoning_prompt(
    principle: Principle, conversation: Conversation, response_a: str, response_b: str
) -> Conversation:
    """Ask for the reasoning before a comparison (paper, section 4.1). The reply is a chain.

    No exemplars: those of a constitution answer at once, which would teach the judge to.

    Raises:
        ValueError: The principle has no comparison instruction.
    """
    return Conversation.from_user(
        _comparison_question(principle, conversation, response_a, response_b, _REASON_FIRST)
    )


def verdict_prompt(reasoning: Conversation, chain: str) -> Conversation:
    """Ask for the answer that a chain of thought leads to. The reply is ``(A)`` or ``(B)``."""
    return reasoning.then(Message("assistant", chain), Message("user", _ANSWER_ONLY))


def score_prompt(principle: Principle, conversation: Conversation, response: str) -> Conversation:
    """Ask the absolute question about one response. The reply is one of its answers.

    Raises:
        ValueError: The principle has no absolute question.
    """
    question = principle.absolute_question
    if question is None:
        raise ValueError(f"principle {principle.id!r} has no absolute_question")
    return _question_prompt(question, conversation, response)


def assessment_question(principle: Principle) -> AbsoluteQuestion:
    """What tells whether there is something to criticise in a response by a principle.

    The principle's absolute question, or, where it has none, whether there is an answer to its
    critique request. The less an answer is worth, the more there is to criticise.

    Raises:
        ValueError: The principle has neither.
    """
    if principle.absolute_question is not None:
        return principle.absolute_question
    return AbsoluteQuestion(text=_critique_request(principle), answers={"Yes": 0.0, "No": 1.0})


def assessment_prompt(
    principle: Principle, conversation: Conversation, response: str
) -> Conversation:
    """Ask whether there is something to criticise. The reply is one of the question's answers.

    No exemplars: those of a constitution criticise at once, which would teach the critic to.

    Raises:
        ValueError: The principle has neither an absolute question nor a critique request.
    """
    # a request is no question: what Yes and No mean is said, once for all principles, at the top
    head = _REVIEW if principle.absolute_question is not None else f"{_REVIEW}\n{_ANYTHING}"
    return _question_prompt(assessment_question(principle), conversation, response, head)


def _question_prompt(
    question: AbsoluteQuestion, conversation: Conversation, response: str, head: str = _REVIEW
) -> Conversation:
    answers = ", ".join(question.answers)
    reviewed = _reviewed(conversation, response, head)
    return Conversation.from_user(f"{reviewed}{question.text}\nAnswer only one of: {answers}.")


def _said(text: str) -> str:
    """The text, with every line quoted that looks like one of the prompt's own."""
    return _HEADING.sub(">", text)


def _reviewed(conversation: Conversation, response: str, head: str = _REVIEW) -> str:
    shown = transcript(conversation.then(Message("assistant", response)))
    return f"{head}\n\n{shown}\n\n"


def _critique_request(principle: Principle) -> str:
    if principle.critique_request is None:
        raise ValueError(f"principle {principle.id!r} has no critique_request")
    return f"Critique request: {principle.critique_request}"


def _revision_request(principle: Principle) -> str:
    if principle.revision_request is None:
        raise ValueError(f"principle {principle.id!r} has no revision_request")
    return f"Revision request: {principle.revision_request}\n{_REVISION_ONLY}"


def _steps(
    principle: Principle, reviewed: str, answers: Sequence[str]
) -> tuple[list[Message], str]:
    """The answered questions as turns, and what the next turn begins with."""
    turns: list[Message] = []
    head = reviewed
    for number, answer in enumerate(answers, start=1):
        if answer.strip():
            asked = f"{head}Question {number}: {principle.questions[number - 1]}"
            turns += [Message("user", asked), Message("assistant", answer)]
            head = ""
    return turns, head


def _critique_exemplar_turns(
    constitution: Constitution,
    principle: Principle,
    *,
    skip_critique: bool = False,
    skip_questions: bool = False,
) -> Sequence[Message]:
    """The constitution's, which all its prompts share, then those of the principle alone."""
    turns: list[Message] = []
    for e in (*constitution.critique_exemplars, *principle.exemplars):
        of = principle if e.principle == principle.id else constitution.principle(e.principle)
        reviewed = _reviewed(e.conversation, e.response)
        if skip_critique:
            turns.append(Message("user", reviewed + _revision_request(of)))
        else:
            steps, head = _steps(of, reviewed, () if skip_questions else e.answers)
            turns += steps
            turns.append(Message("user", head + _critique_request(of)))
            turns.append(Message("assistant", e.critique))
            turns.append(Message("user", _revision_request(of)))
        turns.append(Message("assistant", e.revision))
    return turns


def _comparison_question(
    principle: Principle,
    conversation: Conversation,
    response_a: str,
    response_b: str,
    ending: str = _ANSWER_ONLY,
) -> str:
    if principle.comparison_instruction is None:
        raise ValueError(f"principle {principle.id!r} has no comparison_instruction")
    return (
        f"{_COMPARE}\n\n{transcript(conversation)}\n\n"
        f"{OPTION_A} {_said(response_a)}\n\n{OPTION_B} {_said(response_b)}\n\n"
        f"{principle.comparison_instruction}\n{ending}"
    )


def _answer(exemplar: ComparisonExemplar) -> str:
    return OPTION_A if exemplar.answer == "A" else OPTION_B
