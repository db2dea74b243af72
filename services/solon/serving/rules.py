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


def _exemplars_fit(constitution: common_pb2.Constitution) -> _Issue:
    ids = [p.id for p in constitution.principles]
    if len(set(ids)) < len(ids):
        yield "principles", "expected distinct ids"
    revising = {p.id for p in constitution.principles if p.critique_request}
    for index, critique in enumerate(constitution.critique_exemplars):
        if critique.principle_id not in revising:
            text = "expected a principle of this constitution with a critique request"
            yield f"critique_exemplars[{index}].principle_id", text
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
        case "sample" if selection.sample.count != 1:
            text = f"expected 1: one principle is drawn a round, got {selection.sample.count}"
            yield "principles.sample.count", text
        case "all":
            yield "principles.all", "expected ids or a sample: a round has one principle"


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
    "ReviseRequest": _ASKS_BY_PRINCIPLE | {"response": (_TEXT,), "critique": (_TEXT,)},
    "RefineRequest": _ASKS_BY_PRINCIPLE
    | {"response": (_TEXT,), "rounds": (Within(1, 16),)}
    | {"not_needed_below": (Within(0, 1),), "min_option_mass": (Within(0, 1),)},
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
    },
    "CritiqueExemplar": {
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
        "solon.v1.Principle": (_pairs_requests,),
        "solon.v1.Constitution": (_exemplars_fit,),
        "solon.v1.RefineRequest": (_one_principle_a_round,),
    },
)
"""Every rule of the contract."""
