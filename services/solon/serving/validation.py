"""Walks a request and finds every field that breaks its rule, before any work is spent.

The rules themselves are in ``rules``; here are their kinds and the walk. A violation names a field
by its path and says what was expected; it shows numbers and sizes, never a text. Knows nothing of
calls, constitutions on the server or engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Required:
    """A message that must be there."""


@dataclass(frozen=True, slots=True)
class Specified:
    """An enum that must not be its UNSPECIFIED value."""

    def complaint(self, value: int) -> str | None:
        """See ``Rule``."""
        return None if value else "expected a value, got UNSPECIFIED"


FieldRule = Rule | Each | Required
"""What a field must be."""

MessageRule = Callable[[Any], Iterable[tuple[str, str]]]
"""What a message must be as a whole: from it to (path below it, description) pairs."""


@dataclass(frozen=True, slots=True)
class _Field:
    """What there is to look at in a field, found once."""

    name: str
    has_presence: bool
    is_repeated: bool
    required: bool
    counts: tuple[Count, ...]
    rules: tuple[Rule, ...]
    for_each: tuple[Rule, ...]
    below: _Shape | None
    """Of a message's fields."""
    known: Mapping[int, str]
    """An enum's values."""
    is_flat: bool
    """Whether there is nothing to look at within the value."""


@dataclass(slots=True)
class _Shape:
    """What there is to look at in a message."""

    fields: tuple[_Field, ...] = ()
    rules: tuple[MessageRule, ...] = ()


class RuleBook:
    """Every rule of the contract."""

    def __init__(
        self,
        fields: Mapping[str, tuple[FieldRule, ...]],
        messages: Mapping[str, tuple[MessageRule, ...]],
    ) -> None:
        """Hold messages to these rules.

        Args:
            fields: By full name, such as ``solon.v1.Message.content``.
            messages: By full name, such as ``solon.v1.Conversation``.
        """
        self.fields = fields
        self.messages = messages
        # every request is held to them: descriptors are slow to ask
        self._shapes: dict[str, _Shape] = {}

    def violations(self, message: Message) -> list[Violation]:
        """What is wrong in the message and all below it, in the order of the fields."""
        found: list[Violation] = []
        _walk(message, self._shape(cast("Descriptor", message.DESCRIPTOR)), "", found)
        return found

    def _shape(self, descriptor: Descriptor) -> _Shape:
        shape = self._shapes.get(descriptor.full_name)
        if shape is None:
            # known before its fields are: a message may be below itself
            shape = self._shapes[descriptor.full_name] = _Shape(
                rules=self.messages.get(descriptor.full_name, ())
            )
            shape.fields = tuple(
                field for one in descriptor.fields if (field := self._field(one)) is not None
            )
        return shape

    def _field(self, field: FieldDescriptor) -> _Field | None:
        rules = self.fields.get(field.full_name, ())
        if not (rules or field.message_type or field.enum_type):
            return None
        values = field.enum_type.values if field.enum_type else ()
        for_each = tuple(rule.rule for rule in rules if isinstance(rule, Each))
        return _Field(
            name=field.name,
            has_presence=field.has_presence,
            is_repeated=field.is_repeated,
            required=any(isinstance(rule, Required) for rule in rules),
            counts=tuple(rule for rule in rules if isinstance(rule, Count)),
            rules=tuple(r for r in rules if not isinstance(r, Count | Each | Required)),
            for_each=for_each,
            below=self._shape(field.message_type) if field.message_type else None,
            known={value.number: value.name for value in values},
            is_flat=not (for_each or field.message_type or field.enum_type),
        )


def _walk(message: Message, shape: _Shape, path: str, found: list[Violation]) -> None:
    crowded = False
    for field in shape.fields:
        if field.has_presence and not message.HasField(field.name):
            if field.required:
                found.append(Violation(_at(path, field.name), "required, but not set"))
            continue
        value = getattr(message, field.name)
        if field.counts and (text := _complaint(value, field.counts)) is not None:
            # looked into no further: a request has room for millions of items
            crowded = True
            found.append(Violation(_at(path, field.name), text))
            continue
        if field.rules and (text := _complaint(value, field.rules)) is not None:
            found.append(Violation(_at(path, field.name), text))
        if field.is_flat:
            continue
        here = _at(path, field.name)
        if field.is_repeated:
            for index, item in enumerate(value):
                _look_into(item, field, f"{here}[{index}]", found)
        else:
            _look_into(value, field, here, found)
    if crowded:
        return
    for rule in shape.rules:
        found += [Violation(_at(path, below), text) for below, text in rule(message)]


def _look_into(value: Any, field: _Field, path: str, found: list[Violation]) -> None:
    """A field's value, or an item of a list's."""
    if (text := _complaint(value, field.for_each)) is not None:
        found.append(Violation(path, text))
    if field.below is not None:
        _walk(value, field.below, path, found)
    elif field.known and value not in field.known:
        known = ", ".join(name for number, name in field.known.items() if number)
        found.append(Violation(path, f"expected one of {known}, got {value}"))


def _complaint(value: Any, rules: Sequence[Rule]) -> str | None:
    """The first one."""
    for rule in rules:
        if (text := rule.complaint(value)) is not None:
            return text
    return None


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _span(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low else f"at most {high:,}"
