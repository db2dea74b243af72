"""The engine's process: ``python -m solon.serving.apart.child SETTINGS``.

Does what the server asks for, each request in a task of its own, and tells of itself whenever
something changed. Ends with the server, however that ends. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from contextlib import aclosing
from functools import partial
from typing import Any

import uvloop

from solon import tracing
from solon.engine import EngineOptions, create
from solon.engine.base import Engine, EngineError, EngineInfo, Mortal
from solon.serving import logs
from solon.serving.apart import wire
from solon.serving.apart.wire import TOLD, Ask, Reply, Settings, State
from solon.tracing.export import exporting

_TELL_SECONDS = 0.02
"""How old what the server knows of the engine may be."""
_WATCH = -1
"""A number that no request has."""
_LOG = logging.getLogger(__name__)


class Child:
    """One engine at one end of a socket."""

    def __init__(self, engine: str) -> None:
        """``engine``: its name."""
        self._name = engine
        self._engine: Engine | None = None
        self._frames = wire.Frames(self._received, self._lost)
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._told: State | None = None
        self._closed = asyncio.Event()

    async def serve(self, connection: socket.socket) -> None:
        """Return when the server has closed the engine."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._frames, sock=connection)
        telling = asyncio.create_task(self._tell_again_and_again())
        await self._closed.wait()
        telling.cancel()
        self._frames.close()

    def _received(self, ask: Ask) -> None:
        if ask.method == "cancel":
            if (task := self._tasks.get(ask.number)) is not None:
                task.cancel()
            return
        task = asyncio.create_task(self._do(ask))
        self._tasks[ask.number] = task
        task.add_done_callback(partial(self._ended, ask.number))

    def _ended(self, number: int, task: asyncio.Task[Any]) -> None:
        # also of a task that was cancelled before it began
        del self._tasks[number]
        if task.cancelled():
            self._tell()
            self._frames.send(Reply(number, None))
        elif (error := task.exception()) is None:
            self._frames.send(Reply(number, task.result()))
        else:
            self._frames.send(Reply(number, _failure(error)))

    async def _do(self, ask: Ask) -> Any:
        match ask.method, ask.arguments:
            case "start", (options,):
                return await self._start(options)
            case "close", ():
                return await self._close()
        engine = self._started
        with tracing.continued("engine.request", ask.headers or {}):
            match ask.method, ask.arguments:
                case "generate", (conversation, sampling):
                    return wire.from_generation(await engine.generate(conversation, sampling))
                case "score", (prompts, continuations):
                    return await engine.score(prompts, continuations)
                case "stream", (conversation, sampling):
                    async with aclosing(engine.stream(conversation, sampling)) as pieces:
                        async for piece in pieces:
                            row = wire.from_piece(piece)
                            self._frames.send(Reply(ask.number, row, ends=False))
                    return None
                case ("update_weights" | "pause" | "resume") as method, arguments:
                    result = await getattr(engine, method)(*arguments)
                    self._tell()
                    return result
        raise NotImplementedError(ask.method)

    async def _start(self, options: EngineOptions) -> EngineInfo:
        engine = create(self._name, options)
        await engine.start()
        self._engine = engine
        if isinstance(engine, Mortal):
            self._tasks[_WATCH] = asyncio.create_task(self._end_with(engine))
        # a model's half a million objects stay: looking through them stops every request
        gc.collect()
        gc.freeze()
        self._tell()
        return engine.info

    async def _end_with(self, engine: Mortal) -> None:
        reason = await engine.lost()
        _LOG.error("engine lost", extra={"fields": {"reason": reason}})
        # what it was asked for has failed by now, and the server is told so first
        asyncio.get_running_loop().call_soon(os._exit, 1)

    async def _close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
        # what the engine ended by that is still to be told
        asyncio.get_running_loop().call_soon(self._closed.set)

    @property
    def _started(self) -> Engine:
        assert self._engine is not None, "the server asks for nothing before it has started it"
        return self._engine

    async def _tell_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            self._tell()

    def _tell(self) -> None:
        if self._engine is None:
            return
        try:
            state = State(self._engine.load(), self._engine.weight_version)
        except EngineError:  # one that is closed has nothing to tell
            return
        if state != self._told:
            self._told = state
            self._frames.send(Reply(TOLD, state))

    def _lost(self) -> None:
        if not self._closed.is_set():
            # killed: no one is left for whom anything could be finished
            os._exit(1)


def _failure(error: BaseException) -> wire.Failure:
    known = isinstance(error, EngineError)
    fields = logs.cause(error, verbose=known)
    if not known:
        _LOG.error("engine", extra={"fields": fields})
    return wire.Failure.of(error, "; ".join(f"{key}: {value}" for key, value in fields.items()))


def main() -> None:
    """Run the process."""
    settings = Settings.read(sys.argv[1:])
    logs.configure(settings.log_level)
    with exporting(settings.service):
        uvloop.run(Child(settings.engine).serve(socket.socket(fileno=settings.socket)))


if __name__ == "__main__":
    main()
