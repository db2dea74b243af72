"""Methods: named parts of a configuration that a file builds on, ``base: paper``.

A method says how, and a file of the user's what with: constitution, models, prompts. Knows nothing
of what the keys mean; ``config`` does.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from solon.trainer.errors import ConfigError
from solon.trainer.yaml_source import YamlSource, merged, parse

KEY = "base"


def names(directory: Path) -> tuple[str, ...]:
    """The methods in a directory, in alphabetical order."""
    return tuple(sorted(path.stem for path in directory.glob("*.yaml")))


def extend(source: YamlSource, directory: Path) -> YamlSource:
    """A file on top of the method that its key ``base`` names; without one, the file itself.

    Raises:
        ConfigError: There is no such method.
    """
    if KEY not in source.data:
        return source
    name, known = source.data[KEY], names(directory)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"{source.place((KEY,))}: {KEY}: expected one of {', '.join(known)}, "
            f"got {name!r}.{meant}"
        )
    method = parse((directory / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")
    own = {key: value for key, value in source.data.items() if key != KEY}
    return merged(method, YamlSource(name=source.name, data=own, places=source.places))
