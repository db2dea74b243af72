"""Every field rule of the contract, on the wrong side of each bound; and the comments beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.serving import rules
from solon.serving.errors import InvalidFields
from solon.serving.validation import Required
from solon.v1 import common_pb2, control_pb2, critic_pb2, judge_pb2, policy_pb2

LONG = 262_144
PROTOS = Path(common_pb2.__file__).parent


def conversation(*roles: common_pb2.Role.ValueType) -> common_pb2.Conversation:
    turns = roles or (common_pb2.ROLE_USER,)
    return common_pb2.Conversation(
        messages=[common_pb2.Message(role=role, content="Hello.") for role in turns]
    )


def constitution() -> common_pb2.Constitution:
    return common_pb2.Constitution(
        name="test",
        principles=[
            common_pb2.Principle(
                id="kind",
                weight=2,
                tags=["tone"],
                critique_request="What is unkind?",
                revision_request="Be kind.",
                comparison_instruction="Which is kinder?",
                absolute_question=common_pb2.AbsoluteQuestion(
                    text="Is it kind?",
                    answers=[
                        common_pb2.AbsoluteQuestion.Answer(text="Yes", value=1),
                        common_pb2.AbsoluteQuestion.Answer(text="No", value=0),
                    ],
                ),
            )
        ],
        critique_exemplars=[
            common_pb2.CritiqueExemplar(
                conversation=conversation(),
                response="No.",
                principle_id="kind",
                critique="Curt.",
                revision="Sorry, no.",
            )
        ],
        comparison_exemplars=[
            common_pb2.ComparisonExemplar(
                conversation=conversation(),
                response_a="No.",
                response_b="Sorry, no.",
                principle_id="kind",
                answer=common_pb2.OPTION_B,
            )
        ],
    )


def source() -> common_pb2.ConstitutionSource:
    return common_pb2.ConstitutionSource(inline=constitution(), digest="0" * 64)


def generate() -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(
        conversation=conversation(),
        sampling=common_pb2.SamplingParams(
            temperature=1, top_p=1, top_k=0, max_tokens=8, seed=1, stop=["\n"]
        ),
        n=1,
        weight_version="initial",
    )


def stream() -> policy_pb2.StreamGenerateRequest:
    return policy_pb2.StreamGenerateRequest(conversation=conversation())


def critique() -> critic_pb2.CritiqueRequest:
    return critic_pb2.CritiqueRequest(
        conversation=conversation(), response="No.", constitution=source()
    )


def revise() -> critic_pb2.ReviseRequest:
    return critic_pb2.ReviseRequest(
        conversation=conversation(), response="No.", critique="Curt.", constitution=source()
    )


def refine() -> critic_pb2.RefineRequest:
    return critic_pb2.RefineRequest(
        conversation=conversation(), response="No.", constitution=source(), rounds=2
    )


def assess() -> critic_pb2.AssessRequest:
    return critic_pb2.AssessRequest(
        conversation=conversation(), response="No.", constitution=source()
    )


def compare() -> judge_pb2.CompareRequest:
    return judge_pb2.CompareRequest(
        conversation=conversation(),
        response_a="No.",
        response_b="Yes.",
        constitution=source(),
        min_option_mass=0.5,
        chain_of_thought=judge_pb2.ChainOfThought(chains=2, clamp=0.4),
    )


def score() -> judge_pb2.ScoreRequest:
    return judge_pb2.ScoreRequest(
        conversation=conversation(), response="No.", constitution=source(), min_option_mass=0
    )


def rank() -> judge_pb2.RankRequest:
    return judge_pb2.RankRequest(
        conversation=conversation(), responses=["No.", "Yes."], constitution=source()
    )


def update() -> control_pb2.UpdateWeightsRequest:
    return control_pb2.UpdateWeightsRequest(path="/models/next", weight_version="next")


VALID: tuple[Callable[[], Any], ...] = (
    generate, stream, critique, revise, refine, assess, compare, score, rank, update,
    control_pb2.GetServerInfoRequest, control_pb2.GetLoadRequest,
    control_pb2.PauseGenerationRequest, control_pb2.ResumeGenerationRequest,
)  # fmt: skip


def put(message: Any, path: str, value: Any) -> None:
    """Set ``a.b[0].c`` of a message; a list replaces a list, None clears."""
    *parents, last = path.split(".")
    for part in parents:
        name, _, index = part.partition("[")
        message = getattr(message, name)
        if index:
            message = message[int(index.rstrip("]"))]
    name, _, index = last.partition("[")
    if value is None:
        message.ClearField(name)
    elif index:
        getattr(message, name)[int(index.rstrip("]"))] = value
    elif isinstance(value, list):
        message.ClearField(name)
        getattr(message, name).extend(value)
    elif hasattr(value, "DESCRIPTOR"):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


def broken(message: Any) -> dict[str, str]:
    with pytest.raises(InvalidFields) as caught:
        rules.check(message)
    return {v.field: v.description for v in caught.value.violations}


@pytest.mark.parametrize("make", VALID)
def test_a_request_that_keeps_every_rule_is_accepted(make: Callable[[], Any]) -> None:
    rules.check(make())


INLINE = "constitution.inline"
PRINCIPLE = f"{INLINE}.principles[0]"
QUESTION = f"{PRINCIPLE}.absolute_question"
USER, ASSISTANT, SYSTEM = (
    common_pb2.ROLE_USER,
    common_pb2.ROLE_ASSISTANT,
    common_pb2.ROLE_SYSTEM,
)


def answers(*pairs: tuple[str, float]) -> list[common_pb2.AbsoluteQuestion.Answer]:
    return [common_pb2.AbsoluteQuestion.Answer(text=text, value=value) for text, value in pairs]


def principles(count: int) -> list[common_pb2.Principle]:
    return [common_pb2.Principle(id=f"p-{index}") for index in range(count)]


def exemplars(count: int) -> list[common_pb2.CritiqueExemplar]:
    return [constitution().critique_exemplars[0]] * count


def answering(principle_id: str, *answers: str) -> common_pb2.CritiqueExemplar:
    made = exemplars(1)[0]
    made.principle_id = principle_id
    made.answers.extend(answers)
    return made


def without_critique(request: critic_pb2.ReviseRequest) -> critic_pb2.ReviseRequest:
    request.ClearField("critique")
    return request


def comparisons(count: int) -> list[common_pb2.ComparisonExemplar]:
    return [constitution().comparison_exemplars[0]] * count


def selection(**kinds: Any) -> common_pb2.PrincipleSelection:
    return common_pb2.PrincipleSelection(**kinds)


Ids, Sample, All = (
    common_pb2.PrincipleSelection.Ids,
    common_pb2.PrincipleSelection.Sample,
    common_pb2.PrincipleSelection.All,
)

# (request, field to set, value, field that is blamed; None: the same)
BROKEN: list[tuple[Callable[[], Any], str, Any, str | None]] = [
    # every request
    *((make, "request_id", "r" * 129, None) for make in VALID),
    *((make, "conversation", None, None) for make in VALID[:9]),
    *((make, "weight_version", "w" * 257, None) for make in VALID[:9]),
    *((make, "constitution", None, None) for make in VALID[2:9]),
    *((make, "conversation", conversation(USER, ASSISTANT), None) for make in VALID[2:9]),
    # conversations
    (generate, "conversation.messages", [], None),
    (generate, "conversation", conversation(*[USER, ASSISTANT] * 257), "conversation.messages"),
    (generate, "conversation.messages[0].role", common_pb2.ROLE_UNSPECIFIED, None),
    (generate, "conversation.messages[0].role", 99, None),
    (generate, "conversation.messages[0].content", "", None),
    (generate, "conversation.messages[0].content", "x" * (LONG + 1), None),
    (generate, "conversation", conversation(ASSISTANT), "conversation.messages[0].role"),
    (generate, "conversation", conversation(USER, USER), "conversation.messages[1].role"),
    (generate, "conversation", conversation(USER, SYSTEM), "conversation.messages[1].role"),
    (generate, "conversation", conversation(SYSTEM, SYSTEM), "conversation.messages[1].role"),
    (generate, "conversation", conversation(SYSTEM, ASSISTANT), "conversation.messages[1].role"),
    (generate, "conversation", conversation(SYSTEM), "conversation.messages"),
    # sampling
    (generate, "sampling.temperature", -0.1, None),
    (generate, "sampling.temperature", 10.1, None),
    (generate, "sampling.temperature", math.nan, None),
    (generate, "sampling.top_p", 0.0, None),
    (generate, "sampling.top_p", 1.1, None),
    (generate, "sampling.top_k", -1, None),
    (generate, "sampling.top_k", 1_000_001, None),
    (generate, "sampling.max_tokens", 0, None),
    (generate, "sampling.max_tokens", 131_073, None),
    (generate, "sampling.stop", ["x"] * 17, None),
    (generate, "sampling.stop", ["x", ""], "sampling.stop[1]"),
    (generate, "sampling.stop", ["x" * 257], "sampling.stop[0]"),
    (generate, "n", 0, None),
    (generate, "n", 65, None),
    (compare, "chain_of_thought.sampling.top_p", 2.0, None),
    # responses
    *((make, "response", text, None) for make in (critique, revise, refine, assess, score)
      for text in ("", "x" * (LONG + 1))),
    *((compare, name, text, None) for name in ("response_a", "response_b")
      for text in ("", "x" * (LONG + 1))),
    (revise, "critique", "", None),
    (revise, "critique", "x" * (LONG + 1), None),
    (rank, "responses", ["only one"], None),
    (rank, "responses", ["x"] * 17, None),
    (rank, "responses", ["x", ""], "responses[1]"),
    (rank, "responses", ["x", "x" * (LONG + 1)], "responses[1]"),
    # the critic
    (refine, "rounds", 0, None),
    (refine, "rounds", 17, None),
    (refine, "principles", selection(ids=Ids(ids=["kind"])), "principles.ids.ids"),
    (refine, "principles", selection(sample=Sample(count=3)), "principles.sample.count"),
    (refine, "not_needed_below", 1.1, None),
    (refine, "min_option_mass", -0.1, None),
    (assess, "min_option_mass", 1.1, None),
    (revise, "answers", ["x"] * 17, None),
    (revise, "answers", ["x" * (LONG + 1)], "answers[0]"),
    (lambda: without_critique(revise()), "answers", ["x"], None),
    (critique, f"{PRINCIPLE}.priority", 0, None),
    (critique, f"{PRINCIPLE}.priority", 1_001, None),
    (critique, f"{PRINCIPLE}.questions", ["x"] * 17, None),
    (critique, f"{PRINCIPLE}.questions", [""], f"{PRINCIPLE}.questions[0]"),
    (critique, f"{PRINCIPLE}.exemplars", exemplars(33), None),
    (critique, f"{PRINCIPLE}.exemplars", [answering("kind", "a")],
     f"{PRINCIPLE}.exemplars[0].answers"),
    (critique, f"{PRINCIPLE}.exemplars", [answering("calm")],
     f"{PRINCIPLE}.exemplars[0].principle_id"),
    (critique, f"{INLINE}.critique_exemplars", [answering("kind", "a")],
     f"{INLINE}.critique_exemplars[0].answers"),
    (critique, f"{INLINE}.critique_exemplars", [answering("kind", "")],
     f"{INLINE}.critique_exemplars[0].answers[0]"),
    (critique, f"{INLINE}.principles",
     [common_pb2.Principle(id="kind", questions=["Why?"], comparison_instruction="Which?")],
     f"{PRINCIPLE}.questions"),
    # the judge
    *((make, "min_option_mass", mass, None) for make in (compare, score, rank)
      for mass in (-0.1, 1.1, math.nan)),
    (compare, "order_mode", 99, None),
    (rank, "order_mode", 99, None),
    (rank, "pair_mode", 99, None),
    (compare, "chain_of_thought.chains", 0, None),
    (compare, "chain_of_thought.chains", 17, None),
    (compare, "chain_of_thought.clamp", -0.1, None),
    (compare, "chain_of_thought.clamp", 0.51, None),
    # which principles
    (score, "principles", selection(ids=Ids()), "principles.ids.ids"),
    (score, "principles", selection(ids=Ids(ids=["a", "a"])), "principles.ids.ids"),
    (score, "principles", selection(ids=Ids(ids=["a", ""])), "principles.ids.ids[1]"),
    (score, "principles", selection(ids=Ids(ids=["a" * 65])), "principles.ids.ids[0]"),
    (score, "principles", selection(ids=Ids(ids=map(str, range(257)))), "principles.ids.ids"),
    (score, "principles", selection(sample=Sample(count=0)), "principles.sample.count"),
    # constitutions
    (score, "constitution", common_pb2.ConstitutionSource(), None),
    (score, "constitution", common_pb2.ConstitutionSource(name=""), "constitution.name"),
    (score, "constitution", common_pb2.ConstitutionSource(name="n" * 65), "constitution.name"),
    (score, "constitution.digest", "ABC", None),
    (score, f"{INLINE}.name", "", None),
    (score, f"{INLINE}.name", "x" * 65, None),
    (score, f"{INLINE}.principles", [], None),
    (score, f"{INLINE}.principles", principles(257), None),
    (score, f"{INLINE}.principles", principles(1) * 2, None),
    (score, f"{INLINE}.critique_exemplars", exemplars(33), None),
    (score, f"{INLINE}.comparison_exemplars", comparisons(33), None),
    (score, f"{PRINCIPLE}.id", "", None),
    (score, f"{PRINCIPLE}.id", "Kind", None),
    (score, f"{PRINCIPLE}.id", "x" * 65, None),
    (score, f"{PRINCIPLE}.weight", 0.0, None),
    (score, f"{PRINCIPLE}.weight", math.inf, None),
    (score, f"{PRINCIPLE}.tags", ["x"] * 33, None),
    (score, f"{PRINCIPLE}.tags", [""], f"{PRINCIPLE}.tags[0]"),
    (score, f"{PRINCIPLE}.tags", ["x" * 65], f"{PRINCIPLE}.tags[0]"),
    (score, f"{PRINCIPLE}.critique_request", None, None),
    (score, f"{PRINCIPLE}.revision_request", None, None),
    *((score, f"{PRINCIPLE}.{name}", "x" * 16_385, None)
      for name in ("critique_request", "revision_request", "comparison_instruction")),
    (score, f"{QUESTION}.text", "", None),
    (score, f"{QUESTION}.text", "x" * 16_385, None),
    (score, f"{QUESTION}.answers", answers(("Yes", 1)), None),
    (score, f"{QUESTION}.answers", answers(*((str(n), n) for n in range(33))), None),
    (score, f"{QUESTION}.answers", answers(("Yes", 1), ("No", 1)), None),
    (score, f"{QUESTION}.answers", answers(("Yes", 1), ("Yes", 0)), None),
    (score, f"{QUESTION}.answers[0].text", "", None),
    (score, f"{QUESTION}.answers[0].text", "x" * 65, None),
    (score, f"{QUESTION}.answers[0].value", math.nan, None),
    (score, f"{QUESTION}.answers[0].value", -math.inf, None),
    *((score, f"{INLINE}.critique_exemplars[0].{name}", text, None)
      for name in ("response", "critique", "revision") for text in ("", "x" * (LONG + 1))),
    *((score, f"{INLINE}.comparison_exemplars[0].{name}", text, None)
      for name in ("response_a", "response_b") for text in ("", "x" * (LONG + 1))),
    *((score, f"{INLINE}.{kind}[0].{name}", value, None)
      for kind in ("critique_exemplars", "comparison_exemplars")
      for name, value in (("conversation", None), ("conversation", conversation(USER, ASSISTANT)),
                          ("principle_id", "unknown"))),
    (score, f"{INLINE}.comparison_exemplars[0].answer", common_pb2.OPTION_UNSPECIFIED, None),
    (score, f"{INLINE}.comparison_exemplars[0].answer", 99, None),
    # control
    (update, "path", "", None),
    (update, "path", "x" * 4_097, None),
    (update, "weight_version", "", None),
    (update, "weight_version", "x" * 257, None),
    (control_pb2.PauseGenerationRequest, "mode", 99, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "path", "value", "blamed"),
    BROKEN,
    ids=[f"{make.__name__}-{path}-{index}" for index, (make, path, _, _) in enumerate(BROKEN)],
)
def test_a_field_that_breaks_its_rule_is_blamed_by_its_path(
    make: Callable[[], Any], path: str, value: Any, blamed: str | None
) -> None:
    message = make()
    put(message, path, value)
    # further ones may follow from it: an exemplar names a principle that is gone
    assert next(iter(broken(message))) == (blamed or path)


def test_every_broken_field_is_reported_at_once() -> None:
    message = policy_pb2.GenerateRequest(n=65, sampling=common_pb2.SamplingParams(top_p=0))
    assert list(broken(message)) == ["conversation", "sampling.top_p", "n"]


def test_a_violation_shows_sizes_and_never_the_text() -> None:
    message = generate()
    message.request_id = "secret" * 50
    assert broken(message) == {"request_id": "expected at most 128 characters, got 300"}


@pytest.mark.parametrize(
    "roles", [(USER, ASSISTANT), (SYSTEM, USER), (SYSTEM, USER, ASSISTANT, USER)]
)
def test_the_policy_takes_prefills_and_system_messages(
    roles: tuple[common_pb2.Role.ValueType, ...],
) -> None:
    rules.check(policy_pb2.GenerateRequest(conversation=conversation(*roles)))


def commented_fields() -> Iterator[tuple[str, str]]:
    """(full name, comment) of every field in the contract's files."""
    for path in sorted(PROTOS.glob("*.proto")):
        scope: list[str] = []
        comment: list[str] = []
        for line in map(str.strip, path.read_text("utf-8").splitlines()):
            if line.startswith("//"):
                comment.append(line.removeprefix("//").strip())
                continue
            if opened := re.match(r"(?:message|oneof|enum|service) (\w+) \{", line):
                is_message = line.startswith("message")
                scope.append(opened[1] if is_message else "")
            if declared := re.match(r"(?:optional |repeated )?[\w.]+ (\w+) = \d+;", line):
                yield ".".join(["solon.v1", *filter(None, scope), declared[1]]), " ".join(comment)
            if line == "}":
                scope.pop()
            comment = []


