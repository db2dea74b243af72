"""How long a connection lives, and that no call notices its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from solon.policy.server import ROLE
from solon.serving.testing import FunctionEngine, running
from solon.v1 import policy_pb2_grpc


async def test_an_old_connection_closes_once_its_calls_have_ended_and_the_next_call_opens_one(
    request_of: Callable[..., Any],
) -> None:
    engine = FunctionEngine()
    async with (
        running(ROLE, engine, max_connection_age=0.2) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        await stub.Generate(request_of())
        engine.gate.clear()
        call = asyncio.ensure_future(stub.Generate(request_of()))
        async with asyncio.timeout(60):
            while channel.get_state() is grpc.ChannelConnectivity.READY:
                await asyncio.sleep(0.05)
        # the connection has been given up; the call that it carries has not
        assert not call.done()
        engine.gate.set()
        assert (await call).completions[0].text == "Yes."
        assert (await stub.Generate(request_of())).completions[0].text == "Yes."
