"""Constitutions from YAML files and back.

All that is wrong with a file is reported at once, by file, line and dotted key. What the keys mean
is in ``schema``; where shipped files are is in ``library``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from solon.chat import Conversation
from solon.constitution import schema
from solon.constitution.errors import ConstitutionError, Problem
from solon.constitution.types import (
    ComparisonExemplar,
    Constitution,
    CritiqueExemplar,
    Principle,
)


def load(path: str | os.PathLike[str]) -> Constitution:
    """Read a constitution file (YAML, UTF-8).

    Raises:
        ConstitutionError: The file cannot be read, is no YAML, or breaks a rule.
    """
    return loads(read_text(path), source=os.fspath(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """What a file of a constitution says, in whatever form (UTF-8, with or without a mark).

    Raises:
        ConstitutionError: The file cannot be read, or is no UTF-8.
    """
    source = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except IsADirectoryError as error:
        text = "expected a constitution file, got a directory: give one of the files in it"
        raise ConstitutionError(source, [Problem(text=text)]) from error
    except OSError as error:
        text = f"cannot read the constitution: {error.strerror}; check the path and its permissions"
        raise ConstitutionError(source, [Problem(text=text)]) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        text = f"expected UTF-8, got the byte {content[error.start]:#04x}: save the file as UTF-8"
        raise ConstitutionError(source, [Problem(line=line, text=text)]) from error


def loads(text: str, *, source: str = "constitution") -> Constitution:
    """Read a constitution from YAML text; ``source`` stands for the file in messages.

    Raises:
        ConstitutionError: The text is no YAML or breaks a rule.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConstitutionError(source, [_syntax_problem(error, text)]) from error
    except RecursionError as error:  # the composer recurses once a level
        problem = Problem(text="expected at most a few levels of nesting, got hundreds")
        raise ConstitutionError(source, [problem]) from error
    if root is None:
        problem = Problem(
            text="expected a constitution, got an empty file: it needs name, version and principles"
        )
        raise ConstitutionError(source, [problem])
    return _checked(root, source)


def from_dict(data: Mapping[str, Any], *, source: str = "constitution") -> Constitution:
    """Build a constitution from the same form in Python values, as ``to_dict`` makes it.

    Raises:
        ConstitutionError: The values break a rule; keys are named, lines are not known.
    """
    try:
        # the order of answers is the order in which the judge is shown them
        root = yaml.representer.SafeRepresenter(sort_keys=False).represent_data(dict(data))
    except yaml.YAMLError as error:  # a value that no YAML can hold
        problem = Problem(text=f"expected texts, numbers, lists and mappings only: {error}")
        raise ConstitutionError(source, [problem]) from error
    return _checked(root, source)


def to_dict(constitution: Constitution) -> dict[str, Any]:
    """The constitution in the form of a file; keys that hold their default are left out."""
    provenance = constitution.provenance
    exemplars = {
        "critiques": [_critique(e) for e in constitution.critique_exemplars],
        "comparisons": [_comparison(e) for e in constitution.comparison_exemplars],
    }
    return _without_empty(
        {
            "name": constitution.name,
            "version": constitution.version,
            "description": constitution.description,
            "provenance": _without_empty(
                {
                    "author": provenance.author,
                    "source": provenance.source,
                    "license": provenance.license,
                }
            ),
            "principles": [_principle(p) for p in constitution.principles],
            "exemplars": _without_empty(exemplars),
        }
    )


def dump(constitution: Constitution) -> str:
    """The constitution as YAML text, such that ``loads(dump(c)) == c``."""
    text: str = yaml.safe_dump(to_dict(constitution), sort_keys=False, allow_unicode=True, width=96)
    return text


def _checked(root: yaml.Node, source: str) -> Constitution:
    constitution, problems = schema.read(root)
    if problems:
        raise ConstitutionError(source, sorted(problems, key=lambda problem: problem.line or 0))
    return constitution


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        wrong = f"expected YAML, got the control character {text[error.position]!r}: remove it"
        return Problem(line=line, text=wrong)
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(text=f"expected YAML: {error}")
    mark = error.problem_mark
    told = f"{error.context}: {error.problem}" if error.context else error.problem
    return Problem(
        line=None if mark is None else mark.line + 1,
        text=f"expected YAML: {told}; check indentation, colons and quotes",
    )


def _principle(principle: Principle) -> dict[str, Any]:
    question = principle.absolute_question
    return _without_empty(
        {
            "id": principle.id,
            "weight": None if principle.weight == 1.0 else principle.weight,
            "tags": list(principle.tags),
            "critique_request": principle.critique_request,
            "revision_request": principle.revision_request,
            "comparison_instruction": principle.comparison_instruction,
            "absolute_question": question
            and {"text": question.text, "answers": dict(question.answers)},
            "priority": principle.priority,
            "questions": list(principle.questions),
            "exemplars": [
                {key: value for key, value in _critique(e).items() if key != "principle"}
                for e in principle.exemplars
            ],
            "provenance": principle.provenance,
        }
    )


def _critique(exemplar: CritiqueExemplar) -> dict[str, Any]:
    return _without_empty(
        {
            "conversation": _conversation(exemplar.conversation),
            "response": exemplar.response,
            "principle": exemplar.principle,
            "answers": list(exemplar.answers),
            "critique": exemplar.critique,
            "revision": exemplar.revision,
        }
    )


def _comparison(exemplar: ComparisonExemplar) -> dict[str, Any]:
    return {
        "conversation": _conversation(exemplar.conversation),
        "response_a": exemplar.response_a,
        "response_b": exemplar.response_b,
        "principle": exemplar.principle,
        "answer": exemplar.answer,
    }


def _conversation(conversation: Conversation) -> Any:
    if len(conversation.messages) == 1:
        return conversation.messages[0].content
    return conversation.as_dicts()


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}