COMMENTS = dict(commented_fields())
# what these say of bounds is about the server's state or another field
STATEFUL = {
    "solon.v1.SamplingParams.seed",
    "solon.v1.PrincipleSelection.Sample.seed",
    "solon.v1.CritiqueExemplar.principle_id",
    "solon.v1.ComparisonExemplar.principle_id",
    "solon.v1.PrincipleSelection.Sample.count",
}


def comment_of(name: str) -> str:
    """The field's comment, or the one that it refers to."""
    field = name.rpartition(".")[2]
    if referred := re.search(r"[Aa]s in (\w+Request)", COMMENTS[name]):
        return COMMENTS[f"solon.v1.{referred[1]}.{field}"]
    return COMMENTS[name]


@pytest.mark.parametrize("name", sorted(rules.BOOK.fields.keys() - STATEFUL))
def test_every_bound_of_a_rule_stands_in_the_field_comment(name: str) -> None:
    comment = comment_of(name)
    for rule in rules.BOOK.fields[name]:
        inner = getattr(rule, "rule", rule)
        for bound in (getattr(inner, "low", 0), getattr(inner, "high", 0)):
            # no lower bound of a length, and no upper one of a weight
            if bound not in (0, math.inf):
                assert f"{bound:,}" in comment
        if isinstance(rule, Required):
            assert "Required" in comment


@pytest.mark.parametrize("name", sorted(COMMENTS.keys() - STATEFUL))
def test_a_field_whose_comment_states_a_rule_has_one(name: str) -> None:
    stated = re.search(r"\b(\d+ to \d|[Uu]p to \d|[Aa]t most \d|Above \d|Required)", COMMENTS[name])
    message = name.rpartition(".")[0]
    is_answer = message.endswith(("Response", "Verdict", "Score", "Info", ".Token", ".Completion"))
    if stated and not is_answer:
        assert name in rules.BOOK.fields or message in rules.BOOK.messages


def test_a_list_with_too_many_items_is_looked_into_no_further() -> None:
    # a body of 64 MiB has room for millions, each with complaints of its own
    message = compare()
    message.conversation.MergeFromString(b"\x0a\x00" * 100_000)
    message.constitution.inline.MergeFromString(b"\x12\x00" * 100_000)
    assert broken(message) == {
        "conversation.messages": "expected 1 to 512 items, got 100,001",
        f"{INLINE}.principles": "expected 1 to 256 items, got 100,001",
    }
