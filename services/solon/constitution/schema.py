"""The form of a constitution file: which keys there are, and the rule of each.

The bounds are those of the contract (``protos/solon/v1/common.proto``), so that whatever loads
from a file may also travel inside a request. Knows nothing of files (see ``loader``), of good
taste (see ``linter``), of prompts or gRPC.
"""

from __future__ import annotations

import re
from typing import Literal

import yaml

from solon.chat import Conversation, Message, Role
from solon.constitution.errors import Problem
from solon.constitution.nodes import Place
from solon.constitution.types import (
    AbsoluteQuestion,
    ComparisonExemplar,
    Constitution,
    CritiqueExemplar,
    Principle,
    Provenance,
)

_ID = re.compile(r"[a-z0-9-]{1,64}")
_NAME = 64
_REQUEST = 16_384
_TEXT = 262_144
_EXEMPLAR = ("conversation", "response", "critique", "revision")
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


def read(root: yaml.Node) -> tuple[Constitution, list[Problem]]:
    """Read a document. The constitution may be used only if the list of problems is empty."""
    problems: list[Problem] = []
    document = Place(root, problems)
    found = document.fields(
        ("name", "version", "principles"), ("description", "provenance", "exemplars")
    )
    principles = _principles(found.get("principles"))
    critiques, comparisons = _exemplars(found.get("exemplars"), principles)
    constitution = Constitution(
        name=found["name"].label(_NAME) if "name" in found else "",
        version=found["version"].label(_NAME) if "version" in found else "",
        description=_prose(found, "description") or "",
        provenance=_provenance(found.get("provenance")),
        principles=tuple(principles.values()),
        critique_exemplars=critiques,
        comparison_exemplars=comparisons,
    )
    return constitution, problems


def _provenance(place: Place | None) -> Provenance:
    if place is None:
        return Provenance()
    found = place.fields((), ("author", "source", "license"))
    return Provenance(
        author=_prose(found, "author"),
        source=_prose(found, "source"),
        license=_prose(found, "license"),
    )


def _principles(place: Place | None) -> dict[str, Principle]:
    principles: dict[str, Principle] = {}
    first: dict[str, str] = {}
    for item in place.items(1, 256) if place else ():
        principle = _principle(item)
        if principle.id in first:
            item.report(
                f"{principle.id!r} is also the id of {first[principle.id]}: rename one",
                under="id",
            )
        elif principle.id:
            first[principle.id] = item.key
            principles[principle.id] = principle
    return principles


def _principle(place: Place) -> Principle:
    found = place.fields(
        ("id",),
        (
            "weight",
            "tags",
            "critique_request",
            "revision_request",
            "comparison_instruction",
            "absolute_question",
            "priority",
            "questions",
            "exemplars",
            "provenance",
        ),
    )
    _check_complete(place, found)
    question = found.get("absolute_question")
    name = _identifier(found["id"]) if "id" in found else ""
    questions = _questions(found.get("questions"))
    return Principle(
        id=name,
        priority=found["priority"].whole(1, 1_000) if "priority" in found else None,
        questions=questions,
        exemplars=_own_exemplars(found.get("exemplars"), name, questions),
        weight=_weight(found["weight"]) if "weight" in found else 1.0,
        tags=_tags(found.get("tags")),
        critique_request=_prose(found, "critique_request", _REQUEST),
        revision_request=_prose(found, "revision_request", _REQUEST),
        comparison_instruction=_prose(found, "comparison_instruction", _REQUEST),
        absolute_question=_question(question) if question else None,
        provenance=_prose(found, "provenance"),
    )


def _check_complete(place: Place, found: dict[str, Place]) -> None:
    for one, other in (
        ("critique_request", "revision_request"),
        ("revision_request", "critique_request"),
    ):
        if one in found and other not in found:
            place.report(f"required, since {one} is given: the two are a pair", under=other)
    for name in ("questions", "exemplars"):
        if name in found and "critique_request" not in found:
            found[name].report("only a principle with a critique_request has them: add one")
    uses = {"critique_request", "revision_request", "comparison_instruction", "absolute_question"}
    if "id" in found and not uses & found.keys():
        place.report(
            "says nothing to anyone: add critique_request and revision_request (for the critic), "
            "comparison_instruction or absolute_question (for the judge)"
        )


def _identifier(place: Place) -> str:
    text = place.label(_NAME)
    if text and not _ID.fullmatch(text):
        place.report(f"expected 1 to 64 of a-z, 0-9 and '-', got {text!r}: rename it")
    return text


def _weight(place: Place) -> float:
    before = place.reported
    weight = place.number()
    if weight <= 0 and place.reported == before:
        place.report(
            f"expected a number above 0, got {place.shown}: to leave a principle out, remove it"
        )
    return weight


def _tags(place: Place | None) -> tuple[str, ...]:
    return tuple(item.label(_NAME) for item in place.items(0, 32)) if place else ()


def _question(place: Place) -> AbsoluteQuestion:
    found = place.fields(("text", "answers"), ())
    answers = _answers(found["answers"]) if "answers" in found else {}
    return AbsoluteQuestion(text=_prose(found, "text", _REQUEST) or "", answers=answers)


