"""Prompts: read from files or drawn from the sandbox, with ids, without duplicates.

Knows nothing of what a prompt is used for, and never looks at the sandbox's oracle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, overload

from solon.chat import Conversation, Message
from solon.constitution.selection import derive_seed
from solon.trainer.errors import PromptError
from solon.trainer.importers import Answers, Importer, content_id, place_of
from solon.trainer.prompt_settings import FormatName, PromptSource, SandboxKind
from solon.trainer.spool import TextSet, temporary_database

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
    row: str | None = None
    """Where in its file: ``line 3``, ``row 3`` or ``item 3``, from 1. None: not of a file."""
    category: str | None = None
    """What the source calls this kind of prompt; None where it does not say."""
    pairs: tuple[Answers, ...] = ()
    """What the source says of responses to it; empty where it says nothing."""
    judged_by: tuple[str, ...] = ()
    """Tags of the principles by which responses to it are compared. Empty: by all."""


class Prompts(Sequence[Prompt]):
    """Prompts of different ids, in their order. Any number of them: they are not in memory."""

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        """Start with these.

        Raises:
            ValueError: Two have one id.
        """
        self._database = temporary_database()
        run = self._database.execute
        run("CREATE TABLE prompts (place INTEGER PRIMARY KEY, id TEXT UNIQUE, rest TEXT)")
        self._size = 0
        for prompt in prompts:
            self.append(prompt)

    def append(self, prompt: Prompt) -> None:
        """Put in one more.

        Raises:
            ValueError: Its id is there.
        """
        if self.has(prompt.id):
            raise ValueError(f"id: expected one that is not there yet, got {prompt.id!r}")
        row = (self._size, prompt.id, json.dumps(_rest(prompt)))
        self._database.execute("INSERT INTO prompts VALUES (?, ?, ?)", row)
        self._size += 1

    @overload
    def __getitem__(self, place: int) -> Prompt: ...

    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...

    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        """By its place, or several."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(self._size))]
        wanted = range(self._size)[place]
        (found,) = self._database.execute("SELECT id, rest FROM prompts WHERE place = ?", (wanted,))
        return _prompt(*found)

    def __iter__(self) -> Iterator[Prompt]:
        """In their order."""
        for name, rest in self._database.execute("SELECT id, rest FROM prompts ORDER BY place"):
            yield _prompt(name, rest)

    def __len__(self) -> int:
        """How many there are."""
        return self._size

    def get(self, name: str) -> Prompt | None:
        """The one of this id."""
        query = self._database.execute("SELECT id, rest FROM prompts WHERE id = ?", (name,))
        found = query.fetchone()
        return None if found is None else _prompt(*found)

    def ids(self) -> Iterator[str]:
        """Of all of them, in their order."""
        for (name,) in self._database.execute("SELECT id FROM prompts ORDER BY place"):
            yield name

    def has(self, name: str) -> bool:
        """Whether one has this id."""
        query = self._database.execute("SELECT 1 FROM prompts WHERE id = ?", (name,))
        return query.fetchone() is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Distinct prompts, in the order of their sources."""

    prompts: Prompts
    duplicates: int = 0
    """Prompts that were left out because the same conversation came before."""
    unusable: int = 0
    """Rows that were left out because they hold no prompt, as their source allows."""
    divided: int = 0
    """Prompts that were left to the other side, of training and evaluation."""


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
    kept, seen = Prompts(), TextSet()
    duplicates = unusable = 0
    for index, source in enumerate(sources):
        reader = SourceReader(source, split, derive_seed(seed, "prompts", purpose, index))
        for prompt in reader:
            if not seen.add(content_id(prompt.conversation)):
                duplicates += 1
                continue
            if (before := kept.get(prompt.id)) is not None:
                raise PromptError(
                    f"{_place(prompt)}: id {prompt.id!r} was given before to another conversation "
                    f"(in {before.source}); ids must be unique, or left out"
                )
            kept.append(prompt)
        unusable += reader.unusable
    return PromptSet(prompts=kept, duplicates=duplicates, unusable=unusable)


def source_digest(name: str) -> str:
    """SHA-256 (hex) of the file of a source that is no sandbox source.

    Raises:
        PromptError: It cannot be read any more.
    """
    path = PromptSource(source=name).path
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PromptError(f"{name}: cannot be read any more: {error.strerror}") from error


class SourceReader:
    """The prompts of one source, row by row, as they are; read once."""

    def __init__(self, source: PromptSource, split: Split = "train", seed: int = 0) -> None:
        """Look at nothing yet; ``split`` and ``seed`` are of sandbox sources."""
        self._source = source
        self._split: Split = split
        self._seed = seed
        self.unusable = 0
        """Rows that hold no prompt and were left out; known at the end, like what follows."""
        self.excluded = 0
        """Rows that ``where`` left out."""
        self.format: FormatName | None = None
        """What the rows of a file are."""

    def __iter__(self) -> Iterator[Prompt]:
        """Read.

        Raises:
            PromptError: The source is missing, broken, or has fewer prompts than its count.
        """
        kind = self._source.sandbox_kind
        yield from self._from_file() if kind is None else self._from_sandbox(kind)

    def _from_file(self) -> Iterator[Prompt]:
        source = self._source
        importer = Importer(
            source.path,
            file_format=source.format,
            where=source.where,
            skip_unusable=source.skip_unusable,
        )
        count = 0
        for made in islice(importer, source.count):
            count += 1
            yield Prompt(
                id=made.id or content_id(made.conversation),
                conversation=made.conversation,
                source=source.source,
                row=made.row,
                category=made.category,
                pairs=made.pairs,
                judged_by=source.judged_by,
            )
        self.unusable, self.excluded = importer.unusable, importer.excluded
        self.format = importer.format.name if importer.format else None
        if count == 0:
            raise PromptError(f"{source.source}: expected at least one prompt, got none")
        if source.count is not None and count < source.count:
            raise PromptError(
                f"{source.source}: expected {source.count} prompts, as its count says, got "
                f"{count}; lower count, or leave it out to use all"
            )

    def _from_sandbox(self, kind: SandboxKind) -> Iterator[Prompt]:
        from solon import sandbox  # noqa: PLC0415 - files need no sandbox

        name, count = self._source.source, self._source.count
        assert count is not None, "checked with the configuration"
        try:
            draws = sandbox.prompts(kind, split=self._split, n=count, seed=self._seed)
        except ValueError as error:
            raise PromptError(f"{name}: count: {error}") from error
        for drawn in draws:
            yield Prompt(
                id=drawn.id,
                conversation=drawn.conversation,
                source=name,
                category=drawn.category,
                judged_by=self._source.judged_by,
            )


def _rest(prompt: Prompt) -> list[object]:
    """All but the id, as JSON."""
    return [
        [[turn.role, turn.content] for turn in prompt.conversation.messages],
        prompt.source,
        prompt.row,
        prompt.category,
        [[pair.chosen, pair.rejected] for pair in prompt.pairs],
        prompt.judged_by,
    ]


def _prompt(name: str, rest: str) -> Prompt:
    turns, source, row, category, pairs, judged_by = json.loads(rest)
    return Prompt(
        id=name,
        conversation=Conversation(tuple(Message(*turn) for turn in turns)),
        source=source,
        row=row,
        category=category,
        pairs=tuple(Answers(chosen=chosen, rejected=rejected) for chosen, rejected in pairs),
        judged_by=tuple(judged_by),
    )


def _place(prompt: Prompt) -> str:
    return place_of(prompt.source, prompt.row) if prompt.row else prompt.source
