"""Reading constitutions: every mistake is named with its line, key, value and fix, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.chat import Conversation, Message
from solon.constitution import ConstitutionError, dump, from_dict, load, loads, to_dict

WHOLE = """\
name: small
version: 1.10
description: Everything that a file can hold.
provenance: {author: A, source: S, license: CC0-1.0}
principles:
  - id: kind
    weight: 2
    tags: [tone, no]
    critique_request: What is unkind?
    revision_request: >-
      Make it
      kind.
    comparison_instruction: Which is kinder?
    absolute_question:
      text: Is it kind?
      answers: {Yes: 1, No: 0}
    provenance: A's grandmother
  - id: short
    comparison_instruction: Which is shorter?
exemplars:
  critiques:
    - conversation: Hello
      response: Go away.
      principle: kind
      critique: Rude.
      revision: Hello to you.
  comparisons:
    - conversation:
        - {role: system, content: Be brief.}
        - {role: user, content: Hello}
        - {role: assistant, content: Hi}
        - {role: user, content: "How are you?"}
      response_a: Well, and you?
      response_b: Fine, thank you very much for asking.
      principle: short
      answer: A
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConstitutionError) as caught:
        loads(text, source="c.yaml")
    return str(caught.value).splitlines()


def with_principle(lines: str) -> str:
    return f"name: n\nversion: v\nprinciples:\n  - id: a\n{lines}"


def test_a_file_is_read_in_full(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(WHOLE, encoding="utf-8")
    c = load(path)
    assert (c.name, c.version, c.provenance.license) == ("small", "1.10", "CC0-1.0")
    kind, short = c.principles
    assert (kind.weight, kind.tags, kind.revision_request) == (2.0, ("tone", "no"), "Make it kind.")
    assert kind.absolute_question is not None
    assert kind.absolute_question.answers == {"Yes": 1.0, "No": 0.0}
    assert short.weight == 1.0
    assert c.critique_exemplars[0].conversation == Conversation.from_user("Hello")
    assert c.comparison_exemplars[0].conversation.messages[-1] == Message("user", "How are you?")
    assert c.for_revision == (kind,)


STEPS = """\
name: steps
version: 1
principles:
  - id: kind
    priority: 2
    critique_request: What is unkind?
    revision_request: Make it kind.
    questions: ["Who could be hurt?", "By which words?"]
    exemplars:
      - conversation: Hello
        response: Go away.
        answers: [The human., Go away.]
        critique: Rude.
        revision: Hello to you.
exemplars:
  critiques:
    - {conversation: Hi, response: Bye., principle: kind, critique: Curt., revision: Hi.}
"""


NO_REQUEST = "principles[0].questions: only a principle with a critique_request has them"


def test_a_principle_has_questions_exemplars_of_its_own_and_a_place() -> None:
    c = loads(STEPS)
    (kind,) = c.principles
    assert (kind.priority, kind.questions) == (2, ("Who could be hurt?", "By which words?"))
    (own,) = kind.exemplars
    assert (own.principle, own.answers) == ("kind", ("The human.", "Go away."))
    assert c.critique_exemplars[0].answers == ()
    assert loads(dump(c)) == c
    for old, new in (("priority: 2", "priority: 3"), ("hurt?", "harmed?"), ("The human", "She")):
        assert loads(STEPS.replace(old, new)).digest != c.digest


def test_constitutions_that_were_there_before_keep_their_digests() -> None:
    # as released before principles had questions, exemplars and a priority
    old = "8b80ffd3729f5b1df4186a6870d9219c8fefaf5b0b3ec015f2595c1f31fc1402"
    assert loads(WHOLE).digest == old


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("priority: 2", "priority: 0", "principles[0].priority: expected a whole number from 1"),
        ("priority: 2", "priority: 1.5", "priority: expected a whole number from 1 to 1,000, got"),
        (
            "    critique_request: What is unkind?\n    revision_request: Make it kind.\n",
            "",
            NO_REQUEST,
        ),
        (
            "[The human., Go away.]",
            "[The human.]",
            "expected one answer to each of the 2 questions",
        ),
        ("principle: kind,", "principle: kind, answers: [A, B, C],", "got 3"),
        ("        critique: Rude.\n", "", "principles[0].exemplars[0].critique: required"),
        (
            "      - conversation: Hello\n",
            "      - principle: kind\n        conversation: Hello\n",
            "principles[0].exemplars[0].principle: unknown key",
        ),
        ('["Who could be hurt?", "By which words?"]', "[]", "each of the 0 questions"),
    ],
)
def test_what_does_not_fit_a_principle_is_named(old: str, new: str, wanted: str) -> None:
    assert old in STEPS
    assert any(wanted in line for line in problems_of(STEPS.replace(old, new)))


