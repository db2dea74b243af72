"""Faults that the scripted engine makes on purpose, so that others can be tested against them.

Knows nothing of scripts and time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from solon.engine.base import (
    BackendUnavailable,
    EngineError,
    EngineFailed,
    InvalidInput,
    Overloaded,
)


class Fault(Enum):
    """What becomes of a call."""

    NONE = "none"
    NAN = "nan"
    """Every log-probability is NaN."""
    EMPTY = "empty"
    """The generated text is empty."""


_ERRORS: Mapping[str, Callable[[int], EngineError]] = {
    "failed": lambda call: EngineFailed(f"the script fails call {call}"),
    "overloaded": lambda call: Overloaded(f"the script refuses call {call}", retry_after=0.05),
    "unavailable": lambda call: BackendUnavailable(f"the script drops call {call}"),
}
_KINDS = (*_ERRORS, "nan", "empty")


@dataclass(slots=True)
class Faults:
    """Counts calls and says which of them go wrong."""

    every: int
    """Each call whose number this divides goes wrong; 0 is off."""
    kind: str
    """``failed``, ``overloaded``, ``unavailable``, ``nan`` or ``empty``."""
    crash_after: int
    """Kill the process with SIGKILL at the call after so many; 0 is off."""
    calls: int = 0

    def __post_init__(self) -> None:
        """Check the kind.

        Raises:
            InvalidInput: An unknown kind.
        """
        if self.kind not in _KINDS:
            raise InvalidInput(
                f"engine option 'fail_with': expected one of {', '.join(_KINDS)}, got {self.kind!r}"
            )

    def next_call(self) -> Fault:
        """Count a call.

        Raises:
            EngineError: This call fails; the type is that of ``kind``.
        """
        self.calls += 1
        if self.crash_after and self.calls > self.crash_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.every or self.calls % self.every:
            return Fault.NONE
        if self.kind in _ERRORS:
            raise _ERRORS[self.kind](self.calls)
        return Fault(self.kind)
