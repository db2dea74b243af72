"""How to reach an endpoint, what it can do, what it charges: the engine's own options.

The key never stands among them: they name the variable or the file that holds it, so that neither a
command line nor a log shows it. Knows nothing of requests.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from solon.engine.base import InvalidInput, Usage

DIALECTS = ("auto", "vllm", "openai")
SCORINGS = ("auto", "vllm", "top_logprobs", "none")
LENGTHS = ("auto", "max_completion_tokens", "max_tokens")
OURS = frozenset(
    {
        *("model", "messages", "prompt", "n", "stream", "stream_options", "stop", "seed"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
        *("add_generation_prompt", "continue_final_message", "return_token_ids"),
    }
)
"""Fields of a request that the engine sets itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIOptions:
    """The openai engine's own options (``--engine-option``)."""

    base_url: str = ""
    """The endpoint's URL up to ``/chat/completions``, such as ``http://localhost:8000/v1``.
    Required: nothing that people say is sent anywhere by default."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key. Empty: no key is sent, unless
    ``api_key_file`` names one."""
    api_key_file: str = ""
    """Path of a file that holds the key; read again with every request, so that it may change."""
    allow_plain_key: bool = False
    """Send the key to another machine without TLS, too: for networks that encrypt themselves."""
    dialect: str = "auto"
    """``vllm``: a vLLM server, of whose extensions use is made; ``openai``: the standard alone;
    ``auto``: what the endpoint's list of models shows."""
    scoring: str = "auto"
    """Where log-probabilities of continuations come from. ``vllm``: the whole of each, token by
    token; ``top_logprobs``: the likeliest first tokens that the endpoint tells; ``none``: nowhere;
    ``auto``: the first of these that works."""
    top_logprobs: int = 20
    """How many of the likeliest tokens to ask for, 2 to 20; an endpoint may allow fewer."""
    max_tokens_field: str = "auto"
    """Which field bounds an answer: ``max_completion_tokens``, ``max_tokens``, or ``auto``: the
    first of them that the endpoint heeds."""
    reasoning_tokens: int = 0
    """Added to the bound of every answer, for models whose hidden reasoning counts, >= 0."""
    fixed_sampling: bool = False
    """Send neither temperature nor top_p nor seed: for models that refuse them. How answers are
    drawn is then the endpoint's own affair."""
    context_tokens: int = 0
    """The model's context. 0: what the endpoint tells, or unknown."""
    timeout: float = 600.0
    """Seconds that the endpoint may be silent in one attempt, > 0."""
    retries: int = 4
    """Attempts after the first at what a rate limit, an error of the server or a lost connection
    ended, 0 to 100. They wait as Retry-After says, or from 0.5 to 8 seconds."""
    body: str = ""
    """Further fields of every chat request, a JSON object such as
    ``{"chat_template_kwargs": {"enable_thinking": false}}``."""
    input_price: float = 0.0
    """US dollars for a million prompt tokens, >= 0."""
    cached_price: float | None = None
    """The same for those that the endpoint had in its cache; None: as ``input_price``."""
    output_price: float = 0.0
    """The same for generated tokens."""

    def __post_init__(self) -> None:
        """Hold every value to its rule.

        Raises:
            InvalidInput: One breaks it; the text names key, value and fix.
        """
        _check_url(self)
        for key, known in (
            ("dialect", DIALECTS),
            ("scoring", SCORINGS),
            ("max_tokens_field", LENGTHS),
        ):
            if getattr(self, key) not in known:
                raise wrong(key, f"one of {', '.join(known)}", getattr(self, key))
        if self.scoring == "vllm" and self.dialect == "openai":
            raise wrong("scoring", "top_logprobs or none, since dialect is openai", self.scoring)
        for key, low, high in (
            ("top_logprobs", 2, 20),
            ("reasoning_tokens", 0, 2**31),
            ("context_tokens", 0, 2**31),
            ("retries", 0, 100),
        ):
            if not low <= getattr(self, key) <= high:
                raise wrong(key, f"a number from {low} to {high}", getattr(self, key))
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise wrong("timeout", "seconds, more than 0", self.timeout)
        for key in ("input_price", "cached_price", "output_price"):
            price = getattr(self, key)
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise wrong(key, "US dollars for a million tokens, 0 or more", price)
        self.more()
        self.key()

    def more(self) -> dict[str, Any]:
        """What ``body`` adds to a chat request.

        Raises:
            InvalidInput: It is no JSON object, or has a field that the engine sets.
        """
        try:
            fields = json.loads(self.body or "{}")
        except ValueError as error:
            raise wrong("body", f"a JSON object ({error})", self.body) from error
        if not isinstance(fields, dict):
            raise wrong("body", "a JSON object", self.body)
        if ours := sorted(OURS & set(fields)):
            raise InvalidInput(
                f"engine option 'body': the engine sets {', '.join(ours)} itself, from each "
                "request: leave it out"
            )
        return fields

    def key(self) -> str:
        """The key, read where the options say; empty if they name none.

        Raises:
            InvalidInput: Nothing is there, or both places are named.
        """
        if self.api_key_env and self.api_key_file:
            raise InvalidInput(
                "engine options 'api_key_env' and 'api_key_file': expected one of them, got both"
            )
        if self.api_key_env:
            if not self.api_key_env.isidentifier():
                # not shown: it may be the key itself
                raise InvalidInput(
                    "engine option 'api_key_env': expected the name of an environment variable"
                )
            found = os.environ.get(self.api_key_env, "").strip()
            if not found:
                raise wrong(
                    "api_key_env",
                    "the name of an environment variable that is set",
                    self.api_key_env,
                )
            return _printable("api_key_env", self.api_key_env, found)
        if self.api_key_file:
            try:
                found = Path(self.api_key_file).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(
                    f"engine option 'api_key_file': cannot read {self.api_key_file!r}: {error}"
                ) from error
            if not found:
                raise wrong("api_key_file", "a file with a key in it", self.api_key_file)
            return _printable("api_key_file", self.api_key_file, found)
        return ""

    @property
    def has_prices(self) -> bool:
        """Whether costs can be told."""
        return bool(self.input_price or self.output_price or self.cached_price)

    def cost(self, usage: Usage) -> float:
        """US dollars that the endpoint charges for tokens."""
        cached_price = self.input_price if self.cached_price is None else self.cached_price
        computed = usage.prompt_tokens - usage.cached_tokens
        return (
            computed * self.input_price
            + usage.cached_tokens * cached_price
            + usage.completion_tokens * self.output_price
        ) / 1e6


