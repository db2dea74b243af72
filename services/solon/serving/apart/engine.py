"""The server's side: an ``Engine`` whose work is done in another process.

Knows nothing of gRPC, nor of which engine it is.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

from solon import tracing
from solon.chat import Conversation
from solon.engine import EngineOptions
from solon.engine.base import (
    BackendUnavailable,
    EngineError,
    EngineFailed,
    EngineInfo,
    Generation,
    GenerationPiece,
    Load,
    PauseMode,
    Sampling,
    Scored,
)
from solon.serving.apart import wire
from solon.serving.apart.wire import TOLD, Ask, Reply, Settings, State

_CLOSE_SECONDS = 10.0
"""For the process to end by itself."""


class ApartEngine:
    """See the module. Every method is as ``solon.engine.base.Engine`` says."""

    def __init__(
        self, name: str, options: EngineOptions, *, service: str, log_level: str = "INFO"
    ) -> None:
        """Nothing is started.

        Args:
            name: Of the engine, as ``solon.engine.create`` knows it.
            options: Its options.
            service: The service.name of the process's traces.
            log_level: Of the process.
        """
        self._name = name
        self._options = options
        self._service = service
        self._log_level = log_level
        self._numbers = itertools.count()
        self._waiting: dict[int, Callable[[Reply], None]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._frames: wire.Frames | None = None
        self._info: EngineInfo | None = None
        self._state: State | None = None
        self._closed = False
        self._lost: asyncio.Future[str] | None = None
        self._burial: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start the process, and the engine in it."""
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        ours = self._spawn()
        frames = wire.Frames(self._received, self._went)
        await loop.create_connection(lambda: frames, sock=ours)
        self._frames = frames
        try:
            self._info = await self._ask("start", self._options)
        except BaseException:
            self._kill()
            raise

    async def close(self) -> None:
        """End the engine and the process."""
        process = self._process
        if self._closed or process is None:
            return
        with suppress(EngineError):  # one that is gone need not be asked
            self._send("close", (), lambda _: None)
        self._closed = True
        try:
            await asyncio.to_thread(process.wait, _CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def lost(self) -> str:
        """Return, when the process has ended though nobody asked it to, how."""
        assert self._lost is not None
        return await asyncio.shield(self._lost)

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        if self._info is None:
            raise EngineFailed("the engine is not started")
        return self._info

    @property
    def weight_version(self) -> str:
        """The weights in use."""
        return self._known.weight_version

    def load(self) -> Load:
        """How busy the engine is, or was a moment ago."""
        return self._known.load

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """Answer the conversation."""
        return wire.to_generation(await self._ask("generate", conversation, sampling))

    async def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Answer the conversation, a piece at a time."""
        replies: asyncio.Queue[Reply] = asyncio.Queue()
        number = self._send("stream", (conversation, sampling), replies.put_nowait)
        ended = False
        try:
            while True:
                reply = await replies.get()
                ended = reply.ends
                value = _value(reply)
                if ended:
                    return
                yield wire.to_piece(value)
        finally:
            if not ended:
                self._cancel(number)
                while not (await replies.get()).ends:
                    pass
            self._waiting.pop(number, None)

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities of whole continuations."""
        scored: Scored = await self._ask("score", prompts, continuations)
        return scored

    async def update_weights(self, path: str, weight_version: str) -> None:
        """Replace the weights."""
        await self._ask("update_weights", path, weight_version)

    async def pause(self, mode: PauseMode) -> int:
        """Stop the model."""
        aborted: int = await self._ask("pause", mode)
        return aborted

    async def resume(self) -> None:
        """Go on."""
        await self._ask("resume")

    def _spawn(self) -> socket.socket:
        """Start the process; returns the server's end of the socket."""
        ours, theirs = socket.socketpair()
        with theirs:
            settings = Settings(
                socket=theirs.fileno(),
                engine=self._name,
                service=self._service,
                log_level=self._log_level,
            )
            # not by the event loop, whose way to fork runs gRPC's fork handlers
            self._process = subprocess.Popen(
                [sys.executable, "-m", "solon.serving.apart.child", *settings.written()],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # signals are for the server, which tells the process what to do
                start_new_session=True,
            )
        return ours

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    @property
    def _known(self) -> State:
        self._check()
        if self._state is None:
            raise EngineFailed("the engine is not started")
        return self._state

    def _check(self) -> None:
        """Raise, if nobody is there to do anything."""
        if self._closed:
            raise EngineFailed("the engine is closed")
        if self._lost is not None and self._lost.done():
            raise BackendUnavailable(self._lost.result())

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """The answer. Who is cancelled leaves when the engine has let go of the work."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answered(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        number = self._send(method, arguments, answered)
        try:
            return _value(await asyncio.shield(future))
        except asyncio.CancelledError:
            self._cancel(number)
            await asyncio.wait([future])
            raise
        finally:
            self._waiting.pop(number, None)

    def _send(
        self, method: str, arguments: tuple[Any, ...], answered: Callable[[Reply], None]
    ) -> int:
        self._check()
        if self._frames is None:
            raise EngineFailed("the engine is not started")
        number = next(self._numbers)
        self._waiting[number] = answered
        headers = dict(tracing.headers(tracing.current())) or None
        self._frames.send(Ask(number, method, arguments, headers))
        return number

    def _cancel(self, number: int) -> None:
        if self._frames is not None:
            self._frames.send(Ask(number, "cancel"))

    def _received(self, reply: Reply) -> None:
        if reply.number == TOLD:
            self._state = reply.value
        elif (answered := self._waiting.get(reply.number)) is not None:
            answered(reply)

    def _went(self) -> None:
        self._burial = asyncio.ensure_future(self._bury())

    async def _bury(self) -> None:
        """End what waits for a process that is no more."""
        assert self._process is not None
        assert self._lost is not None
        status = await asyncio.to_thread(self._process.wait)
        ending = f"signal {-status}" if status < 0 else f"exit code {status}"
        text = f"the engine's process ended with {ending}"
        error: EngineError = EngineFailed("the engine was closed")
        if not self._closed:
            error = BackendUnavailable(text)
            self._lost.set_result(text)
        for number, answered in list(self._waiting.items()):
            answered(Reply(number, wire.Failure.of(error, text)))


def _value(reply: Reply) -> Any:
    """What a reply says.

    Raises:
        EngineError, InOtherProcess: That the work failed.
    """
    if isinstance(reply.value, wire.Failure):
        raise reply.value.error()
    return reply.value
