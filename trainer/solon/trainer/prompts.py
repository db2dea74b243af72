"""Prompts: read from files or drawn from the sandbox, with ids, without duplicates.

Knows nothing of what a prompt is used for, and never looks at the sandbox's oracle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from solon.chat import Conversation
from solon.constitution.selection import derive_seed
from solon.trainer.errors import PromptError
from solon.trainer.prompt_settings import SANDBOX, PromptSource, SandboxKind

Split = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One conversation that asks for a response."""

    id: str
    """Unique in its set; derived from the content where the source gives none."""
    conversation: Conversation
    """Ends with the user."""
    source: str
    """Where it comes from, as in the configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Distinct prompts, in the order of their sources."""

    prompts: tuple[Prompt, ...]
    duplicates: int = 0
    """Prompts that were left out because the same conversation came before."""


def content_id(conversation: Conversation) -> str:
    """16 hex digits of SHA-256 over the turns: the same conversation has the same id anywhere."""
    canonical = json.dumps(conversation.as_dicts(), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def load_prompts(
    sources: Sequence[PromptSource], *, split: Split, seed: int, purpose: str
) -> PromptSet:
    """Read all sources of one purpose.

    Args:
        sources: Where from.
        split: Which part of the sandbox's world; files have no split.
        seed: The run's seed.
        purpose: Key of the sources in the configuration; two purposes draw different prompts.

    Raises:
        PromptError: A file that is missing or broken, by line; one id for two conversations.
    """
    kept: dict[str, Prompt] = {}
    seen: set[str] = set()
    duplicates = 0
    for index, source in enumerate(sources):
        drawn = _read(source, split, derive_seed(seed, "prompts", purpose, index))
        for place, prompt in drawn:
            content = content_id(prompt.conversation)
            if content in seen:
                duplicates += 1
                continue
            if prompt.id in kept:
                raise PromptError(
                    f"{place}: id {prompt.id!r} was given before to another conversation "
                    f"(in {kept[prompt.id].source}); ids must be unique, or left out"
                )
            seen.add(content)
            kept[prompt.id] = prompt
    return PromptSet(prompts=tuple(kept.values()), duplicates=duplicates)


def refuse_overlap(training: Mapping[str, PromptSet], evaluation: Mapping[str, PromptSet]) -> None:
    """Hold that no held-out conversation is trained on.

    Args:
        training: Configuration key -> prompts.
        evaluation: Configuration key -> prompts.

    Raises:
        PromptError: Some are; the text names the keys, the number and one of them.
    """
    for held_key, held in evaluation.items():
        contents = {content_id(p.conversation) for p in held.prompts}
        for key, trained in training.items():
            both = [p for p in trained.prompts if content_id(p.conversation) in contents]
            if both:
                raise PromptError(
                    f"prompts.{held_key}: {len(both)} held-out prompts are also in prompts.{key}, "
                    f"so that their evaluation would measure memory; remove them from one of the "
                    f"two. The first: {both[0].conversation.messages[-1].content[:80]!r}"
                )


def _read(source: PromptSource, split: Split, seed: int) -> Iterator[tuple[str, Prompt]]:
    if source.sandbox_kind is not None:
        yield from _from_sandbox(source, source.sandbox_kind, split, seed)
        return
    count = 0
    for place, conversation, given in _from_file(source.source):
        if source.count is not None and count == source.count:
            return
        count += 1
        made = given or content_id(conversation)
        yield place, Prompt(id=made, conversation=conversation, source=source.source)
    if count == 0:
        raise PromptError(f"{source.source}: expected at least one prompt, got an empty file")
    if source.count is not None and count < source.count:
        raise PromptError(
            f"{source.source}: expected {source.count} prompts, as its count says, got {count}; "
            "lower count, or leave it out to use all"
        )


def _from_sandbox(
    source: PromptSource, kind: SandboxKind, split: Split, seed: int
) -> Iterator[tuple[str, Prompt]]:
    from solon import sandbox  # noqa: PLC0415 - files need no sandbox

    assert source.count is not None, "checked with the configuration"
    try:
        draws = sandbox.prompts(kind, split=split, n=source.count, seed=seed)
    except ValueError as error:
        raise PromptError(f"{source.source}: count: {error}") from error
    for drawn in draws:
        prompt = Prompt(id=drawn.id, conversation=drawn.conversation, source=source.source)
        yield source.source, prompt


def _from_file(name: str) -> Iterable[tuple[str, Conversation, str | None]]:
    path = Path(name)
    if path.suffix.lower() == ".txt":
        return _from_text(_found(path))
    if path.suffix.lower() not in _TABLES:
        raise PromptError(
            f"{name}: expected a .jsonl, .parquet or .txt file, or a sandbox source such as "
            f"{SANDBOX}harmful"
        )
    rows = read_rows(path, required=("prompt",), optional=("id",))
    return ((place, *_from_record(row, place)) for place, row in rows)


def read_rows(
    path: Path, *, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """The rows of a .jsonl or .parquet file, each with the place it stands at.

    Rows of a .jsonl file are whatever JSON they are.

    Raises:
        PromptError: The file is not there, cannot be read, or lacks a required column.
    """
    reader = _TABLES.get(_found(path).suffix.lower())
    if reader is None:
        raise PromptError(f"{path}: expected a .jsonl or .parquet file")
    yield from reader(path, required, optional)


def _found(path: Path) -> Path:
    if not path.is_file():
        raise PromptError(f"{path}: no such file")
    return path


def _from_text(path: Path) -> Iterator[tuple[str, Conversation, str | None]]:
    for number, line in _lines(path):
        yield f"{path}:{number}", Conversation.from_user(line), None


def _jsonl_rows(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(
                f"{place}: not valid JSON: {error.msg}, at column {error.colno}"
            ) from error


def _parquet_rows(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - the configuration is checked without it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        # as the run directory's parts are read
        table = pq.read_table(path, use_threads=False, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path}: cannot be read as Parquet: {error}") from error
    if missing := [name for name in required if name not in table.column_names]:
        raise PromptError(
            f"{path}: expected a column {missing[0]!r}, got {', '.join(table.column_names)}"
        )
    wanted = [name for name in (*required, *optional) if name in table.column_names]
    row = 0
    for batch in table.select(wanted).to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            row += 1
            yield f"{path}: row {row}", record


_TABLES = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 after line {number}: {error.reason}") from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from error


def _from_record(record: Any, place: str) -> tuple[Conversation, str | None]:
    if not isinstance(record, dict) or "prompt" not in record:
        raise PromptError(
            f'{place}: expected {{"prompt": a text or a list of messages, "id": optional}}, '
            f"got {_shown(record)}"
        )
    given = record.get("id")
    if given is not None and not isinstance(given, str | int):
        raise PromptError(f"{place}: id: expected a text or a whole number, got {_shown(given)}")
    conversation = conversation_of(record["prompt"], place)
    return conversation, None if given is None else str(given)


def conversation_of(prompt: Any, place: str) -> Conversation:
    """A row's prompt, a text or messages that end with the user's.

    Raises:
        PromptError: It is neither; the text begins with ``place``.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError(f"{place}: prompt: expected a text, got an empty one")
        return Conversation.from_user(prompt)
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt):
        raise PromptError(
            f'{place}: prompt: expected a text or a list of {{"role", "content"}}, '
            f"got {_shown(prompt)}"
        )
    try:
        conversation = Conversation.from_dicts(prompt)
    except ValueError as error:
        raise PromptError(f"{place}: prompt: {error}") from error
    if conversation.messages[-1].role != "user":
        raise PromptError(
            f"{place}: prompt: expected the last message to be the user's, got the "
            f"{conversation.messages[-1].role}'s; leave out the response"
        )
    empty = [i for i, m in enumerate(conversation.messages) if not m.content.strip()]
    if empty:
        raise PromptError(f"{place}: prompt: messages[{empty[0]}].content is empty")
    return conversation


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
