"""Conversations in the shapes that files have them: a text, messages, a Human/Assistant transcript.

A text that begins with a blank line and ``Human:`` is a transcript wherever it stands. Knows
nothing of files or formats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from solon.chat import Conversation
from solon.trainer.errors import PromptError
from solon.trainer.importers.records import Answers

Messages = list[dict[str, Any]]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\s*\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}
_MOST_SHOWN = 80


def is_transcript(value: Any) -> bool:
    """Whether it is a text of turns that begin with a blank line and ``Human:``/``Assistant:``."""
    return isinstance(value, str) and _TRANSCRIPT.match(value) is not None


def messages_of(value: Any, place: str) -> Messages:
    """A transcript's or a list's turns; a plain text is one of the user.

    Raises:
        PromptError: It is none of them, or an empty text; the message begins with ``place``.
    """
    if isinstance(value, str):
        if not value.strip():
            raise PromptError(f"{place}: expected a text, got an empty one")
        return _transcript(value) if is_transcript(value) else [_said("user", value)]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise PromptError(
            f'{place}: expected a text or a list of {{"role", "content"}}, got {shown(value)}'
        )
    return value


def conversation_of(value: Any, place: str, *, ends_with_answer: bool = False) -> Conversation:
    """What asks for a response: ends with the user.

    Args:
        value: As ``messages_of``.
        place: What messages begin with.
        ends_with_answer: Whether the value is a whole conversation, whose last turn is left out if
            it is the assistant's.

    Raises:
        PromptError: It does not end with the user, turns do not alternate, or one is empty.
    """
    turns = messages_of(value, place)
    if (
        turns
        and turns[-1].get("role") == "assistant"
        and (ends_with_answer or is_transcript(value))
    ):
        turns = turns[:-1]
    try:
        conversation = Conversation.from_dicts(turns)
    except ValueError as error:
        raise PromptError(f"{place}: {error}") from error
    last = conversation.messages[-1].role
    if last != "user":
        raise PromptError(
            f"{place}: expected the last message to be the user's, got the {last}'s; leave out the "
            "response"
        )
    empty = [i for i, m in enumerate(conversation.messages) if not m.content.strip()]
    if empty:
        raise PromptError(f"{place}: messages[{empty[0]}].content is empty")
    return conversation


def answer_of(value: Any, place: str) -> str:
    """A response: a text, or the last of messages, which is the assistant's.

    Raises:
        PromptError: It is neither, or empty.
    """
    said = value
    if isinstance(value, list):
        last = value[-1] if value else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise PromptError(f"{place}: expected messages that end with the assistant's")
        said = last.get("content")
    if not isinstance(said, str) or not said.strip():
        raise PromptError(f"{place}: expected a text, or messages that end with the assistant's")
    return said


def answers_of(chosen: Any, rejected: Any, place: str, keys: Sequence[str]) -> Answers:
    """Both responses.

    Raises:
        PromptError: One is none, or they are the same.
    """
    better, worse = (
        answer_of(value, f"{place}: {key}")
        for key, value in zip(keys, (chosen, rejected), strict=True)
    )
    if better == worse:
        raise PromptError(f"{place}: {' and '.join(keys)} are the same text: nothing to prefer")
    return Answers(chosen=better, rejected=worse)


def whole_conversations(
    chosen: Any, rejected: Any, place: str, keys: Sequence[str]
) -> tuple[Conversation, Answers]:
    """Two conversations that differ in their last turn, the assistant's.

    Raises:
        PromptError: They differ before it, or one does not end with the assistant.
    """
    turns = [
        messages_of(value, f"{place}: {key}")
        for key, value in zip(keys, (chosen, rejected), strict=True)
    ]
    answers = answers_of(turns[0], turns[1], place, keys)
    if turns[0][:-1] != turns[1][:-1]:
        raise PromptError(
            f"{place}: expected {keys[0]} and {keys[1]} to be one conversation up to the last "
            "response, but they differ before it"
        )
    return conversation_of(turns[0][:-1], f"{place}: {keys[0]}"), answers


def shown(value: Any) -> str:
    """A value for a message, cut."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def _transcript(text: str) -> Messages:
    """Turns in order; what one speaker says in several turns in a row is one turn."""
    _, *parts = _SPEAKER.split(text)
    turns: Messages = []
    for name, said in zip(parts[::2], parts[1::2], strict=True):
        role, content = _ROLE[name], said.strip()
        if turns and turns[-1]["role"] == role:
            before: Mapping[str, Any] = turns.pop()
            content = "\n\n".join(part for part in (before["content"], content) if part)
        turns.append(_said(role, content))
    return turns


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
