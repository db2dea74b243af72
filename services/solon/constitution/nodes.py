"""A place in a YAML document: reads values of a wanted type and reports whatever else it finds.

A reader that reports returns a value of the right type with nothing in it, so that reading goes
on and one pass finds every problem. Whoever starts the reading raises if anything was reported;
such a value therefore never leaves the package.

Works on YAML nodes rather than on Python values, since only nodes know their lines, show a key
that is given twice, and keep the text of an unquoted ``Yes``. Knows nothing of constitutions.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Collection, Iterator

import yaml

from solon.constitution.errors import Problem

_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"


class Place:
    """A node, its dotted key, its line, and the list that problems go to."""

    def __init__(
        self, node: yaml.Node, problems: list[Problem], key: str = "", line: int | None = None
    ) -> None:
        """``line``: from 1; by default the node's own."""
        self.node = node
        self.key = key
        self.line = _line(node) if line is None else line
        self._problems = problems

    def report(self, text: str, *, under: str = "") -> None:
        """Note a problem here, or at the key ``under`` of this mapping."""
        key = _join(self.key, under) if under else self.key
        self._problems.append(Problem(line=self.line, key=key, text=text))

    def fields(self, required: Collection[str], optional: Collection[str]) -> dict[str, Place]:
        """The values of a mapping whose keys are known.

        Reports a key that is unknown, repeated, missing or not plain text.
        """
        known = [*required, *optional]
        found: dict[str, Place] = {}
        for name, place in self.entries():
            if name in known:
                found[name] = place
            else:
                place.report(f"unknown key{_suggestion(name, known)}; known: {', '.join(known)}")
        if isinstance(self.node, yaml.MappingNode):
            for name in required:
                if name not in found:
                    self.report("required, but missing: add it", under=name)
        return found

    def entries(self) -> Iterator[tuple[str, Place]]:
        """Keys, as they are written, and values of a mapping; reports a repeated key."""
        if not isinstance(self.node, yaml.MappingNode):
            self.report(f"expected a mapping of keys to values, got {self.shown}")
            return
        first: dict[str, int | None] = {}
        for key, value in self.node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(f"expected a plain text as key, got {_shown(key)}")
                continue
            place = Place(value, self._problems, _join(self.key, key.value), _line(key))
            if key.value in first:
                before = first[key.value]
                where = "" if before is None else f", first on line {before}"
                place.report(f"key given twice{where}: remove one")
                continue
            if key.tag == _BOOL and key.start_mark is None:
                place.report("expected a text as key, got a bool: quote it where it was read")
            first[key.value] = place.line
            yield key.value, place

    def items(self, minimum: int, maximum: int) -> list[Place]:
        """The elements of a list of ``minimum`` to ``maximum``."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.report(f"expected a list, got {self.shown}")
            return []
        count = len(self.node.value)
        if not minimum <= count <= maximum:
            self.report(f"expected {minimum} to {maximum} entries, got {count}")
        return [
            Place(item, self._problems, f"{self.key}[{index}]")
            for index, item in enumerate(self.node.value)
        ]

    def prose(self, maximum: int) -> str:
        """Text of 1 to ``maximum`` characters, without the white space around it."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != _TEXT:
            self.report(f"expected a text, got {self.shown}{self._quoting_hint()}")
            return ""
        return self.bounded(self.node.value.strip(), maximum)

    def label(self, maximum: int) -> str:
        """A short text; what YAML takes for a number, a date or a bool is taken as written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag == _NULL:
            self.report(f"expected a short text, got {self.shown}")
            return ""
        return self.bounded(self.node.value.strip(), maximum)

    def number(self) -> float:
        """A finite number, written without quotes."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.style is not None:
            self.report(f"expected a number, got {self.shown}: write it without quotes")
            return 0.0
        try:
            # YAML 1.1 takes 1e-3 for a text and 1:30 for ninety; people mean what float() reads
            value = float(self.node.value.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self.report(f"expected a number, got {self.shown}")
            return 0.0
        if not math.isfinite(value):
            self.report(f"expected a finite number, got {self.shown}")
            return 0.0
        return value

    def whole(self, minimum: int, maximum: int) -> int:
        """A whole number in a closed range, written without quotes."""
        before = self.reported
        value = self.number()
        if self.reported == before and not (value.is_integer() and minimum <= value <= maximum):
            self.report(
                f"expected a whole number from {minimum:,} to {maximum:,}, got {self.shown}"
            )
            return minimum
        return int(value)

    def bounded(self, text: str, maximum: int) -> str:
        """``text``; reports one that is empty, longer than ``maximum`` or no Unicode."""
        if not text:
            self.report("expected a text, got an empty one: write it, or remove the key")
        elif len(text) > maximum:
            self.report(f"expected at most {maximum:,} characters, got {len(text):,}: shorten it")
        elif any("\ud800" <= character <= "\udfff" for character in text):
            # an escape can make one; neither UTF-8 nor protobuf can hold it
            self.report(f"expected Unicode, got half a surrogate pair in {self.shown}: remove it")
        return text

    @property
    def reported(self) -> int:
        """How many problems the document has so far."""
        return len(self._problems)

    @property
    def is_text(self) -> bool:
        """Whether the value is a text."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == _TEXT

    @property
    def shown(self) -> str:
        """The value as messages show it."""
        return _shown(self.node)

    def _quoting_hint(self) -> str:
        is_value = isinstance(self.node, yaml.ScalarNode) and self.node.tag != _NULL
        return ": put it in quotes" if is_value else ": write it, or remove the key"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if node.tag == _NULL:
        return "nothing"
    return reprlib.repr(node.value) if node.tag == _TEXT else str(node.value)


def _line(node: yaml.Node) -> int | None:
    mark = node.start_mark
    # nodes made from Python values rather than from a file have no marks
    return None if mark is None else int(mark.line) + 1


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""