def wrong(key: str, expected: str, value: object) -> InvalidInput:
    """An option breaks its rule."""
    return InvalidInput(f"engine option {key!r}: expected {expected}, got {value!r}")


def _check_url(options: OpenAIOptions) -> None:
    example = "the endpoint's URL up to /chat/completions, such as http://localhost:8000/v1"
    try:
        parts = urlsplit(options.base_url)
        port = parts.port
    except ValueError as error:
        raise wrong("base_url", f"{example} ({error})", options.base_url) from error
    if "@" in parts.netloc:
        raise InvalidInput(
            "engine option 'base_url': expected a URL without a user or a password: give the key "
            "with api_key_env or api_key_file"
        )
    plain = not parts.query and not parts.fragment and options.base_url.isprintable()
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not plain:
        raise wrong("base_url", example, options.base_url)
    named = options.api_key_env or options.api_key_file
    if named and parts.scheme == "http" and not options.allow_plain_key and not _is_here(parts):
        raise InvalidInput(
            f"engine option 'base_url': {options.base_url!r} is another machine, to which the key "
            "would go in plain text: use https, or allow it with allow_plain_key=true"
        )


def _is_here(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _printable(key: str, place: str, found: str) -> str:
    # it becomes a header; an error must not show it
    if not (found.isascii() and found.isprintable() and " " not in found):
        raise InvalidInput(
            f"engine option {key!r}: what {place!r} holds is no key: expected ASCII characters in "
            "one line, without blanks"
        )
    return found
