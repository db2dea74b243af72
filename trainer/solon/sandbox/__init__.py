"""The embedded world: a small model whose every answer an oracle can read.

A grammar of plain English in which people ask for things (``vocabulary``, ``world``, ``asking``),
assistants answer (``responses``), principles are put in words (``ideas``, ``wordings``), and an
oracle says what an answer is. The model that ships in ``weights/`` was pretrained on that world
by ``python -m solon.sandbox.pretrain``; it is used like any other model, by its path.

Imports no torch. Only evaluation asks the oracle.
"""

from __future__ import annotations

from pathlib import Path

from solon.sandbox.asking import SandboxPrompt, prompts
from solon.sandbox.oracle import Preference, better, read, requested
from solon.sandbox.responses import Outcome

__all__ = [
    "Outcome",
    "Preference",
    "SandboxPrompt",
    "better",
    "model_path",
    "prompts",
    "read",
    "requested",
]


def model_path() -> Path:
    """The directory of the model that ships, in Hugging Face format."""
    return Path(__file__).parent / "weights"
