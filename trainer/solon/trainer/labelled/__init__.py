"""Responses that are known to be harmful or harmless: by which a critic is measured.

From a file of ``{"prompt", "response", "harmful"}``, from the sandbox's world, or the small set
that ships in ``written.jsonl``: two answers to most of its prompts, one of them harmful, so that
the prompt alone tells nothing; and prompts that only sound harmful, or only sound harmless. Knows
nothing of critics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from solon.chat import Conversation, Message
from solon.trainer.config import LABELLED_NAMES
from solon.trainer.errors import PromptError
from solon.trainer.importers import content_id
from solon.trainer.importers.rows import Row, read_rows
from solon.trainer.importers.turns import conversation_of, shown

WRITTEN, SANDBOX = LABELLED_NAMES
"""Stand for the set that ships, and for a draw from the sandbox's world."""

_SHIPPED = Path(__file__).with_name("written.jsonl")
_COLUMNS = ("prompt", "response", "harmful")
_SANDBOX_COUNT = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One response, and whether it is harmful."""

    id: str
    """Of the conversation and the response: the same two have the same id anywhere."""
    conversation: Conversation
    """Ends with the user."""
    response: str
    harmful: bool


def load_labelled(source: str, *, count: int | None, seed: int) -> tuple[Labelled, ...]:
    """Read labelled responses; those that are there twice count once.

    Args:
        source: ``written``, ``sandbox``, or the path of a .jsonl, .json, .csv or .parquet file.
        count: How many: the first of a file, a draw from the sandbox. None: all of a file, 60 of
            the sandbox.
        seed: Of that draw.

    Raises:
        PromptError: The file cannot be read, a row is wrong, one response has both labels, or all
            have the same.
    """
    found: dict[str, Labelled] = {}
    for one in islice(_read(source, count, seed), count):
        if found.setdefault(one.id, one).harmful != one.harmful:
            raise PromptError(
                f"{source}: the response {shown(one.response)} is labelled harmful and harmless; "
                "keep one of the two rows"
            )
    if len({one.harmful for one in found.values()}) < 2:
        raise PromptError(
            f"{source}: expected harmful and harmless responses, got {len(found)} of one kind; "
            "telling the two apart is what is measured"
        )
    return tuple(found.values())


def _read(source: str, count: int | None, seed: int) -> Iterable[Labelled]:
    if source == SANDBOX:
        return _from_sandbox(_SANDBOX_COUNT if count is None else count, seed)
    return map(_from_row, read_rows(_SHIPPED if source == WRITTEN else Path(source)))


def _from_sandbox(count: int, seed: int) -> Iterator[Labelled]:
    from solon.sandbox.labelled import labelled  # noqa: PLC0415 - files need no sandbox

    try:
        drawn = labelled(count, seed)
    except ValueError as error:
        raise PromptError(f"preflight.count: {error}") from error
    for one in drawn:
        yield _labelled(one.prompt.conversation, one.response, harmful=one.harmful)


def _from_row(row: Row) -> Labelled:
    columns = row.value
    if not isinstance(columns, dict) or not set(_COLUMNS) <= columns.keys():
        raise PromptError(
            f'{row.place}: expected {{"prompt", "response", "harmful": true or false}}, got '
            f"{shown(columns)}"
        )
    response, harmful = columns["response"], columns["harmful"]
    if not isinstance(response, str) or not response.strip():
        raise PromptError(f"{row.place}: response: expected a text, got {shown(response)}")
    if isinstance(harmful, str) and harmful.lower() in ("true", "false"):
        # a .csv file has texts only
        harmful = harmful.lower() == "true"
    if not isinstance(harmful, bool):
        raise PromptError(f"{row.place}: harmful: expected true or false, got {shown(harmful)}")
    conversation = conversation_of(columns["prompt"], f"{row.place}: prompt")
    return _labelled(conversation, response, harmful=harmful)


def _labelled(conversation: Conversation, response: str, *, harmful: bool) -> Labelled:
    whole = conversation.then(Message("assistant", response))
    return Labelled(
        id=content_id(whole), conversation=conversation, response=response, harmful=harmful
    )
