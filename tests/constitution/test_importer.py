"""Constitutions from the shapes of files that came with the paper. All texts here are our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solon.constitution import Constitution, ConstitutionError, dump, import_files, loads

PAIRS = {
    "Harmful 0": {
        "prompt": ["\n\nCritiqueRequest: What could hurt somebody?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Take it out, and explain why.\n\nRevision:",
    },
    "kind": {
        "prompt": ["Critique Request: Is it unkind?", "Is it rude?"],
        "edit_request": "Say it kindly.",
    },
}
INSTRUCTIONS = ["\nChoose the response that harms less. Options:", "Which one helps more?"]
TRANSCRIPT = (
    "\n\nHuman: Hello.\n\nAssistant: Hm.\n\nHuman: Is it Critique: or not?\n\nAssistant: Go away."
    "\n\nCritiqueRequest: {asked}\n\nCritique: It is rude.\n\nRevisionRequest: {edit}"
    "\n\nRevision: It is not.\n\nHuman:"
)
CHOICES = [
    {"prompt": f"\n\nHuman: {n}?\n\nAssistant:", "corrects": ["Yes."], "incorrects": ["No."]}
    for n in range(3)
]


def imported(tmp_path: Path, *contents: Any, **about: str) -> Constitution:
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path / f"file{number}.json")
        files[-1].write_text(json.dumps(content), "utf-8")
    return import_files(files, name="theirs", **about)


def test_pairs_and_instructions_lose_their_labels_and_keep_where_they_are_from(
    tmp_path: Path,
) -> None:
    made = imported(tmp_path, PAIRS, INSTRUCTIONS)
    assert [p.id for p in made.for_revision] == ["harmful-0", "kind-1", "kind-2"]
    assert made.principles[0].critique_request == "What could hurt somebody?"
    assert made.principles[0].revision_request == "Take it out, and explain why."
    assert made.principles[1].critique_request == "Is it unkind?"
    assert [p.comparison_instruction for p in made.for_comparison] == [
        "Choose the response that harms less.",
        "Which one helps more?",
    ]
    assert made.principles[0].provenance == "Harmful 0 in file0.json"
    assert made.provenance.license == "not stated"
    assert "carry no licence" in str(made.provenance.source)
    assert loads(dump(made)) == made


def test_a_stated_licence_is_kept(tmp_path: Path) -> None:
    made = imported(tmp_path, INSTRUCTIONS, author="Us", licence="CC0-1.0")
    assert (made.provenance.author, made.provenance.license) == ("Us", "CC0-1.0")
    assert "licence" not in str(made.provenance.source)


def test_a_transcript_becomes_an_exemplar_of_the_principle_whose_requests_it_has(
    tmp_path: Path,
) -> None:
    known = TRANSCRIPT.format(asked="Is it rude?", edit="Say it kindly.")
    other = TRANSCRIPT.format(asked="Is it true?", edit="Correct it.")
    made = imported(tmp_path, [known, other], PAIRS)
    assert [e.principle for e in made.critique_exemplars] == ["kind-2", "exemplar"]
    first = made.critique_exemplars[0]
    said = [(m.role, m.content) for m in first.conversation.messages]
    assert said[-1] == ("user", "Is it Critique: or not?")
    assert len(said) == 3
    assert (first.response, first.critique) == ("Go away.", "It is rude.")
    assert first.revision == "It is not."
    assert made.principle("exemplar").critique_request == "Is it true?"


def test_choices_become_exemplars_that_are_balanced_between_the_positions(tmp_path: Path) -> None:
    made = imported(tmp_path, CHOICES, INSTRUCTIONS)
    shown = made.comparison_exemplars
    assert [e.answer for e in shown] == ["A", "B", "A"]
    assert [(e.response_a, e.response_b)[e.answer == "B"] for e in shown] == ["Yes."] * 3
    assert [e.principle for e in shown] == ["compare-1", "compare-2", "compare-1"]
    assert shown[2].conversation.messages[0].content == "2?"


def test_a_text_file_is_an_instruction_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Which one helps?\n\n  Which one is true?\n", "utf-8")
    made = import_files([path], name="mine")
    assert [p.comparison_instruction for p in made.principles] == [
        "Which one helps?",
        "Which one is true?",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "expected a mapping of names"),
        ([], "expected a mapping of names"),
        (["text", 7], "expected a mapping of names"),
        ({"a": {"prompt": "x"}}, r'a: expected {"prompt": \[text, ...\], "edit_request": text}'),
        ({"a": {"prompt": [], "edit_request": "x"}}, "a: expected"),
        ({"a": {"prompt": [" "], "edit_request": "x"}}, "critique_request"),
        (["\n\nHuman: Hi\n\nAssistant: Ho"], r"\[0\]: expected a transcript that ends with"),
        ([{"prompt": "\n\nHuman: Hi"}], "chains of thought are no exemplars"),
        (CHOICES, "need comparison instructions"),
        ([{**CHOICES[0], "prompt": "Hi"}], "expected a conversation of Human and Assistant"),
    ],
)
def test_another_shape_is_refused_by_file_and_key(
    tmp_path: Path, content: Any, problem: str
) -> None:
    with pytest.raises(ConstitutionError, match=problem):
        imported(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'["a",\n', "theirs.json:2: expected JSON"),
        (b'{"a": {}, "a": {}}', "'a' is there twice"),
        (b'["a",\n"\xff"]', "theirs.json:2: expected UTF-8, got the byte 0xff"),
        (None, "theirs.json: cannot read the constitution: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "theirs.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConstitutionError, match=problem):
        import_files([path], name="theirs")
