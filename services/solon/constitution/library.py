"""Where shipped constitutions are, and what a name on a command line means.

In a wheel they are packaged in ``library/`` beside this module; a checkout reads its own
``constitutions/``, since copies would go stale. Reads no file (see ``loader``).
"""

from __future__ import annotations

import difflib
from pathlib import Path

from solon.constitution.errors import ConstitutionError, Problem

_PACKAGED = Path(__file__).with_name("library")
_CHECKOUT = Path(__file__).resolve().parents[3] / "constitutions"


def names() -> tuple[str, ...]:
    """The shipped constitutions, in alphabetical order."""
    return tuple(sorted(path.stem for path in _directory().glob("*.yaml")))


def resolve(name_or_path: str | Path) -> Path:
    """The file that is meant: a shipped constitution's name, or a path.

    A shipped name wins over a file of the same name without a suffix; ``./core`` is that file.

    Raises:
        ConstitutionError: Neither a shipped name nor an existing path.
    """
    text = str(name_or_path)
    shipped = names()
    if isinstance(name_or_path, str) and text in shipped:
        return _directory() / f"{text}.yaml"
    path = Path(name_or_path)
    if text and path.exists():
        return path
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    suggestion = f": did you mean {close[0]!r}?" if close else ""
    raise ConstitutionError(
        text or "constitution",
        [
            Problem(
                text=f"expected a constitution's file or a shipped name, got {text!r}"
                f"{suggestion}; shipped: {', '.join(shipped)}"
            )
        ],
    )


def _directory() -> Path:
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
