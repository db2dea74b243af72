"""The constitutions that a server knows by name, and which of their principles a call uses.

Knows nothing of protobuf or gRPC, except that a request's field is blamed by its path.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from solon.constitution import Constitution, Principle, draw, load, resolve
from solon.serving.errors import (
    DigestMismatch,
    InvalidFields,
    UnknownConstitution,
    UnknownPrinciple,
)


class Purpose(Enum):
    """What principles are wanted for; the value says what they must have."""

    REVISION = "a revision request"
    COMPARISON = "a comparison instruction"
    SCORING = "an absolute question"
    ASSESSMENT = "a critique request or an absolute question"

    def usable(self, constitution: Constitution) -> tuple[Principle, ...]:
        """The principles that can serve this purpose."""
        match self:
            case Purpose.REVISION:
                return constitution.for_revision
            case Purpose.COMPARISON:
                return constitution.for_comparison
            case Purpose.SCORING:
                return constitution.for_scoring
            case Purpose.ASSESSMENT:
                return constitution.for_assessment


@dataclass(frozen=True, kw_only=True, slots=True)
class ByIds:
    """These principles, in this order."""

    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BySample:
    """A weighted draw without replacement."""

    count: int = 1
    seed: int | None = None
    """None: the server draws one."""


@dataclass(frozen=True, slots=True)
class All:
    """Every usable principle."""


Selection = ByIds | BySample | All


class Library:
    """Constitutions by name."""

    def __init__(self, constitutions: Iterable[Constitution] = ()) -> None:
        """Names are distinct.

        Raises:
            ValueError: Two have the same name.
        """
        self._by_name: dict[str, Constitution] = {}
        for constitution in constitutions:
            if constitution.name in self._by_name:
                raise ValueError(
                    f"two constitutions are named {constitution.name!r}: "
                    "give --constitution once for each, or rename one"
                )
            self._by_name[constitution.name] = constitution

    @classmethod
    def read(cls, names_or_paths: Iterable[str]) -> Library:
        """Load every constitution that the command line names.

        Raises:
            ConstitutionError: A file cannot be used.
            ValueError: Two have the same name.
        """
        return cls(load(resolve(one)) for one in names_or_paths)

    def __iter__(self) -> Iterator[Constitution]:
        """In the order given."""
        return iter(self._by_name.values())

    def get(self, name: str) -> Constitution:
        """The constitution of this name.

        Raises:
            UnknownConstitution: There is none.
        """
        if name not in self._by_name:
            raise UnknownConstitution(name, tuple(self._by_name))
        return self._by_name[name]


def check_digest(constitution: Constitution, expected: str | None) -> None:
    """Hold the constitution to the digest that the caller expects, if any.

    Raises:
        DigestMismatch: It has another.
    """
    if expected is not None and constitution.digest != expected:
        raise DigestMismatch(constitution.name, expected=expected, actual=constitution.digest)


def choose(
    selection: Selection, constitution: Constitution, purpose: Purpose
) -> tuple[Principle, ...]:
    """The principles that a selection comes to, at least one.

    Raises:
        UnknownPrinciple: An id is not one of a usable principle, or none is usable.
        InvalidFields: A sample larger than the number of usable principles.
    """
    usable = usable_for(purpose, constitution)
    match selection:
        case ByIds(ids=ids):
            return tuple(_by_id(one, usable, purpose) for one in ids)
        case BySample(count=count, seed=seed):
            if count > len(usable):
                text = f"expected 1 to {len(usable)}, the usable principles, got {count}"
                raise InvalidFields.of("principles.sample.count", text)
            return draw(usable, count, new_seed() if seed is None else seed)
        case All():
            return usable


def choose_one(selection: Selection, constitution: Constitution, purpose: Purpose) -> Principle:
    """The one principle that a selection comes to.

    Raises:
        InvalidFields: It comes to several.
        UnknownPrinciple: As ``choose``.
    """
    chosen = choose(selection, constitution, purpose)
    if len(chosen) != 1:
        text = f"expected a selection of exactly one principle, got {len(chosen)}"
        raise InvalidFields.of("principles", text)
    return chosen[0]


def usable_for(purpose: Purpose, constitution: Constitution) -> tuple[Principle, ...]:
    """The principles that can serve the purpose, at least one.

    Raises:
        UnknownPrinciple: There is none.
    """
    usable = purpose.usable(constitution)
    if not usable:
        raise UnknownPrinciple("", (), field="constitution", needs=purpose.value)
    return usable


def new_seed() -> int:
    """A seed for a request that brings none, in [0, 2**64)."""
    return secrets.randbits(64)


def _by_id(principle_id: str, usable: Sequence[Principle], purpose: Purpose) -> Principle:
    for principle in usable:
        if principle.id == principle_id:
            return principle
    known = [p.id for p in usable]
    raise UnknownPrinciple(principle_id, known, field="principles.ids.ids", needs=purpose.value)
