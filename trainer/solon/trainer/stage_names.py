"""The stages of a run, by name. Knows nothing of what they do; imports nothing."""

from __future__ import annotations

from typing import Literal

Stage = Literal["preflight", "revisions", "sft", "preferences", "reward", "rl", "evaluate"]
STAGES: tuple[Stage, ...] = (
    "preflight",
    "revisions",
    "sft",
    "preferences",
    "reward",
    "rl",
    "evaluate",
)
"""In the order of a run."""
