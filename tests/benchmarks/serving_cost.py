"""What a call costs the server's processor, beside a bare grpc.aio server's.

    python tests/benchmarks/serving_cost.py [--calls N] [--rounds N] [--json FILE]

By hand; loopback only. The floor is a grpc.aio server whose method returns an empty message,
on the same event loop; the other is PolicyService/Generate on the scripted engine, called without
solon.client and with it. Milliseconds of processor a call, of server and of client: the least of
several rounds, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from solon.client import Conversation, PolicyClient, Sampling
from solon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

ASKED = "How do I bake bread?"
BARE = """
import json, pathlib, sys
import grpc, uvloop
from solon.v1 import policy_pb2, policy_pb2_grpc

class Servicer(policy_pb2_grpc.PolicyServiceServicer):
    async def Generate(self, request, context):
        return policy_pb2.GenerateResponse(request_id=request.request_id)

async def main():
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready = pathlib.Path(sys.argv[1])
    ready.with_suffix(".new").write_text(json.dumps({"port": port}))
    ready.with_suffix(".new").rename(ready)
    await server.wait_for_termination()

uvloop.run(main())
"""
OURS = ("-m", "solon.policy.server", "--engine=scripted", "--settle-seconds=0")

Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def serving(*program: str, ready: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    """A server's process and its address."""
    process = subprocess.Popen([sys.executable, *program], stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.05)
        port = json.loads(ready.read_text("utf-8"))["port"]
        yield psutil.Process(process.pid), f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def plain(address: str) -> AsyncIterator[Call]:
    """Calls by the contract's own stub."""
    said = common_pb2.Message(role=common_pb2.ROLE_USER, content=ASKED)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        yield lambda: stub.Generate(
            policy_pb2.GenerateRequest(
                request_id=uuid4().hex,
                conversation=common_pb2.Conversation(messages=[said]),
                sampling=common_pb2.SamplingParams(max_tokens=8),
            ),
            timeout=60,
        )


@asynccontextmanager
async def by_client(address: str) -> AsyncIterator[Call]:
    """Calls by solon.client."""
    asked, sampling = Conversation.from_user(ASKED), Sampling(max_tokens=8)
    async with PolicyClient(address) as client:
        yield lambda: client.generate(asked, sampling=sampling)


async def repeat(call: Call, calls: int, callers: int) -> None:
    """So many calls, by so many callers."""
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await call()

    await asyncio.gather(*(caller() for _ in range(callers)))


def seconds(process: psutil.Process) -> float:
    """Of processor that a process has used."""
    used = process.cpu_times()
    return float(used.user + used.system)


async def cost(name: str, args: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds a call: of the server, and of the client."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        program = ("-c", BARE, str(ready)) if name == "bare" else (*OURS, f"--ready-file={ready}")
        connect = by_client if name == "solon, by solon.client" else plain
        async with (
            serving(*program, ready=ready) as (server, address),
            connect(address) as call,
        ):
            await repeat(call, args.calls // 10, args.callers)
            ends = (server, psutil.Process(os.getpid()))
            before = [seconds(end) for end in ends]
            await repeat(call, args.calls, args.callers)
            ours, theirs = (
                1000 * (seconds(end) - was) / args.calls
                for end, was in zip(ends, before, strict=True)
            )
    return ours, theirs


async def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    """A row a kind of server and client."""
    names = ("bare", "solon", "solon, by solon.client")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            seen[name].append(await cost(name, args))
    floor = min(server for server, _ in seen["bare"])
    return [
        {
            "name": f"server's processor, ms a call: {name}",
            "ours": min(server for server, _ in costs),
            "client": min(client for _, client in costs),
            "peer": None,
            "floor": floor,
            "ratio": min(server for server, _ in costs) / floor,
            "unit": "ms",
        }
        for name, costs in seen.items()
    ]


def show(rows: Sequence[dict[str, object]], args: argparse.Namespace) -> None:
    """The table."""
    table = Table(title=f"{args.calls} calls by {args.callers} callers")
    for heading in ("", "server, ms", "of the floor", "client, ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        name = str(row["name"]).rpartition(": ")[2]
        table.add_row(name, f"{row['ours']:.3f}", f"{row['ratio']:.2f}", f"{row['client']:.3f}")
    Console().print(table)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write rows of name, ours, floor, ratio, unit")
    args = parser.parse_args()
    rows = asyncio.run(measure(args))
    show(rows, args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
