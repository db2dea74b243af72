"""``solon keys``: every key of a configuration with its default and what it means.

What is printed is each field's own documentation, which errors quote too; there is no second text
that could differ from it. Knows nothing of any field.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from solon.trainer.config import RunConfig, model_in
from solon.trainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key that a configuration may set."""

    key: str
    """Dotted, as in an override; a list's items share their list's name."""
    required: bool
    default: Any
    """In YAML's types; None where the key is required or a section without a default of its own."""
    is_section: bool
    """Whether there are keys below it."""
    text: str
    """What it means, with unit and range."""


def show(keys: Sequence[Key], *, as_json: bool) -> None:
    """Print them, as lines for people or as one JSON list."""
    if as_json:
        print(json.dumps([asdict(one) for one in keys], ensure_ascii=False))
        return
    for one in keys:
        print(_shown(one))


def below(prefix: str) -> list[Key]:
    """The keys of a section, or the one key; all of them for ``""``.

    Raises:
        ConfigError: There is no such key; the message has the nearest one.
    """
    known = list(_keys(RunConfig, ""))
    found = [one for one in known if f"{one.key}.".startswith(f"{prefix}.") or not prefix]
    if not found:
        close = difflib.get_close_matches(prefix, [one.key for one in known], n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"expected a key of a configuration, got {prefix!r}{meant}")
    return found


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        section = model_in(field.annotation)
        yield _key(f"{prefix}{name}", field, section)
        if section is not None:
            yield from _keys(section, f"{prefix}{name}.")


def _key(key: str, field: FieldInfo, section: type[BaseModel] | None) -> Key:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        # the keys below say it
        default = None
    if isinstance(default, tuple):
        default = list(default)
    return Key(
        key=key,
        required=field.is_required(),
        default=default,
        is_section=section is not None,
        text=inspect.cleandoc(field.description or ""),
    )


def _shown(one: Key) -> str:
    value = "required" if one.required else json.dumps(one.default, ensure_ascii=False)
    head = f"{one.key}:" if one.is_section and one.default is None else f"{one.key}: {value}"
    lines = [f"  {line}" for line in one.text.splitlines()]
    return "\n".join([head, *lines])
