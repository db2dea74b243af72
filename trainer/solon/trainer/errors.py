"""What can go wrong in a run, and whose turn it is to do something about it.

Exceptions::

    TrainerError
    ├── UserError             you can put it right: exit code 2, one message, no traceback
    │   ├── ConfigError       a configuration file, an override, or what they name
    │   ├── PromptError       a prompt file or source
    │   ├── RunDirectoryError the run directory exists, is in use, or is not what it should be
    │   ├── ServiceError      a service is not up, or cannot do what the run needs
    │   ├── StoreError        the disk is full, read-only, or holds a damaged file
    │   └── CallError         an argument of a call to a running service
    └── StageFailed           the models' answers are not good enough to go on: exit code 1

Knows nothing of the command line; ``cli`` turns these into exit codes.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Anything that ends a run with a message rather than a traceback."""

    exit_code: int = 1
    """Exit code of the ``solon`` command."""


class UserError(TrainerError):
    """Something outside the program has to be changed; the message says what."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration cannot be used. One line a problem: place, key, value, fix."""


class PromptError(UserError):
    """Prompts cannot be read or used."""


class RunDirectoryError(UserError):
    """The run directory exists, is in use, or lacks what a stage needs."""


class ServiceError(UserError):
    """A service does not answer, or cannot do what the run needs of it."""


class StoreError(UserError):
    """The run directory cannot be written or read. What was written before is whole."""


class CallError(UserError):
    """A call to a running service cannot be made of the arguments."""


class StageFailed(TrainerError):
    """Too many of the models' answers are unusable; the message has the counts."""
