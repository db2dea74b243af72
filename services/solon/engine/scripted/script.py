"""What the scripted engine says: rules from a file, and a rule of its own where none matches.

A script is a YAML or JSON list of rules, tried in order::

    - match: "Critique request"       # a regular expression, searched in the rendered conversation
      reply: "The response is harmful."
    - match: "Answer only"
      logprobs: {"(A)": -0.1, "(B)": -2.5}

A ``reply`` may be a list, of which the seed chooses one. The rendered conversation is one
``role: content`` paragraph a turn. Knows nothing of time, faults or queues.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from solon.chat import Conversation
from solon.engine.base import InvalidInput, Sampling, Token

_WORD = re.compile(r"\s*\S+|\s+$")
_USUAL = 32
"""Words shorter than this come again, and are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One entry of a script."""

    match: re.Pattern[str]
    replies: tuple[str, ...] = ()
    logprobs: dict[str, float] | None = None


class Script:
    """A list of rules with a default: text and log-probabilities derived from a hash."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        """``rules``: the first that matches and has what is asked for is used."""
        self._rules = tuple(rules)

    @classmethod
    def load(cls, path: str) -> Script:
        """Read a YAML or JSON file.

        Raises:
            InvalidInput: No such file, or not a list of rules; the text names file and rule.
        """
        import yaml  # noqa: PLC0415

        try:
            entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInput(f"engine option 'script': cannot read {path!r}: {error}") from error
        if not isinstance(entries, list):
            raise InvalidInput(f"{path}: expected a list of rules, got {type(entries).__name__}")
        return cls([_rule(f"{path}: rule {i}", entry) for i, entry in enumerate(entries)])

    def reply(self, conversation: Conversation, sampling: Sampling) -> str:
        """The text of an answer: a function of the conversation and, if it samples, the seed."""
        rendered = render(conversation)
        seed = sampling.seed if sampling.temperature > 0 else 0
        for rule in self._rules:
            if rule.replies and rule.match.search(rendered):
                return rule.replies[seed % len(rule.replies)]
        words = conversation.messages[-1].content.split()[:6]
        return f"Reply {_digest(rendered, str(seed)):016x} to: {' '.join(words)}"

    def logprob(self, conversation: Conversation, continuation: str) -> float:
        """Natural log-probability of a continuation, below 0.

        Raises:
            InvalidInput: A rule with log-probabilities matches, and this text is not among them.
        """
        rendered = render(conversation)
        for rule in self._rules:
            if rule.logprobs is None or not rule.match.search(rendered):
                continue
            if continuation not in rule.logprobs:
                raise InvalidInput(
                    f"continuation {continuation!r}: the script's rule {rule.match.pattern!r} "
                    f"gives log-probabilities of {', '.join(map(repr, rule.logprobs))} only"
                )
            return rule.logprobs[continuation]
        return hashed_logprob(rendered, continuation)


def render(conversation: Conversation) -> str:
    """What a rule's ``match`` is searched in."""
    return "\n\n".join(f"{m.role}: {m.content}" for m in conversation.messages)


def split(text: str) -> tuple[Token, ...]:
    """Words as tokens, each with the space before it; ids and log-probabilities from a hash."""
    return tuple(
        _usual(word) if len(word) < _USUAL else _token(word) for word in _WORD.findall(text)
    )


def _token(word: str) -> Token:
    return Token(id=_digest(word) % 50_000, text=word, logprob=hashed_logprob(word))


_usual = lru_cache(4096)(_token)


def count(text: str) -> int:
    """How many tokens ``split`` makes."""
    return len(_WORD.findall(text))


def hashed_logprob(*parts: str) -> float:
    """A number in (-8, 0), the same on every machine."""
    return -8.0 * (_digest(*parts) + 1) / (2**64 + 2)


def _digest(*parts: str) -> int:
    data = "\0".join(parts).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _rule(where: str, entry: Any) -> Rule:
    if not isinstance(entry, dict) or not isinstance(entry.get("match"), str):
        raise InvalidInput(f"{where}: expected a mapping with a text 'match', got {entry!r}")
    unknown = set(entry) - {"match", "reply", "logprobs"}
    if unknown or len(entry) == 1:
        raise InvalidInput(
            f"{where}: expected 'match' and 'reply' or 'logprobs', got {', '.join(map(str, entry))}"
        )
    try:
        pattern = re.compile(entry["match"])
    except re.error as error:
        raise InvalidInput(f"{where}: match {entry['match']!r} is no regex: {error}") from error
    return Rule(
        match=pattern,
        replies=_replies(where, entry.get("reply", ())),
        logprobs=_logprobs(where, entry["logprobs"]) if "logprobs" in entry else None,
    )


def _replies(where: str, value: Any) -> tuple[str, ...]:
    replies = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(reply, str) for reply in replies):
        raise InvalidInput(f"{where}: reply: expected a text or a list of texts, got {value!r}")
    return replies


def _logprobs(where: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) and isinstance(number, int | float) for text, number in value.items()
    ):
        raise InvalidInput(
            f"{where}: logprobs: expected a mapping from texts to numbers, got {value!r}"
        )
    return {text: float(number) for text, number in value.items()}
