"""Engines: how text is made and scored.

``create`` makes one by name. Importing this package imports no torch: each engine is imported
when it is created.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from solon.engine.base import Engine, InvalidInput
from solon.engine.options import EngineOptions

__all__ = ["COMPUTING", "ENGINES", "Engine", "EngineOptions", "create"]

ENGINES = ("transformers", "vllm", "openai", "scripted")
"""The names that ``create`` knows."""
COMPUTING = frozenset({"transformers"})
"""Those that keep the interpreter busy that they run in."""


def create(name: str, options: EngineOptions) -> Engine:
    """Make an engine. It is usable after ``await engine.start()``.

    Raises:
        InvalidInput: An unknown name, an option that the engine does not know (the text says which
            ones there are), or an engine whose extra is not installed.
    """
    if name == "transformers":
        with _heavy_import():
            from solon.engine.hf.engine import TransformersEngine  # noqa: PLC0415
        return TransformersEngine(options)
    if name == "vllm":
        with _heavy_import():
            from solon.engine.vllm.engine import VllmEngine  # noqa: PLC0415
        return VllmEngine(options)
    if name == "openai":
        return _openai(options)
    if name == "scripted":
        from solon.engine.scripted.engine import ScriptedEngine  # noqa: PLC0415

        return ScriptedEngine(options)
    raise InvalidInput(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")


def _openai(options: EngineOptions) -> Engine:
    try:
        with _heavy_import():
            from solon.engine.openai.engine import OpenAIEngine  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise InvalidInput(
            "engine: 'openai' needs the official client: pip install 'solon[openai]'"
        ) from error
    return OpenAIEngine(options)


@contextmanager
def _heavy_import() -> Iterator[None]:
    """Without the garbage collector: it takes a sixth of the time, and what is imported stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
