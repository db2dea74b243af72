"""Which constitution and which principles a request comes to."""

from __future__ import annotations

import pytest

from solon.constitution import AbsoluteQuestion, Constitution, Principle, draw, loads
from solon.serving import convert
from solon.serving.constitutions import (
    All,
    ByIds,
    BySample,
    Library,
    Purpose,
    Selection,
    choose,
    choose_one,
)
from solon.serving.errors import (
    DigestMismatch,
    InvalidFields,
    UnknownConstitution,
    UnknownPrinciple,
)
from solon.v1 import common_pb2

REVISING = Principle(id="kind", critique_request="What is unkind?", revision_request="Be kind.")
COMPARING = Principle(id="honest", comparison_instruction="Which is more honest?", weight=3)
BOTH = Principle(
    id="both", critique_request="c", revision_request="r", comparison_instruction="Which?"
)
SCORING = Principle(
    id="calm",
    absolute_question=AbsoluteQuestion(text="Calm?", answers={"Yes": 1.0, "No": 0.0}),
)
CORE = Constitution(name="core", version="1", principles=(REVISING, COMPARING, BOTH, SCORING))


def source(**fields: object) -> common_pb2.ConstitutionSource:
    return common_pb2.ConstitutionSource(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("purpose", "usable"),
    [
        (Purpose.REVISION, (REVISING, BOTH)),
        (Purpose.COMPARISON, (COMPARING, BOTH)),
        (Purpose.SCORING, (SCORING,)),
    ],
)
def test_all_means_all_that_can_serve_the_call(
    purpose: Purpose, usable: tuple[Principle, ...]
) -> None:
    assert choose(All(), CORE, purpose) == usable


def test_ids_come_in_the_order_asked_for() -> None:
    chosen = choose(ByIds(ids=("both", "honest")), CORE, Purpose.COMPARISON)
    assert chosen == (BOTH, COMPARING)


@pytest.mark.parametrize("principle_id", ["unheard-of", "kind", ""])
def test_an_id_that_cannot_serve_the_call_is_refused_with_those_that_can(
    principle_id: str,
) -> None:
    with pytest.raises(UnknownPrinciple) as caught:
        choose(ByIds(ids=(principle_id,)), CORE, Purpose.COMPARISON)
    assert caught.value.metadata == {"principle_id": principle_id, "known": "honest,both"}


def test_a_constitution_without_usable_principles_is_refused() -> None:
    empty = Constitution(name="empty", version="1", principles=(COMPARING,))
    with pytest.raises(UnknownPrinciple, match="an absolute question"):
        choose(All(), empty, Purpose.SCORING)


def test_a_sample_is_the_seeded_draw_from_the_usable_principles() -> None:
    for seed in range(20):
        chosen = choose(BySample(count=1, seed=seed), CORE, Purpose.COMPARISON)
        assert chosen == draw((COMPARING, BOTH), 1, seed)


def test_a_sample_without_a_seed_draws_different_principles() -> None:
    chosen = {choose(BySample(), CORE, Purpose.COMPARISON) for _ in range(100)}
    assert chosen == {(COMPARING,), (BOTH,)}


def test_a_sample_cannot_be_larger_than_what_is_usable() -> None:
    with pytest.raises(InvalidFields, match=r"principles\.sample\.count: expected 1 to 2.* got 3"):
        choose(BySample(count=3), CORE, Purpose.COMPARISON)


@pytest.mark.parametrize("selection", [All(), ByIds(ids=("kind", "both")), BySample(count=2)])
def test_a_call_for_one_principle_refuses_a_selection_of_several(selection: Selection) -> None:
    with pytest.raises(InvalidFields, match="exactly one principle, got 2"):
        choose_one(selection, CORE, Purpose.REVISION)


def test_a_named_constitution_is_found_and_an_unknown_name_lists_the_known() -> None:
    library = Library([CORE])
    assert convert.constitution(source(name="core"), library) is CORE
    with pytest.raises(UnknownConstitution, match=r"'other'.*'core'"):
        convert.constitution(source(name="other"), library)


def test_two_constitutions_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two constitutions are named 'core'"):
        Library([CORE, CORE])


def test_a_changed_constitution_is_noticed_by_its_digest() -> None:
    library = Library([CORE])
    assert convert.constitution(source(name="core", digest=CORE.digest), library) is CORE
    with pytest.raises(DigestMismatch) as caught:
        convert.constitution(source(name="core", digest="0" * 64), library)
    assert caught.value.metadata == {"expected": "0" * 64, "actual": CORE.digest}


YAML = """
name: mixed
version: "1"
principles:
  - id: kind
    weight: 2
    tags: [tone]
    critique_request: What is unkind?
    revision_request: Be kind.
    comparison_instruction: Which is kinder?
    absolute_question:
      text: Is it kind?
      answers: {"Yes": 1, "No": 0}
exemplars:
  critiques:
    - conversation: [{role: user, content: "Can you?"}]
      response: "No."
      principle: kind
      critique: Curt.
      revision: Sorry, no.
  comparisons:
    - conversation: [{role: user, content: "Can you?"}]
      response_a: "No."
      response_b: Sorry, no.
      principle: kind
      answer: B
"""


def test_an_inline_constitution_has_the_digest_of_the_same_one_in_a_file() -> None:
    conversation = common_pb2.Conversation(
        messages=[common_pb2.Message(role=common_pb2.ROLE_USER, content="Can you?")]
    )
    inline = common_pb2.Constitution(
        name="another name",
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
                conversation=conversation,
                response="No.",
                principle_id="kind",
                critique="Curt.",
                revision="Sorry, no.",
            )
        ],
        comparison_exemplars=[
            common_pb2.ComparisonExemplar(
                conversation=conversation,
                response_a="No.",
                response_b="Sorry, no.",
                principle_id="kind",
                answer=common_pb2.OPTION_B,
            )
        ],
    )
    assert convert.inline_constitution(inline).digest == loads(YAML).digest


def test_unset_fields_of_an_inline_principle_have_their_documented_defaults() -> None:
    inline = common_pb2.Constitution(name="x", principles=[common_pb2.Principle(id="p")])
    assert convert.inline_constitution(inline).principles == (Principle(id="p"),)
