"""What every prompt file becomes, whatever its format. Knows nothing of files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from solon.chat import Conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Two responses to one conversation, of which the file says which is better."""

    chosen: str
    rejected: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """One row of a prompt file."""

    conversation: Conversation
    """Ends with the user; no turn is empty."""
    row: str
    """Where in its file: ``line 3``, ``row 3`` (of a table) or ``item 3`` (of a list), from 1."""
    id: str | None = None
    """As the file gives it; None where it gives none that is unique beyond it."""
    category: str | None = None
    """What the file calls the kind of prompt; None where it does not say."""
    pairs: tuple[Answers, ...] = ()
    """What the file says of responses to it; empty where the format has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledPair:
    """Two responses to one conversation, of which the better is known."""

    id: str
    """As the file gives it, else derived from the conversation."""
    conversation: Conversation
    chosen: str
    rejected: str
    category: str | None = None
    """As ``Imported.category``."""
    row: str = ""
    """As ``Imported.row``."""


def content_id(conversation: Conversation) -> str:
    """16 hex digits of SHA-256 over the turns: the same conversation has the same id anywhere."""
    canonical = json.dumps(conversation.as_dicts(), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def place_of(file: object, row: str) -> str:
    """A row's place for messages: ``file:3``, which editors open there, or ``file: row 3``."""
    kind, _, number = row.partition(" ")
    return f"{file}:{number}" if kind == "line" else f"{file}: {row}"
