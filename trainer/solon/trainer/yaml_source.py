"""YAML with the line of every key, and ``key.path=value`` overrides on top of it.

Knows nothing of what the keys mean; ``config`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from solon.trainer.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and indices of lists, from the top."""


@dataclass(frozen=True, kw_only=True)
class YamlSource:
    """A parsed file, and where each of its values came from."""

    name: str
    """The file, as the user named it."""
    data: dict[str, Any]
    """Plain mappings, lists and scalars."""
    places: Mapping[KeyPath, str]
    """Key path -> ``file:line``, or ``command line`` for an override."""

    def place(self, path: KeyPath) -> str:
        """Where the value at ``path`` came from: the nearest enclosing place that is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name


def parse(text: str, name: str) -> YamlSource:
    """Parse a YAML document whose top is a mapping.

    Raises:
        ConfigError: Not YAML, not a mapping, a key twice, or a key that is not text.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name}: expected `key: value` lines at the top, got {text[:40]!r}")
    places: dict[KeyPath, str] = {}
    data = _construct(loader, node, (), places, name)
    return YamlSource(name=name, data=data, places=places)


def override(
    source: YamlSource, assignments: Sequence[str], *, place: str = "command line"
) -> YamlSource:
    """Apply ``key.path=value`` assignments, in order; values are YAML.

    Args:
        source: What they are applied to.
        assignments: The overrides.
        place: Where they come from, for messages.

    Raises:
        ConfigError: No ``=``, a value that is not YAML, or a path through something that has no
            keys.
    """
    data = _copied(source.data)
    places = dict(source.places)
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{place}: expected key.path=value, got {assignment!r}; "
                "for example revisions.rounds=2"
            )
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"{place}: {key}: not a YAML value: {raw!r}") from error
        path = _assign(data, key, value, place)
        for known in [p for p in places if p[: len(path)] == path]:
            del places[known]
        places[path] = place
    return YamlSource(name=source.name, data=data, places=places)


def merged(below: YamlSource, above: YamlSource) -> YamlSource:
    """One source on another: mappings are merged, anything else is replaced."""
    return YamlSource(
        name=above.name,
        data=_merged(below.data, above.data),
        places={**below.places, **above.places},
    )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    data = _copied(dict(below))
    for key, value in above.items():
        under = data.get(key)
        both = isinstance(under, dict) and isinstance(value, dict)
        data[key] = _merged(under, value) if both else _copied(value)
    return dict(data)


def _construct(
    loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, places: dict[KeyPath, str], name: str
) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(loader, node, path, places, name)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            places[(*path, index)] = f"{name}:{item.start_mark.line + 1}"
            items.append(_construct(loader, item, (*path, index), places, name))
        return items
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        line = node.start_mark.line + 1
        raise ConfigError(f"{name}:{line}: not a valid YAML value: {error}") from error


def _construct_mapping(
    loader: yaml.SafeLoader,
    node: yaml.MappingNode,
    path: KeyPath,
    places: dict[KeyPath, str],
    name: str,
) -> dict[str, Any]:
    loader.flatten_mapping(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        place = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError(f"{place}: expected a text key, got {key!r}; put it in quotes")
        if key in mapping:
            first = places[(*path, key)]
            raise ConfigError(f"{place}: key {key!r} was given before, at {first}; keep one")
        places[(*path, key)] = place
        mapping[key] = _construct(loader, value_node, (*path, key), places, name)
    return mapping


def _assign(data: dict[str, Any], dotted: str, value: Any, place: str) -> KeyPath:
    holder: Any = data
    path: list[str | int] = []
    parts = dotted.split(".")
    for position, part in enumerate(parts):
        key = _key_in(holder, part, ".".join(parts[:position]), f"{place}: {dotted}")
        path.append(key)
        if position == len(parts) - 1:
            holder[key] = value
        else:
            if isinstance(holder, dict) and holder.get(part) is None:
                holder[part] = {}
            holder = holder[key]
    return tuple(path)


def _key_in(holder: Any, part: str, prefix: str, where: str) -> str | int:
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list):
        if part.isdecimal() and int(part) < len(holder):
            return int(part)
        raise ConfigError(
            f"{where}: {prefix} is a list of {len(holder)}; "
            f"expected an index from 0 to {len(holder) - 1}, got {part!r}"
        )
    raise ConfigError(f"{where}: {prefix} is {holder!r}, which has no keys")


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
