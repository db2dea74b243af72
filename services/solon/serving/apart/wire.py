"""What goes between a server and its engine's process: objects in frames, and errors as themselves.

Both ends are the same program on the same machine, over a socket that nobody else can reach, which
is why pickle will do. What comes often travels as plain tuples: an answer's tokens as columns.
Knows nothing of processes.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from solon.engine.base import (
    EngineError,
    FinishReason,
    Generation,
    GenerationPiece,
    Load,
    Timing,
    Token,
    Usage,
)

_HEAD = 4
"""Bytes of a frame's length."""

Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the process starts with, as its command line has it."""

    socket: int
    """File descriptor."""
    engine: str
    service: str
    """The traces' service.name."""
    log_level: str

    @classmethod
    def read(cls, arguments: list[str]) -> Settings:
        """From the command line."""
        descriptor, engine, service, log_level = arguments
        return cls(socket=int(descriptor), engine=engine, service=service, log_level=log_level)

    def written(self) -> list[str]:
        """As a command line."""
        return [str(self.socket), self.engine, self.service, self.log_level]


class State(NamedTuple):
    """What the server must know of the engine without asking."""

    load: Load
    weight_version: str


class Ask(NamedTuple):
    """What the server asks for."""

    number: int
    method: str
    """Of the engine; ``cancel`` is of the request with this number."""
    arguments: tuple[Any, ...] = ()
    headers: Mapping[str, str] | None = None
    """Of the trace, if there is one."""


class Reply(NamedTuple):
    """An answer, or a part of one."""

    number: int
    """That of the request; ``TOLD``: it is a ``State``."""
    value: Any
    ends: bool = True


TOLD = -1


class Frames(asyncio.Protocol):
    """One end of the socket."""

    def __init__(self, received: Callable[[Any], None], lost: Callable[[], None]) -> None:
        """Nothing is connected yet.

        Args:
            received: Called with every object that comes.
            lost: Called once, when the other end has gone.
        """
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._buffer += data
        at = 0
        while len(self._buffer) >= at + _HEAD:
            end = at + _HEAD + int.from_bytes(self._buffer[at : at + _HEAD], "big")
            if len(self._buffer) < end:
                break
            item = pickle.loads(self._buffer[at + _HEAD : end])
            at = end
            self._received(item)
        del self._buffer[:at]

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = None
        self._lost()

    def send(self, item: object) -> None:
        """Send an object. To an end that has gone nothing is sent."""
        if self._transport is not None:
            body = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            self._transport.write(len(body).to_bytes(_HEAD, "big") + body)

    def close(self) -> None:
        """Send what is still to be sent, and leave."""
        if self._transport is not None:
            self._transport.close()


class Failure(NamedTuple):
    """An exception, taken apart: not all can be pickled."""

    type: type[EngineError] | None
    """None: no error that an engine may raise."""
    arguments: Row
    attributes: dict[str, Any]
    origin: str
    """Where it came from; of an engine's error also what it says, of others no text."""

    @classmethod
    def of(cls, error: BaseException, origin: str) -> Failure:
        """Take an exception apart."""
        if not isinstance(error, EngineError):
            return cls(None, (), {}, origin)
        return cls(type(error), error.args, vars(error), origin)

    def error(self) -> Exception:
        """The exception again, caused by what happened in the other process."""
        if self.type is None:
            return InOtherProcess(self.origin)
        # not by its constructor, whose arguments need not be those of the exception
        error = self.type.__new__(self.type, *self.arguments)
        error.__dict__.update(self.attributes)
        error.__cause__ = InOtherProcess(self.origin)
        return error


class InOtherProcess(Exception):
    """What was raised in the engine's process, in words: types and places."""


def from_generation(made: Generation) -> Row:
    """A generation as plain values."""
    usage, timing = made.usage, made.timing
    return (
        made.text,
        *_columns(made.tokens),
        made.finish_reason.value,
        (
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.model_calls,
            usage.cost_usd,
        ),
        (timing.queue, timing.inference),
        made.weight_version,
    )


def to_generation(row: Row) -> Generation:
    """The generation again."""
    text, ids, texts, logprobs, reason, usage, timing, version = row
    prompt, cached, completion, calls, cost = usage
    return Generation(
        text=text,
        tokens=_tokens(ids, texts, logprobs),
        finish_reason=FinishReason(reason),
        usage=Usage(
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            model_calls=calls,
            cost_usd=cost,
        ),
        timing=Timing(queue=timing[0], inference=timing[1]),
        weight_version=version,
    )


def from_piece(piece: GenerationPiece) -> Row:
    """A piece of a stream as plain values."""
    final = None if piece.final is None else from_generation(piece.final)
    return (piece.text, *_columns(piece.tokens), final, piece.weight_version)


def to_piece(row: Row) -> GenerationPiece:
    """The piece again."""
    text, ids, texts, logprobs, final, version = row
    return GenerationPiece(
        text=text,
        tokens=_tokens(ids, texts, logprobs),
        final=None if final is None else to_generation(final),
        weight_version=version,
    )


def _columns(tokens: tuple[Token, ...]) -> tuple[list[int], list[str], list[float]]:
    return [t.id for t in tokens], [t.text for t in tokens], [t.logprob for t in tokens]


def _tokens(ids: list[int], texts: list[str], logprobs: list[float]) -> tuple[Token, ...]:
    return tuple(
        Token(id=one, text=text, logprob=logprob)
        for one, text, logprob in zip(ids, texts, logprobs, strict=True)
    )
