"""What goes wrong with processes that the coordinator starts.

::

    LaunchError          a service does not start, or does not stay up
    └── StageFailed      a training stage ended without its result
"""

from __future__ import annotations


class LaunchError(Exception):
    """A process that the run needs does not run."""

    def __init__(self, message: str, *, user_error: bool = False) -> None:
        """``user_error``: whether the child blamed its input (exit code 2), not itself."""
        self.user_error = user_error
        """Whether the person who started the run can put it right in its configuration."""
        super().__init__(message)


class StageFailed(LaunchError):
    """A training stage ended without its result."""
