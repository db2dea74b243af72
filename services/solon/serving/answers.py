"""One inference for one request_id: answers that are under way or were lately given.

A caller that lost the connection asks again with the same request_id and gets the same answer,
from where the work stands; nothing is inferred twice. An answer that failed is forgotten, so that
trying again tries again. Work that nobody waits for any more is cancelled. Knows nothing of gRPC,
nor of what the messages say: it keeps them as the wire has them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

from solon.serving.errors import RequestIdReused

_OVERHEAD = 700
"""Bytes that an answer takes besides its messages' own, as measured; most are small."""

Put = Callable[[bytes], None]
"""Hands a message to whoever waits for it."""
Work = Callable[[Put], Awaitable[None]]
"""Makes the messages, of which a unary call has one."""


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
        self._running: dict[Key, Answer] = {}
        self._finished: OrderedDict[Key, Answer] = OrderedDict()
        self._bytes = 0

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return len(self._running)

    @property
    def remembered_bytes(self) -> int:
        """Size of the finished answers."""
        return self._bytes

    def find(self, key: Key, digest: bytes) -> Answer | None:
        """The request's answer, if it is being made or lately was.

        Raises:
            RequestIdReused: It is, but of another body.
        """
        self._forget_old()
        answer = self._running.get(key) or self._finished.get(key)
        if answer is not None and answer.digest != digest:
            raise RequestIdReused(key.request_id)
        return answer

    def start(self, key: Key, digest: bytes, work: Work) -> Answer:
        """Begin the answer of a request for which ``find`` has none. Read it, or it goes on."""
        answer = self._running[key] = Answer(key, digest)
        answer.task = asyncio.create_task(self._work(answer, work))
        return answer

    async def read(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """The answer's messages from the first on, as they come.

        Closing this stops the work, if nobody else waits for it.

        Raises:
            Exception: Whatever the work raised.
        """
        answer.readers += 1
        try:
            read = 0
            while True:
                while read < len(answer.messages):
                    read += 1
                    yield answer.messages[read - 1]
                if answer.ended:
                    break
                # nothing came since the messages were looked at, or it was yielded above
                await answer.changed()
            answer.raise_error()
        finally:
            await self._left(answer)

    async def only(self, answer: Answer) -> bytes:
        """The message of a unary call, when it has come.

        Cancelling this stops the work, if nobody else waits for it.

        Raises:
            Exception: Whatever the work raised.
        """
        answer.readers += 1
        try:
            while not answer.ended:
                await answer.changed()
            answer.raise_error()
            return answer.messages[0]
        finally:
            await self._left(answer)

    async def _left(self, answer: Answer) -> None:
        answer.readers -= 1
        if not answer.readers and not answer.ended:
            await self._abandon(answer)

    async def _work(self, answer: Answer, work: Work) -> None:
        try:
            await work(answer.put)
        except (Exception, asyncio.CancelledError) as error:  # those who wait get it
            answer.error = error
        if self._running.get(answer.key) is answer:
            del self._running[answer.key]
        answer.end()
        if answer.error is None:
            self._remember(answer)

    async def _abandon(self, answer: Answer) -> None:
        """Return when the work has let go of what it held."""
        # at once: who asks from now on must not get what is being cancelled
        del self._running[answer.key]
        assert answer.task is not None
        answer.task.cancel()
        await asyncio.wait({answer.task})

    def _remember(self, answer: Answer) -> None:
        if self._window <= 0 or answer.size > self._most_bytes:
            return
        answer.expires = self._clock() + self._window
        self._finished[answer.key] = answer
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


class Answer:
    """One answer: its messages so far, and who waits for more. Made by ``Answers``."""

    # tens of thousands are remembered: each holds no more than it must
    __slots__ = (
        "_changed",
        "digest",
        "ended",
        "error",
        "expires",
        "key",
        "messages",
        "readers",
        "size",
        "task",
    )

    def __init__(self, key: Key, digest: bytes) -> None:
        """``digest``: of the request's body."""
        self.key = key
        self.digest = digest
        self.size = _OVERHEAD
        self.expires = 0.0
        self.readers = 0
        self.ended = False
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.messages: list[bytes] = []
        self._changed: asyncio.Event | None = None

    def put(self, message: bytes) -> None:
        """Hand a message to all who wait."""
        self.messages.append(message)
        self.size += len(message)
        self._wake()

    def end(self) -> None:
        """No more messages come."""
        self.ended = True
        self.task = None
        self._wake()

    async def changed(self) -> None:
        """Return when a message came, or the end."""
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    def raise_error(self) -> None:
        """Raise what the work raised, if it did."""
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
