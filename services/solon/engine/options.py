"""What an engine is started with.

Knows nothing of command lines and of what the engines do with the values; imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from solon.engine.base import InvalidInput

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How to start an engine; the same for every kind of engine."""

    model: str
    """A directory or a hub name. The scripted engine only repeats it."""
    weight_version: str = "initial"
    """Name of the weights that ``model`` holds."""
    device: str = "auto"
    """``auto`` (CUDA if there is any), ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: str = "auto"
    """``auto`` (float32 on a CPU, bfloat16 on a GPU), or a torch dtype's name."""
    threads: int | None = None
    """CPU threads of the model, >= 1; ``None`` leaves torch's default."""
    max_batch: int = 64
    """Most sequences that run together, >= 1."""
    queue_capacity: int = 8192
    """Sequences that may wait, >= 1; more are refused with ``Overloaded``."""
    token_capacity: int = 4_194_304
    """Tokens of prompts and of answers to be made that may wait, >= 1; more are refused alike."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Options of one kind of engine. An unknown name is refused."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InvalidInput: A number is below 1.
        """
        for name, value in (
            ("threads", 1 if self.threads is None else self.threads),
            ("max_batch", self.max_batch),
            ("queue_capacity", self.queue_capacity),
            ("token_capacity", self.token_capacity),
        ):
            if value < 1:
                raise InvalidInput(f"{name}: expected a number >= 1, got {value!r}")


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "str | None": str,
    "int": int,
    "float": float,
    "float | None": float,
    "bool": _flag,
}


def read_extra(cls: type[OptionsT], engine: str, extra: Mapping[str, str]) -> OptionsT:
    """Build an engine's own options, a dataclass of texts, numbers and flags, from ``extra``.

    Raises:
        InvalidInput: An unknown name, or a value that is no number or flag where one is expected.
    """
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in extra.items():
        if name not in known:
            raise InvalidInput(
                f"engine option {name!r}: the {engine} engine has no such option; "
                f"it knows {', '.join(sorted(known))}"
            )
        try:
            values[name] = _PARSERS[known[name]](text)
        except ValueError:
            raise InvalidInput(
                f"engine option {name!r}: expected {known[name]}, got {text!r}"
            ) from None
    return cls(**values)
