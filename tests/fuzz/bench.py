"""Servers to fuzz, called one message at a time from code that is not async, as Hypothesis's is.

Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import grpc

from solon.engine import Engine
from solon.serving.testing import running
from tests.fuzz.corpus import CORE, ROLES, Method
from tests.fuzz.replies import Finding, Reply, check
from tests.fuzz.wire import PATIENCE, Metadata, Wire


class Bench:
    """A server of each role, and an event loop that runs while a message is on its way."""

    def __init__(self, runner: asyncio.Runner, wires: Mapping[str, Wire]) -> None:
        """``wires``: by name of the role."""
        self._runner = runner
        self._wires = wires

    def send(
        self,
        method: Method,
        body: bytes,
        *,
        metadata: Metadata = (),
        timeout: float | None = PATIENCE,
    ) -> Reply:
        """Call a method."""
        call = self._wires[method.role.name].send(method, body, metadata=metadata, timeout=timeout)
        return self._runner.run(call)

    def try_out(self, method: Method, body: bytes) -> Reply:
        """Send a body; hold the reply to the contract, and the server to be as well as before.

        Raises:
            Finding: Something is wrong.
        """
        reply = self.send(method, body)
        check(reply, ours=method.is_ours)
        self.check_well(method)
        return reply

    def check_well(self, method: Method) -> None:
        """See ``Wire.check_well``."""
        self._runner.run(self._wires[method.role.name].check_well())

    def check_works(self, method: Method) -> None:
        """The good requests of a method are answered.

        Raises:
            Finding: One is not.
        """
        for request in method.requests:
            reply = self.try_out(method, request.SerializeToString())
            # an id may have been used by what was made of this request
            if reply.code not in ("OK", "ALREADY_EXISTS"):
                raise Finding(f"a good request: {reply.code}: {reply.details}")


@contextmanager
def connected(addresses: Mapping[str, str]) -> Iterator[Bench]:
    """To servers that run already, by name of the role."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def connect() -> dict[str, Wire]:
            return {
                role: Wire(await stack.enter_async_context(grpc.aio.insecure_channel(address)))
                for role, address in addresses.items()
            }

        try:
            yield Bench(runner, runner.run(connect()))
        finally:
            runner.run(stack.aclose())


@contextmanager
def serving(
    make_engine: Callable[[], Engine], *, token_file: Path | None = None
) -> Iterator[Bench]:
    """Servers in this process, on free ports."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def serve() -> dict[str, Wire]:
            wires = {}
            for role in ROLES:
                server = running(role, make_engine(), constitutions=[CORE], token_file=token_file)
                address = await stack.enter_async_context(server)
                channel = grpc.aio.insecure_channel(address)
                wires[role.name] = Wire(await stack.enter_async_context(channel))
            return wires

        try:
            yield Bench(runner, runner.run(serve()))
        finally:
            runner.run(stack.aclose())
