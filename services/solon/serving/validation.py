"""Walks a request and finds every field that breaks its rule, before any work is spent.

The rules themselves are in ``rules``; here are their kinds and the walk. A violation names a field
by its path and says what was expected; it shows numbers and sizes, never a text. Knows nothing of
calls, constitutions on the server or engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from solon.serving.errors import Violation


class Rule(Protocol):
    """What a field's value must be."""

    def complaint(self, value: Any) -> str | None:
        """What is wrong with the value; None if nothing is."""


@dataclass(frozen=True, slots=True)
class Length:
    """A text of so many characters."""

    low: int
    high: int

    def complaint(self, value: str) -> str | None:
        """See ``Rule``."""
        if self.low <= len(value) <= self.high:
            return None
        return f"expected {_span(self.low, self.high)} characters, got {len(value):,}"


@dataclass(frozen=True, slots=True)
class Count:
    """A list of so many items."""

    low: int
    high: int

    def complaint(self, value: Sequence[object]) -> str | None:
        """See ``Rule``."""
        if self.low <= len(value) <= self.high:
            return None
        return f"expected {_span(self.low, self.high)} items, got {len(value):,}"


@dataclass(frozen=True, slots=True)
class Within:
    """A number in a closed range. NaN is in none."""

    low: float
    high: float

    def complaint(self, value: float) -> str | None:
        """See ``Rule``."""
        if self.low <= value <= self.high:
            return None
        return f"expected {self.low:,} to {self.high:,}, got {value!r}"


@dataclass(frozen=True, slots=True)
class Above:
    """A finite number above a bound, and at most ``high``."""

    low: float
    high: float = math.inf

    def complaint(self, value: float) -> str | None:
        """See ``Rule``."""
        if self.low < value <= self.high and math.isfinite(value):
            return None
        top = "and finite" if math.isinf(self.high) else f"and up to {self.high:,}"
        return f"expected above {self.low:,} {top}, got {value!r}"


@dataclass(frozen=True, slots=True)
class Finite:
    """A number that is neither infinite nor NaN."""

    def complaint(self, value: float) -> str | None:
        """See ``Rule``."""
        return None if math.isfinite(value) else f"expected a finite number, got {value!r}"


@dataclass(frozen=True, slots=True)
class Matches:
    """A text of a fixed form."""

    pattern: re.Pattern[str]
    form: str
    """The form in words."""

    def complaint(self, value: str) -> str | None:
        """See ``Rule``."""
        if self.pattern.fullmatch(value):
            return None
        return f"expected {self.form}, got {len(value):,} characters that are not of that form"


@dataclass(frozen=True, slots=True)
class Distinct:
    """A list without repetitions."""

    def complaint(self, value: Sequence[object]) -> str | None:
        """See ``Rule``."""
        repeated = len(value) - len(set(value))
        return f"expected distinct items, got {repeated:,} repetitions" if repeated else None


@dataclass(frozen=True, slots=True)
class Each:
    """Every item of a list obeys a rule of its own."""

    rule: Rule

    def complaint(self, value: object) -> str | None:
        """The walk reports items one by one; the list as a whole is never at fault."""
        return None


@dataclass(frozen=True, slots=True)
class Required:
    """A message that must be there. The walk looks for it; one that is there is fine."""

    def complaint(self, value: object) -> str | None:
        """See ``Rule``."""
        return None


@dataclass(frozen=True, slots=True)
class Specified:
    """An enum that must not be its UNSPECIFIED value."""

    def complaint(self, value: int) -> str | None:
        """See ``Rule``."""
        return None if value else "expected a value, got UNSPECIFIED"


MessageRule = Callable[[Any], Iterable[tuple[str, str]]]
"""What a message must be as a whole: from it to (path below it, description) pairs."""


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Every rule of the contract."""

    fields: Mapping[str, tuple[Rule, ...]]
    """By full name, such as ``solon.v1.Message.content``."""
    messages: Mapping[str, tuple[MessageRule, ...]]
    """By full name, such as ``solon.v1.Conversation``."""

    def violations(self, message: Message) -> list[Violation]:
        """Every broken rule in the message and all below it, in the order of the fields."""
        return list(self._walk(message, ""))

    def _walk(self, message: Message, path: str) -> Iterator[Violation]:
        descriptor = cast("Descriptor", message.DESCRIPTOR)
        crowded = False
        for field in descriptor.fields:
            here = f"{path}.{field.name}" if path else field.name
            if (text := self._crowd(message, field)) is not None:
                crowded = True
                yield Violation(here, text)
            else:
                yield from self._field(message, field, here)
        if crowded:
            return
        for rule in self.messages.get(descriptor.full_name, ()):
            for below, text in rule(message):
                yield Violation(".".join(filter(None, (path, below))), text)

    def _crowd(self, message: Message, field: FieldDescriptor) -> str | None:
        """What is wrong with the number of items, if anything is.

        Such a list is looked into no further: a request has room for millions of items.
        """
        rules = self.fields.get(field.full_name, ())
        counts = (rule for rule in rules if isinstance(rule, Count))
        complaints = (rule.complaint(getattr(message, field.name)) for rule in counts)
        return next(filter(None, complaints), None)

    def _field(self, message: Message, field: FieldDescriptor, path: str) -> Iterator[Violation]:
        rules = self.fields.get(field.full_name, ())
        if field.has_presence and not message.HasField(field.name):
            if any(isinstance(rule, Required) for rule in rules):
                yield Violation(path, "required, but not set")
            return
        value = getattr(message, field.name)
        for rule in rules:
            if (text := rule.complaint(value)) is not None:
                yield Violation(path, text)
        if not field.is_repeated:
            yield from self._one(field, value, path, ())
            return
        for_each = tuple(rule.rule for rule in rules if isinstance(rule, Each))
        for index, item in enumerate(value):
            yield from self._one(field, item, f"{path}[{index}]", for_each)

    def _one(
        self, field: FieldDescriptor, value: Any, path: str, rules: Sequence[Rule]
    ) -> Iterator[Violation]:
        for rule in rules:
            if (text := rule.complaint(value)) is not None:
                yield Violation(path, text)
        if field.message_type is not None:
            yield from self._walk(value, path)
        elif field.enum_type is not None and value not in field.enum_type.values_by_number:
            known = ", ".join(v.name for v in field.enum_type.values if v.number)
            yield Violation(path, f"expected one of {known}, got {value}")


def _span(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low else f"at most {high:,}"
