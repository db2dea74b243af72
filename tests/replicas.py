"""Judges in processes of their own, traffic that does not stop, and names that change.

For tests and benchmarks of what a client notices when replicas come, go and die: the processes are
real, on the scripted engine, and so are the signals and the DNS server, all on loopback.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from dnslib import QTYPE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

from solon.chat import Conversation
from solon.client import JudgeClient, SolonError

ASKED = Conversation.from_user("How do I bake bread?")
_ANSWERED = r'^solon_request_duration_seconds_count{.*"OK".*Compare.*} (.*)$'
LATENCY = 0.02
"""Seconds that the engine takes for a verdict."""


class Replica:
    """A judge process that can be stopped, killed and started again where it was."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", flags: Sequence[str] = ()) -> None:
        self.host = host
        self.port = 0
        self._metrics_port = 0
        self._ready = folder / f"{host}-{id(self)}.json"
        self._log = folder / f"{host}-{id(self)}.log"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Return once it serves."""
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "solon.judge.server", "--engine=scripted"),
                    *(f"--engine-option=latency={LATENCY}", "--constitution=core"),
                    *(
                        "--metrics-port=0",
                        "--log-level=WARNING",
                        "--settle-seconds=1",
                        "--drain-seconds=20",
                    ),
                    *(f"--host={self.host}", f"--port={self.port}", f"--ready-file={self._ready}"),
                    *self._flags,
                ],
                stderr=log,
                env=os.environ | {"GRPC_VERBOSITY": "ERROR"},
            )
        async with asyncio.timeout(120):
            while not self._ready.exists():
                if self._process.poll() is not None:
                    raise RuntimeError(self._log.read_text("utf-8"))
                await asyncio.sleep(0.02)
        told = json.loads(self._ready.read_text("utf-8"))
        self.port, self._metrics_port = int(told["port"]), int(told["metrics_port"])

    async def answered(self) -> int:
        """Comparisons that it has answered, by its own metrics."""

        def read() -> str:
            with urllib.request.urlopen(f"http://{self.host}:{self._metrics_port}/metrics") as page:
                return str(page.read(), "utf-8")

        counted = re.search(_ANSWERED, await asyncio.to_thread(read), re.MULTILINE)
        return int(float(counted[1])) if counted else 0

    async def end(self, number: signal.Signals) -> None:
        """Send the signal and wait until the process is gone."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        await asyncio.to_thread(self._process.wait, 60)


@asynccontextmanager
async def replicas(*hosts: str, flags: Sequence[str] = ()) -> AsyncIterator[list[Replica]]:
    """A judge on each of the hosts, all on one port if the hosts differ."""
    with tempfile.TemporaryDirectory() as name:
        started: list[Replica] = []
        try:
            for host in hosts:
                replica = Replica(Path(name), host=host, flags=flags)
                if started and host != started[0].host:
                    replica.port = started[0].port
                await replica.start()
                started.append(replica)
            yield started
        finally:
            await asyncio.gather(*(replica.end(signal.SIGKILL) for replica in started))


class Traffic:
    """Callers that each ask again as soon as they are answered."""

    def __init__(self, client: JudgeClient) -> None:
        self.answered = 0
        self.failed: list[SolonError] = []
        self._client = client
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def of(self, callers: int) -> AsyncIterator[None]:
        """So many callers while the block runs; each is answered before it leaves."""
        running = True

        async def ask() -> None:
            while running:
                try:
                    await self._client.compare(ASKED, "With flour.", "No.", constitution="core")
                except SolonError as error:
                    self.failed.append(error)
                else:
                    self.answered += 1
                self._changed.set()

        tasks = [asyncio.create_task(ask()) for _ in range(callers)]
        try:
            yield
        finally:
            running = False
            await asyncio.gather(*tasks)

    async def more(self, calls: int) -> None:
        """Return when so many further calls have ended."""
        goal = self.answered + len(self.failed) + calls
        async with asyncio.timeout(300):
            while self.answered + len(self.failed) < goal:
                self._changed.clear()
                await self._changed.wait()


class Names(BaseResolver):  # type: ignore[misc]
    """A DNS server on loopback that says what the test wants."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        quiet = DNSLogger("-recv,-send,-request,-reply,-truncated,-error")
        self._server = DNSServer(self, port=0, address="127.0.0.1", logger=quiet)
        self._server.start_thread()

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """An A record for each address."""
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            for address in self.addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=0))
        return reply

    def target(self, port: int) -> str:
        """What to call a service of that port by: a gRPC target that asks this server."""
        asked = self._server.server.server_address[1]
        return f"dns://127.0.0.1:{asked}/judge.solon.test:{port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.stop()
        self._server.server.server_close()
