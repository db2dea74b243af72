"""Options of the ``solon prompts`` commands, checked. Knows nothing of what they do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

    from solon.trainer.prompt_settings import PromptSource


def source_of(**values: Any) -> PromptSource:
    """A source as a configuration would have it.

    Raises:
        CallError: A value is wrong; the text names its option.
    """
    from pydantic import ValidationError  # noqa: PLC0415

    from solon.trainer.prompt_settings import PromptSource  # noqa: PLC0415

    try:
        return PromptSource.model_validate(values)
    except ValidationError as error:
        raise refused(error) from error


def refused(error: ValidationError) -> Exception:
    """What the commands raise of options that a configuration would refuse."""
    said = error.errors(include_url=False)[0]
    message = str(said["msg"]).removeprefix("Value error, ")
    if not said["loc"]:
        return call_error(message)
    key = str(said["loc"][0]).replace("_", "-")
    return call_error(f"--{key}: {message}, got {said['input']!r}")


def positive(text: str) -> int:
    """A whole number, 1 or more.

    Raises:
        ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """A number above 0 and up to 1.

    Raises:
        ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text!r}")
    return value


def call_error(text: str) -> Exception:
    """What the commands raise of a wrong argument."""
    from solon.trainer.errors import CallError  # noqa: PLC0415

    return CallError(text)
