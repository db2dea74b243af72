"""What is wrong with a constitution, said so that its author can mend it.

Exceptions::

    ConstitutionError    a user's mistake: everything that is wrong with one file, at once

Knows nothing of YAML or of the rules themselves (see ``schema``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong."""

    line: int | None = None
    """Line of the file, from 1; ``None`` where there is no file."""
    key: str = ""
    """Dotted key, such as ``principles[2].weight``; empty for the document as a whole."""
    text: str
    """What was expected, what was found, and the fix."""


class ConstitutionError(Exception):
    """A constitution cannot be used. The text names file, line, key, value and fix, a line each."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """``source``: the file, or what stands for it in messages."""
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(_sentence(source, problem) for problem in self.problems))


def _sentence(source: str, problem: Problem) -> str:
    place = source if problem.line is None else f"{source}:{problem.line}"
    return f"{place}: {problem.key}: {problem.text}" if problem.key else f"{place}: {problem.text}"