def _questions(place: Place | None) -> tuple[str, ...]:
    return tuple(item.prose(_REQUEST) for item in place.items(0, 16)) if place else ()


def _answers(place: Place) -> dict[str, float]:
    before = place.reported
    answers: dict[str, float] = {}
    for text, value in place.entries():
        answers[value.bounded(text, 64)] = value.number()
    if place.reported == before:
        if not 2 <= len(answers) <= 32:
            place.report(
                f"expected 2 to 32 answers with their values, got {len(answers)}: "
                'for example {"Yes": 0.0, "No": 1.0}'
            )
        elif len(set(answers.values())) < 2:
            place.report("expected at least two different values: else every response scores alike")
    return answers


def _exemplars(
    place: Place | None, principles: dict[str, Principle]
) -> tuple[tuple[CritiqueExemplar, ...], tuple[ComparisonExemplar, ...]]:
    if place is None:
        return (), ()
    found = place.fields((), ("critiques", "comparisons"))
    critiques = found["critiques"].items(0, 32) if "critiques" in found else []
    comparisons = found["comparisons"].items(0, 32) if "comparisons" in found else []
    return (
        tuple(_critique_exemplar(item, principles) for item in critiques),
        tuple(_comparison_exemplar(item, principles) for item in comparisons),
    )


def _own_exemplars(
    place: Place | None, principle: str, questions: tuple[str, ...]
) -> tuple[CritiqueExemplar, ...]:
    """Those that stand in a principle, and are of it without saying so."""
    made = []
    for item in place.items(0, 32) if place else ():
        found = item.fields(_EXEMPLAR, ("answers",))
        made.append(_exemplar(found, principle, questions))
    return tuple(made)


def _critique_exemplar(place: Place, principles: dict[str, Principle]) -> CritiqueExemplar:
    found = place.fields((*_EXEMPLAR, "principle"), ("answers",))
    name = _reference(found.get("principle"), principles, "critique_request")
    return _exemplar(found, name, principles[name].questions if name in principles else ())


def _exemplar(
    found: dict[str, Place], principle: str, questions: tuple[str, ...]
) -> CritiqueExemplar:
    return CritiqueExemplar(
        conversation=_conversation(found.get("conversation")),
        response=_prose(found, "response") or "",
        principle=principle,
        answers=_given_answers(found.get("answers"), principle, questions),
        critique=_prose(found, "critique") or "",
        revision=_prose(found, "revision") or "",
    )


def _given_answers(
    place: Place | None, principle: str, questions: tuple[str, ...]
) -> tuple[str, ...]:
    if place is None:
        return ()
    answers = tuple(item.prose(_TEXT) for item in place.items(0, 16))
    if answers and len(answers) != len(questions):
        place.report(
            f"expected one answer to each of the {len(questions)} questions of principle "
            f"{principle!r}, or no answers at all, got {len(answers)}"
        )
    return answers


def _comparison_exemplar(place: Place, principles: dict[str, Principle]) -> ComparisonExemplar:
    found = place.fields(("conversation", "response_a", "response_b", "principle", "answer"), ())
    return ComparisonExemplar(
        conversation=_conversation(found.get("conversation")),
        response_a=_prose(found, "response_a") or "",
        response_b=_prose(found, "response_b") or "",
        principle=_reference(found.get("principle"), principles, "comparison_instruction"),
        answer=_answer(found.get("answer")),
    )


def _answer(place: Place | None) -> Literal["A", "B"]:
    text = place.label(_NAME) if place else "A"
    if text == "B":
        return "B"
    if text != "A" and place:
        place.report(f"expected A or B, got {text!r}")
    return "A"


def _reference(place: Place | None, principles: dict[str, Principle], needed: str) -> str:
    if place is None:
        return ""
    text = place.label(_NAME)
    if text and text not in principles:
        known = ", ".join(principles) or "none"
        place.report(f"expected the id of a principle of this file, got {text!r}; it has {known}")
    elif text and getattr(principles[text], needed) is None:
        place.report(f"principle {text!r} has no {needed}: add one, or name another principle")
    return text


def _conversation(place: Place | None) -> Conversation:
    nothing = Conversation.from_user("")
    if place is None:
        return nothing
    if place.is_text:
        return Conversation.from_user(place.prose(_TEXT))
    before = place.reported
    messages = tuple(_message(item) for item in place.items(1, 512))
    if place.reported != before:
        return nothing
    try:
        conversation = Conversation(messages)
    except ValueError as error:  # turns out of order: the text says which
        place.report(str(error))
        return nothing
    if messages[-1].role != "user":
        place.report(
            f"expected a conversation that ends with the user, got {messages[-1].role!r} last: "
            "the assistant's reply is the response"
        )
    return conversation


def _message(place: Place) -> Message:
    found = place.fields(("role", "content"), ())
    content = _prose(found, "content") or ""
    if "role" not in found:
        return Message("user", content)
    text = found["role"].label(_NAME)
    for role in _ROLES:
        if text == role:
            return Message(role, content)
    found["role"].report(f"expected one of {', '.join(_ROLES)}, got {text!r}")
    return Message("user", content)


def _prose(found: dict[str, Place], name: str, maximum: int = _TEXT) -> str | None:
    return found[name].prose(maximum) if name in found else None
