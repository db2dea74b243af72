"""The failures that end the ``solon`` command with a message instead of a traceback.

Knows nothing of where they come from.
"""

from __future__ import annotations

from solon.client.errors import ServerError, SolonError
from solon.constitution import ConstitutionError
from solon.tracing.export import TracingError
from solon.trainer.errors import TrainerError
from solon.trainer.launch.errors import LaunchError

EXPECTED = (TrainerError, ConstitutionError, LaunchError, SolonError, TracingError)
"""Everything else is a defect, and shows its traceback."""

_LATE = (
    "raise services.call_timeout, or ask for less in a call (chains, principles, max_tokens), and "
    "go on with --resume"
)
_ADVICE = {
    "CONTEXT_EXCEEDED": "lower max_tokens in the configuration, or shorten the prompts",
    "CONTENT_FILTERED": "take the prompt out, or use an endpoint without such a filter",
    "UNAVAILABLE": "when the service is up again, go on with --resume",
    "NOT_SERVING": "when the service is up again, go on with --resume",
    "ENGINE_FAILED": "the service's log, in the run's logs/, says more",
    "DEADLINE": _LATE,
    "DEADLINE_EXCEEDED": _LATE,
}


_CALL_ADVICE = {
    "UNAVAILABLE": "is the address right, and does the server speak TLS where you do?",
    "NOT_SERVING": "try again when `solon status` says SERVING",
    "NOT_AUTHORIZED": "the token is taken from the environment variable SOLON_TOKEN",
    "CONTEXT_EXCEEDED": "shorten the conversation",
    "DEADLINE": "allow more time with --timeout",
    "DEADLINE_EXCEEDED": "allow more time with --timeout",
}
"""The same for a call by hand, where there is no run to go on with."""


def exit_code(error: BaseException) -> int:
    """2 for what the user can put right, 1 for all else."""
    if isinstance(error, TrainerError):
        return error.exit_code
    if isinstance(error, LaunchError):
        return 2 if error.user_error else 1
    if isinstance(error, ServerError):
        return 1
    return 2


def explain(error: BaseException, *, in_run: bool = True) -> str:
    """The message, with what to do where the error itself does not say it."""
    text = str(error)
    if isinstance(error, SolonError):
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        known = _ADVICE if in_run else _CALL_ADVICE
        advice = known.get(error.reason or error.code.name)
        text = f"a service refused or failed: {text}{notes}" + (f"; {advice}" if advice else "")
    return text
