"""One inference for one request_id: answers that are under way or were lately given.

A caller that lost the connection asks again with the same request_id and gets the same answer,
from where the work stands; nothing is inferred twice. An answer that failed is forgotten, so that
trying again tries again. Work that nobody waits for any more is cancelled. Knows nothing of gRPC,
nor of what an answer holds.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

from google.protobuf.message import Message

from solon.serving.errors import RequestIdReused

Make = Callable[[], AsyncGenerator[Message, None]]
"""Starts the work: its messages, of which a unary call has one."""


class Key(NamedTuple):
    """Whose request it is, and how the caller names it."""

    caller: str
    method: str
    request_id: str


class Answers:
    """The answers of one server."""

    def __init__(
        self,
        *,
        window: float,
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is remembered yet.

        Args:
            window: Seconds for which a finished answer is given again, >= 0.
            most_bytes: Bound of all finished answers together; the oldest are forgotten first.
            clock: Seconds, never falling.
        """
        self._window = window
        self._most_bytes = most_bytes
        self._clock = clock
        self._running: dict[Key, _Answer] = {}
        self._finished: OrderedDict[Key, _Answer] = OrderedDict()
        self._bytes = 0

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return len(self._running)

    @property
    def remembered_bytes(self) -> int:
        """Size of the finished answers."""
        return self._bytes

    def known(self, key: Key, digest: bytes) -> bool:
        """Whether this request is being answered or lately was.

        Raises:
            RequestIdReused: It is, but with another body.
        """
        self._forget_old()
        answer = self._running.get(key) or self._finished.get(key)
        if answer is not None and answer.digest != digest:
            raise RequestIdReused(key.request_id)
        return answer is not None

    async def get(self, key: Key, digest: bytes, make: Make) -> AsyncGenerator[Message, None]:
        """The answer's messages from the first on; ``make`` is called if it is not known.

        Closing this stops the work, if nobody else waits for it.

        Raises:
            RequestIdReused: The request is known with another body.
            Exception: Whatever the work raised.
        """
        if not self.known(key, digest):
            self._running[key] = _Answer(digest)
            self._running[key].task = asyncio.create_task(self._work(key, self._running[key], make))
        answer = self._running.get(key) or self._finished[key]
        answer.readers += 1
        try:
            async with aclosing(answer.read()) as messages:
                async for message in messages:
                    yield message
        finally:
            answer.readers -= 1
            if not answer.readers and not answer.ended:
                await self._abandon(key, answer)

    async def _work(self, key: Key, answer: _Answer, make: Make) -> None:
        try:
            async with aclosing(make()) as messages:
                async for message in messages:
                    answer.add(message)
        except (Exception, asyncio.CancelledError) as error:  # those who wait get it
            answer.error = error
        if self._running.get(key) is answer:
            del self._running[key]
        answer.end()
        if answer.error is None:
            self._remember(key, answer)

    async def _abandon(self, key: Key, answer: _Answer) -> None:
        """Return when the work has let go of what it held."""
        # at once: who asks from now on must not get what is being cancelled
        del self._running[key]
        assert answer.task is not None
        answer.task.cancel()
        await asyncio.wait({answer.task})

    def _remember(self, key: Key, answer: _Answer) -> None:
        if self._window <= 0 or answer.size > self._most_bytes:
            return
        answer.expires = self._clock() + self._window
        self._finished[key] = answer
        self._bytes += answer.size
        while self._bytes > self._most_bytes:
            self._forget_oldest()

    def _forget_old(self) -> None:
        now = self._clock()
        while self._finished and next(iter(self._finished.values())).expires <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, answer = self._finished.popitem(last=False)
        self._bytes -= answer.size


class _Answer:
    """Messages so far, and who waits for more."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.size = 0
        self.expires = 0.0
        self.readers = 0
        self.ended = False
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self._messages: list[Message] = []
        self._changed = asyncio.Event()

    def add(self, message: Message) -> None:
        self._messages.append(message)
        self.size += message.ByteSize()
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def read(self) -> AsyncGenerator[Message, None]:
        read = 0
        while True:
            # taken before the messages are looked at: none is then missed
            changed = self._changed
            while read < len(self._messages):
                read += 1
                yield self._messages[read - 1]
            if self.ended:
                break
            await changed.wait()
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
