"""From what the client raises to what an engine may raise.

Knows nothing of what was asked, but for the two numbers that a context is exceeded by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time

from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    OpenAIError,
    RateLimitError,
)

from solon.engine.base import (
    BackendUnavailable,
    ContentFiltered,
    ContextExceeded,
    EngineError,
    EngineFailed,
    InvalidInput,
    Overloaded,
)
from solon.engine.openai.options import OpenAIOptions

_MOST_TEXT = 300
_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 3600.0
_MOST_NAMES = 10
_FILTERED = ("content_filter", "content_policy_violation")
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
"""What was fine when the engine started: a key was revoked, or a model taken away, since."""
_MENDABLE = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
"""What another request would not meet."""
# of OpenAI, vLLM, SGLang and llama.cpp
_TOO_LONG = re.compile(r"context[ _-](?:length|size|window)", re.IGNORECASE)
_CONTEXT = re.compile(r"context (?:length|size|window)\D{0,40}?(\d+)", re.IGNORECASE)
_PROMPT = re.compile(
    r"(?:contains|has|resulted in|\() *(?P<least>at least )?(?P<tokens>\d+)"
    r" *(?:input tokens|tokens|in the messages)",
    re.IGNORECASE,
)


def engine_error(
    error: OpenAIError, *, key: str, timeout: float, max_tokens: int, context_tokens: int
) -> EngineError:
    """What an engine raises for it.

    Args:
        error: Raised by the client, after its last attempt.
        key: Is cut out of whatever the endpoint says.
        timeout: Seconds that the endpoint could be silent.
        max_tokens: Of the answer that was asked for.
        context_tokens: Of the model; 0 if unknown.
    """
    if isinstance(error, APITimeoutError):
        return BackendUnavailable(
            f"the endpoint said nothing for {timeout:g} s: raise the engine option timeout if "
            "answers take longer"
        )
    if isinstance(error, APIConnectionError):
        # the client's own text says no more than that
        cause = type(error.__cause__ or error).__name__
        return BackendUnavailable(f"the endpoint cannot be reached ({cause})")
    said = what_it_said(error, key)
    if isinstance(error, APIStatusError):
        return _of_status(error, said, max_tokens=max_tokens, context_tokens=context_tokens)
    if isinstance(error, APIError):  # within a stream
        return BackendUnavailable(f"the endpoint broke the answer off: {said}")
    return EngineFailed(f"the client of the endpoint failed: {said}")


def mistake(
    status: int, said: str, own: OpenAIOptions, model: str, known: Sequence[str]
) -> InvalidInput | None:
    """What whoever starts the engine did wrong, if that is what a status means.

    Args:
        status: Of the endpoint's answer.
        said: Its words.
        own: The engine's options.
        model: The name that was asked for.
        known: Names that the endpoint lists.
    """
    where = f"the endpoint {own.base_url}"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        name = "api_key_file" if own.api_key_file else "api_key_env"
        place = getattr(own, name)
        if not place:
            return InvalidInput(
                f"engine option 'api_key_env': {where} asks for a key ({status}: {said}): name the "
                "environment variable that holds one, or its file with api_key_file"
            )
        return InvalidInput(
            f"engine option {name!r}: {where} refuses the key that {place!r} holds ({status}: "
            f"{said}): put in one that is valid there"
        )
    if status == HTTPStatus.NOT_FOUND:
        fix = "is its base_url what stands before /chat/completions?"
        if known:
            fix = f"it has {', '.join(map(repr, known[:_MOST_NAMES]))}"
        return InvalidInput(f"model: {where} has no {model!r} ({status}: {said}): {fix}")
    return None


def what_it_said(error: OpenAIError, key: str) -> str:
    """The endpoint's words, in one line, without the key."""
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, Mapping) else body
    if not isinstance(text, str) or not text.strip():
        text = getattr(error, "message", "") or str(error) or type(error).__name__
    line = " ".join(text.split())
    if key:
        line = line.replace(key, "***")
    return line if len(line) <= _MOST_TEXT else f"{line[: _MOST_TEXT - 3]}..."


def _of_status(
    error: APIStatusError, said: str, *, max_tokens: int, context_tokens: int
) -> EngineError:
    status = error.status_code
    if isinstance(error, RateLimitError):
        return _of_limit(error, said)
    if error.code in _FILTERED:
        return ContentFiltered(f"the endpoint's content filter refuses the conversation: {said}")
    if status in _MENDABLE:
        too_long = error.code == "context_length_exceeded" or _TOO_LONG.search(said)
        exceeded = _exceeded(said, max_tokens, context_tokens) if too_long else None
        return exceeded or InvalidInput(f"the endpoint refuses the request ({status}): {said}")
    if status in _REFUSED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return BackendUnavailable(f"the endpoint does not serve ({status}): {said}")
    return EngineFailed(f"the endpoint refuses the request ({status}): {said}")


def _of_limit(error: RateLimitError, said: str) -> EngineError:
    if error.code == "insufficient_quota":
        return BackendUnavailable(f"the account at the endpoint has nothing left: {said}")
    return Overloaded(
        f"the endpoint's rate limit: {said}", retry_after=_retry_after(error.response.headers)
    )


def _exceeded(said: str, max_tokens: int, context_tokens: int) -> ContextExceeded | None:
    """With the endpoint's numbers; without, the prompt has what does not fit at the least."""
    found = _CONTEXT.search(said)
    context = int(found[1]) if found else context_tokens
    if not context:
        return None
    told = _PROMPT.search(said)
    fewest = max(1, context - max_tokens + 1)
    tokens = int(told["tokens"]) if told else fewest
    # numbers that would fit are of something else, such as both together
    is_whole = told is not None and not told["least"] and tokens + max_tokens > context
    return ContextExceeded(
        prompt_tokens=max(tokens, fewest),
        max_tokens=max_tokens,
        context_tokens=context,
        at_least=not is_whole,
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint asks to wait, a number or a date; 1 where it does not say."""
    said = headers.get("retry-after-ms")
    scale = 1e-3 if said else 1.0
    said = said or headers.get("retry-after", "")
    try:
        return _bounded(float(said) * scale)
    except ValueError:
        pass
    try:
        return _bounded(parsedate_to_datetime(said).timestamp() - time())
    except (TypeError, ValueError):
        return 1.0


def _bounded(seconds: float) -> float:
    return min(_LONGEST_RETRY, max(_SHORTEST_RETRY, seconds))
