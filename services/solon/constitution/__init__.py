"""Constitutions: principles in YAML, what is drawn from them, and the prompts they become.

Pure: no gRPC, no torch. ``types`` is the vocabulary, ``loader`` reads and writes files, ``library``
knows the shipped ones, ``importer`` reads other people's, ``selection`` draws principles,
``linter`` warns, ``prompts`` writes text.
"""

from solon.constitution.errors import ConstitutionError, Problem
from solon.constitution.importer import import_files
from solon.constitution.library import names, resolve
from solon.constitution.linter import Finding, lint
from solon.constitution.loader import dump, from_dict, load, loads, to_dict
from solon.constitution.selection import by_priority, derive_seed, draw, tagged
from solon.constitution.types import (
    AbsoluteQuestion,
    ComparisonExemplar,
    Constitution,
    CritiqueExemplar,
    Principle,
    Provenance,
)

__all__ = [
    "AbsoluteQuestion",
    "ComparisonExemplar",
    "Constitution",
    "ConstitutionError",
    "CritiqueExemplar",
    "Finding",
    "Principle",
    "Problem",
    "Provenance",
    "by_priority",
    "derive_seed",
    "draw",
    "dump",
    "from_dict",
    "import_files",
    "lint",
    "load",
    "loads",
    "names",
    "resolve",
    "tagged",
    "to_dict",
]
