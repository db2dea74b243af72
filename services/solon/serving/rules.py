"""The rule of every field of the contract: the comments of ``protos/solon/v1`` as data.

A test holds this table against those comments, so that neither says what the other does not. What
needs the server's own state (known constitutions, usable principles, the model's context) is
checked where that state is. Knows nothing of calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.message import Message

from solon.serving.errors import InvalidFields
from solon.serving.validation import (
    Above,
    Count,
    Distinct,
    Each,
    FieldRule,
    Finite,
    Length,
    Matches,
    Required,
    RuleBook,
    Specified,
    Within,
)
from solon.v1 import common_pb2, critic_pb2

MOST_ROUNDS = 16
"""Rounds of a chain at most."""
DEFAULT_ROUNDS = 4
"""Rounds of a chain that asks for none (section 3.1 of the paper)."""

_TEXT = Length(1, 262_144)
_REQUEST = Length(0, 16_384)
_DIGEST = Matches(re.compile(r"[0-9a-f]{64}"), "64 lower-case hex digits")
_PRINCIPLE_ID = Matches(re.compile(r"[a-z0-9-]{1,64}"), '1 to 64 of a-z, 0-9 and "-"')
_Issue = Iterator[tuple[str, str]]


def check(message: Message) -> None:
    """Refuse a request that breaks any rule.

    Raises:
        InvalidFields: With every broken field.
    """
    if violations := BOOK.violations(message):
        raise InvalidFields(violations)


class _EndsWithUser:
    def complaint(self, value: common_pb2.Conversation) -> str | None:
        # a missing or misspelt turn is reported on its own
        if value.messages and value.messages[-1].role == common_pb2.ROLE_ASSISTANT:
            return "expected a conversation that ends with the user"
        return None


def _turns_alternate(conversation: common_pb2.Conversation) -> _Issue:
    expected = common_pb2.ROLE_USER
    for index, message in enumerate(conversation.messages):
        if message.role == common_pb2.ROLE_SYSTEM and index == 0:
            continue
        if message.role not in (expected, common_pb2.ROLE_UNSPECIFIED):
            yield (
                f"messages[{index}].role",
                f"expected {common_pb2.Role.Name(expected)}: an optional system message comes "
                "first, then user and assistant alternate, the user first",
            )
            return
        is_user = expected == common_pb2.ROLE_USER
        expected = common_pb2.ROLE_ASSISTANT if is_user else common_pb2.ROLE_USER
    if len(conversation.messages) == 1 and conversation.messages[0].role == common_pb2.ROLE_SYSTEM:
        yield "messages", "expected a turn of the user after the system message"


def _has_source(source: common_pb2.ConstitutionSource) -> _Issue:
    if source.WhichOneof("source") is None:
        yield "", "required: name or inline"


def _answers_differ(question: common_pb2.AbsoluteQuestion) -> _Issue:
    texts = [answer.text for answer in question.answers]
    if len(set(texts)) < len(texts):
        yield "answers", "expected distinct texts"
    if len(texts) >= 2 and len({answer.value for answer in question.answers}) < 2:
        yield "answers", "expected at least two different values"


def _pairs_requests(principle: common_pb2.Principle) -> _Issue:
    if bool(principle.critique_request) != bool(principle.revision_request):
        missing = "revision_request" if principle.critique_request else "critique_request"
        yield missing, "expected both critique_request and revision_request, or neither"


def _is_complete(principle: common_pb2.Principle) -> _Issue:
    yield from _pairs_requests(principle)
    for name in ("questions", "exemplars"):
        if getattr(principle, name) and not principle.critique_request:
            yield name, "expected a critique request: only a principle that has one has these"
    for index, exemplar in enumerate(principle.exemplars):
        if exemplar.principle_id not in ("", principle.id):
            yield f"exemplars[{index}].principle_id", "expected the principle's own id, or none"
        if len(exemplar.answers) not in (0, len(principle.questions)):
            yield f"exemplars[{index}].answers", _answers_text(principle, exemplar)


def _answers_text(principle: common_pb2.Principle, exemplar: common_pb2.CritiqueExemplar) -> str:
    asked = len(principle.questions)
    return f"expected none, or {asked}, one a question, got {len(exemplar.answers)}"


def _answers_are_of_a_critique(request: critic_pb2.ReviseRequest) -> _Issue:
    if request.answers and not request.HasField("critique"):
        yield "answers", "expected a critique: the answers are what it was written in the light of"


def _exemplars_fit(constitution: common_pb2.Constitution) -> _Issue:
    ids = [p.id for p in constitution.principles]
    if len(set(ids)) < len(ids):
        yield "principles", "expected distinct ids"
    revising = {p.id: p for p in constitution.principles if p.critique_request}
    for index, critique in enumerate(constitution.critique_exemplars):
        principle = revising.get(critique.principle_id)
        if principle is None:
            text = "expected a principle of this constitution with a critique request"
            yield f"critique_exemplars[{index}].principle_id", text
        elif len(critique.answers) not in (0, len(principle.questions)):
            yield f"critique_exemplars[{index}].answers", _answers_text(principle, critique)
    comparing = {p.id for p in constitution.principles if p.comparison_instruction}
    for index, comparison in enumerate(constitution.comparison_exemplars):
        if comparison.principle_id not in comparing:
            text = "expected a principle of this constitution with a comparison instruction"
            yield f"comparison_exemplars[{index}].principle_id", text


def _one_principle_a_round(request: critic_pb2.RefineRequest) -> _Issue:
    rounds = request.rounds if request.HasField("rounds") else DEFAULT_ROUNDS
    selection = request.principles
    match selection.WhichOneof("selection"):
        case "ids" if len(selection.ids.ids) != rounds:
            text = f"expected one id a round, {rounds} in all, got {len(selection.ids.ids)}"
            yield "principles.ids.ids", text
        case "sample" if selection.sample.count not in (1, rounds):
            text = f"expected 1 or as many as rounds, {rounds}, got {selection.sample.count}"
            yield "principles.sample.count", text


_ID: dict[str, tuple[FieldRule, ...]] = {"request_id": (Length(0, 128),)}
_ASKS = _ID | {"conversation": (Required(),), "weight_version": (Length(0, 256),)}
_ASKS_BY_PRINCIPLE = _ASKS | {
    "conversation": (Required(), _EndsWithUser()),
    "constitution": (Required(),),
}
_JUDGES = _ASKS_BY_PRINCIPLE | {"min_option_mass": (Within(0, 1),)}

_REQUESTS: dict[str, dict[str, tuple[FieldRule, ...]]] = {
    "GenerateRequest": _ASKS | {"n": (Within(1, 64),)},
    "StreamGenerateRequest": _ASKS,
    "CritiqueRequest": _ASKS_BY_PRINCIPLE | {"response": (_TEXT,)},
    "ReviseRequest": _ASKS_BY_PRINCIPLE
    | {
        "response": (_TEXT,),
        "critique": (_TEXT,),
        "answers": (Count(0, 16), Each(Length(0, 262_144))),
    },
    "RefineRequest": _JUDGES
    | {
        "response": (_TEXT,),
        "rounds": (Within(1, MOST_ROUNDS),),
        "not_needed_below": (Within(0, 1),),
    },
    "AssessRequest": _JUDGES | {"response": (_TEXT,)},
    "CompareRequest": _JUDGES | {"response_a": (_TEXT,), "response_b": (_TEXT,)},
    "ScoreRequest": _JUDGES | {"response": (_TEXT,)},
    "RankRequest": _JUDGES | {"responses": (Count(2, 16), Each(_TEXT))},
    "GetServerInfoRequest": _ID,
    "GetLoadRequest": _ID,
    "UpdateWeightsRequest": _ID
    | {"path": (Length(1, 4_096),), "weight_version": (Length(1, 256),)},
    "PauseGenerationRequest": _ID,
    "ResumeGenerationRequest": _ID,
}

_PARTS: dict[str, dict[str, tuple[FieldRule, ...]]] = {
    "Message": {"role": (Specified(),), "content": (_TEXT,)},
    "Conversation": {"messages": (Count(1, 512),)},
    "SamplingParams": {
        "temperature": (Within(0, 10),),
        "top_p": (Above(0, 1),),
        "top_k": (Within(0, 1_000_000),),
        "max_tokens": (Within(1, 131_072),),
        "stop": (Count(0, 16), Each(Length(1, 256))),
    },
    "ChainOfThought": {"chains": (Within(1, 16),), "clamp": (Within(0, 0.5),)},
    "AbsoluteQuestion": {"text": (Length(1, 16_384),), "answers": (Count(2, 32),)},
    "AbsoluteQuestion.Answer": {"text": (Length(1, 64),), "value": (Finite(),)},
    "Principle": {
        "id": (_PRINCIPLE_ID,),
        "weight": (Above(0),),
        "tags": (Count(0, 32), Each(Length(1, 64))),
        "critique_request": (_REQUEST,),
        "revision_request": (_REQUEST,),
        "comparison_instruction": (_REQUEST,),
        "priority": (Within(1, 1_000),),
        "questions": (Count(0, 16), Each(Length(1, 16_384))),
        "exemplars": (Count(0, 32),),
    },
    "CritiqueExemplar": {
        "answers": (Count(0, 16), Each(_TEXT)),
        "conversation": (Required(), _EndsWithUser()),
        "response": (_TEXT,),
        "critique": (_TEXT,),
        "revision": (_TEXT,),
    },
    "ComparisonExemplar": {
        "conversation": (Required(), _EndsWithUser()),
        "response_a": (_TEXT,),
        "response_b": (_TEXT,),
        "answer": (Specified(),),
    },
    "Constitution": {
        "name": (Length(1, 64),),
        "principles": (Count(1, 256),),
        "critique_exemplars": (Count(0, 32),),
        "comparison_exemplars": (Count(0, 32),),
    },
    "ConstitutionSource": {"name": (Length(1, 64),), "digest": (_DIGEST,)},
    "PrincipleSelection.Ids": {"ids": (Count(1, 256), Distinct(), Each(Length(1, 64)))},
    "PrincipleSelection.Sample": {"count": (Within(1, 256),)},
}

BOOK = RuleBook(
    fields={
        f"solon.v1.{message}.{field}": rules
        for part in (_REQUESTS, _PARTS)
        for message, fields in part.items()
        for field, rules in fields.items()
    },
    messages={
        "solon.v1.Conversation": (_turns_alternate,),
        "solon.v1.ConstitutionSource": (_has_source,),
        "solon.v1.AbsoluteQuestion": (_answers_differ,),
        "solon.v1.Principle": (_is_complete,),
        "solon.v1.ReviseRequest": (_answers_are_of_a_critique,),
        "solon.v1.Constitution": (_exemplars_fit,),
        "solon.v1.RefineRequest": (_one_principle_a_round,),
    },
)
"""Every rule of the contract."""