def test_writing_and_reading_again_gives_the_same_constitution() -> None:
    c = loads(WHOLE)
    assert loads(dump(c)) == c
    assert from_dict(to_dict(c)) == c
    assert loads(dump(c)).digest == c.digest
    for again in (loads(dump(c)), from_dict(to_dict(c))):
        question = again.principles[0].absolute_question
        assert question is not None
        assert list(question.answers) == ["Yes", "No"]


def test_the_digest_follows_words_and_exemplars_but_not_the_name() -> None:
    c = loads(WHOLE)
    assert loads(WHOLE.replace("name: small", "name: other")).digest == c.digest
    assert loads(WHOLE.replace("A's grandmother", "B")).digest == c.digest
    assert loads(WHOLE.replace("Which is kinder?", "Which is nicer?")).digest != c.digest
    assert loads(WHOLE.replace("Rude.", "Harsh.")).digest != c.digest
    assert loads(WHOLE.replace("weight: 2", "weight: 3")).digest != c.digest


def test_all_problems_of_a_file_are_reported_at_once_and_in_its_order() -> None:
    text = WHOLE.replace("weight: 2", "weight: -2").replace("answer: A", "answer: C")
    text = text.replace("version: 1.10", "versoin: 1.10")
    lines = problems_of(text)
    assert lines == [
        "c.yaml:1: version: required, but missing: add it",
        "c.yaml:2: versoin: unknown key: did you mean 'version'?; "
        "known: name, version, principles, description, provenance, exemplars",
        "c.yaml:7: principles[0].weight: expected a number above 0, got -2: "
        "to leave a principle out, remove it",
        "c.yaml:36: exemplars.comparisons[0].answer: expected A or B, got 'C'",
    ]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("    weight: 0\n", "principles[0].weight: expected a number above 0, got 0"),
        ("    weight: .inf\n", "principles[0].weight: expected a finite number, got .inf"),
        ("    weight: .nan\n", "principles[0].weight: expected a finite number, got .nan"),
        ('    weight: "2"\n', "principles[0].weight: expected a number, got '2': write it without"),
        ("    weight: yes\n", "principles[0].weight: expected a number, got yes"),
        ("    tags: harm\n", "principles[0].tags: expected a list, got 'harm'"),
        (
            "    critique_request: What?\n",
            "principles[0].revision_request: required, since critique_request is given",
        ),
        (
            "    revision_request: Mend.\n",
            "principles[0].critique_request: required, since revision_request is given",
        ),
        ("    comparison_instruction: 5\n", "comparison_instruction: expected a text, got 5"),
        ("    comparison_instruction:\n", "expected a text, got nothing: write it, or remove"),
        ('    comparison_instruction: " "\n', "expected a text, got an empty one"),
        (
            f"    comparison_instruction: {'x' * 16_385}\n",
            "expected at most 16,384 characters, got 16,385: shorten it",
        ),
        (
            '    comparison_instruction: "a\\uD800"\n',
            "comparison_instruction: expected Unicode, got half a surrogate pair in 'a\\ud800'",
        ),
        ("    weight: 1\n", "principles[0]: says nothing to anyone: add critique_request and"),
        (
            "    absolute_question: {text: Q, answers: {Yes: 1}}\n",
            "absolute_question.answers: expected 2 to 32 answers with their values, got 1",
        ),
        (
            "    absolute_question: {text: Q, answers: {Yes: 1, No: 1}}\n",
            "absolute_question.answers: expected at least two different values",
        ),
        (
            '    absolute_question: {text: Q, answers: {"Yes": 1, Yes: 0}}\n',
            "absolute_question.answers.Yes: key given twice, first on line 5: remove one",
        ),
        (
            "    weight: 1\n    weight: 2\n",
            "c.yaml:6: principles[0].weight: key given twice",
        ),
        (
            "    comparison_instruction: Which?\n  - id: a\n    comparison_instruction: Or?\n",
            "c.yaml:6: principles[1].id: 'a' is also the id of principles[0]: rename one",
        ),
        (
            "    comparison_instruction: Which?\n  - id: Not An Id\n",
            "principles[1].id: expected 1 to 64 of a-z, 0-9 and '-', got 'Not An Id'",
        ),
        ("    [a]: b\n", "expected a plain text as key, got a list of 1"),
    ],
)
def test_a_wrong_principle_is_named_with_its_key_value_and_fix(lines: str, wanted: str) -> None:
    assert any(wanted in problem for problem in problems_of(with_principle(lines)))


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (
            "principle: kind",
            "principle: kinder",
            "c.yaml:24: exemplars.critiques[0].principle: expected the id of a principle of this "
            "file, got 'kinder'; it has kind, short",
        ),
        (
            "principle: kind",
            "principle: short",
            "exemplars.critiques[0].principle: principle 'short' has no critique_request",
        ),
        ("role: system", "role: judge", "expected one of system, user, assistant, got 'judge'"),
        ("role: assistant", "role: user", "messages[2].role: expected 'assistant', got 'user'"),
        (
            '        - {role: user, content: "How are you?"}\n',
            "",
            "exemplars.comparisons[0].conversation: expected a conversation that ends with the "
            "user, got 'assistant' last",
        ),
        ("conversation: Hello", "conversation: 5", "expected a list, got 5"),
        ("response: Go away.", "responses: Go away.", "did you mean 'response'?"),
    ],
)
def test_a_wrong_exemplar_is_named_with_its_key_value_and_fix(
    old: str, new: str, wanted: str
) -> None:
    assert old in WHOLE
    assert any(wanted in problem for problem in problems_of(WHOLE.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "c.yaml: expected a constitution, got an empty file"),
        ("# nothing yet\n", "c.yaml: expected a constitution, got an empty file"),
        ("- a\n- b\n", "c.yaml:1: expected a mapping of keys to values, got a list of 2"),
        ("just words", "c.yaml:1: expected a mapping of keys to values, got 'just words'"),
        (
            "name: n\nversion: v\nprinciples: []\n",
            "c.yaml:3: principles: expected 1 to 256",
        ),
        ("name: n\nversion: [\n", "c.yaml:3: expected YAML: while parsing a flow node"),
        ("name: n\nb: c: d\n", "c.yaml:2: expected YAML: mapping values are not allowed here"),
        ("name: n\n---\nname: m\n", "c.yaml:2: expected YAML: expected a single document"),
        ("name: n\nb: \x07\n", "c.yaml:2: expected YAML, got the control character '\\x07'"),
        ("[" * 700, "c.yaml: expected at most a few levels of nesting"),
        ("name: &n\n  - *n\n", "c.yaml:1: name: expected a short text, got a list of 1"),
    ],
)
def test_a_document_of_another_form_is_refused(text: str, wanted: str) -> None:
    assert any(problem.startswith(wanted) for problem in problems_of(text))


def test_yaml_tags_construct_nothing() -> None:
    text = with_principle("    comparison_instruction: !!python/object/apply:os.getcwd []\n")
    assert any("expected a text, got a list of 0" in problem for problem in problems_of(text))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "cannot read the constitution: No such file or directory; check the path"),
        (b"name: n\nversion: \xff\n", ":2: expected UTF-8, got the byte 0xff"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, wanted: str
) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConstitutionError, match=wanted) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConstitutionError, match="expected a constitution file, got a directory"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    assert load(path) == loads(WHOLE)


def test_python_values_are_held_to_the_same_rules() -> None:
    data = to_dict(loads(WHOLE))
    data["principles"][0]["weight"] = float("nan")
    data["principles"][1]["absolute_question"] = {"text": "Q", "answers": {True: 1.0, False: 0.0}}
    with pytest.raises(ConstitutionError) as caught:
        from_dict(data, source="inline")
    assert [problem.key for problem in caught.value.problems] == [
        "principles[0].weight",
        "principles[1].absolute_question.answers.true",
        "principles[1].absolute_question.answers.false",
    ]
    with pytest.raises(ConstitutionError, match="expected texts, numbers, lists and mappings only"):
        from_dict({"name": object()})
