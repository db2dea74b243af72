"""The vocabulary that every part of Solon shares: who said what.

Standard library only, so that the client, the engines, the constitution and the trainer can all
use one type for a conversation. Knows nothing of tokens, templates, gRPC or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

Role = Literal["system", "user", "assistant"]


class MessageDict(TypedDict):
    """A message as transformers' chat templates, TRL and the OpenAI API spell it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    """Who speaks: ``system``, ``user`` or ``assistant``."""
    content: str
    """What they say. Never empty, except in the assistant's prefill."""

    def as_dict(self) -> MessageDict:
        """The message as ``{"role", "content"}``."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order: an optional system turn, then user and assistant in alternation.

    A conversation that ends with the user asks for a response. One that ends with the assistant
    asks an engine to *continue* that last turn (a prefill).
    """

    messages: tuple[Message, ...]
    shared: int = field(default=0, compare=False, repr=False)
    """How many of the first messages other conversations begin with, too: what an engine may keep
    from one to the next. Says nothing about what was said."""

    def __post_init__(self) -> None:
        """Check the order of the turns.

        Raises:
            ValueError: No turns, a system turn that is not first, two turns in a row by one
                speaker, or a first turn that is not the user's.
        """
        if not self.messages:
            raise ValueError("messages: expected at least one message, got none")
        expected: Role = "user"
        for index, message in enumerate(self.messages):
            if message.role == "system" and index == 0:
                continue
            if message.role != expected:
                raise ValueError(
                    f"messages[{index}].role: expected {expected!r}, got {message.role!r}; "
                    "an optional system message comes first, then user and assistant alternate"
                )
            expected = "assistant" if expected == "user" else "user"

    @classmethod
    def from_user(cls, text: str) -> Conversation:
        """A conversation of one user turn."""
        return cls((Message("user", text),))

    @classmethod
    def from_dicts(cls, messages: Iterable[Mapping[str, str]]) -> Conversation:
        """Build from ``{"role", "content"}`` mappings.

        Raises:
            ValueError: A role that is none of system, user, assistant; or the order is wrong.
        """
        built: list[Message] = []
        for index, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in ("system", "user", "assistant"):
                raise ValueError(
                    f"messages[{index}].role: expected system, user or assistant, got {role!r}"
                )
            if not isinstance(content, str):
                raise ValueError(f"messages[{index}].content: expected text, got {content!r}")
            built.append(Message(role, content))  # type: ignore[arg-type]
        return cls(tuple(built))

    def as_dicts(self) -> list[MessageDict]:
        """The turns as ``{"role", "content"}`` dicts."""
        return [message.as_dict() for message in self.messages]

    def then(self, *messages: Message) -> Conversation:
        """This conversation with further turns appended."""
        return Conversation(self.messages + messages, self.shared)
