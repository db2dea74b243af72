"""A stream that nobody reads any more stops the server's work."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.client import CriticClient, PolicyClient, errors
from solon.v1 import common_pb2, critic_pb2, critic_pb2_grpc, policy_pb2, policy_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
SAID = common_pb2.Completion(text="No.", finish_reason=common_pb2.FINISH_REASON_STOP)


class Endless(policy_pb2_grpc.PolicyServiceServicer, critic_pb2_grpc.CriticServiceServicer):
    """Says one thing and goes on working until it is cancelled."""

    Critique = Revise = Assess = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    def add(self, server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)
        critic_pb2_grpc.add_CriticServiceServicer_to_server(self, server)

    async def _work(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def Generate(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._work()

    async def StreamGenerate(self, request: Any, context: Context) -> Any:  # noqa: N802
        yield policy_pb2.StreamGenerateResponse(text="Well")
        await self._work()

    async def Refine(self, request: Any, context: Context) -> Any:  # noqa: N802
        yield critic_pb2.RefineResponse(
            round=1, revision=SAID, revision_outcome=critic_pb2.OUTCOME_MADE
        )
        await self._work()


async def test_leaving_a_stream_cancels_it_at_the_server(
    serve: Any, question: Conversation
) -> None:
    policy = Endless()
    server = await serve(policy.add)
    async with PolicyClient(server.address) as client:
        async with aclosing(client.stream(question)) as pieces:
            assert (await anext(pieces)).text == "Well"
            await policy.started.wait()
        await policy.cancelled.wait()


async def test_breaking_out_of_a_chain_cancels_it_at_the_server(
    serve: Any, question: Conversation
) -> None:
    critic = Endless()
    server = await serve(critic.add)
    async with CriticClient(server.address) as client:
        async for refined in client.refine(question, "Sure.", constitution="core"):
            assert refined.round == 1
            await critic.started.wait()
            break
        await critic.cancelled.wait()


async def test_cancelling_a_task_cancels_its_call_at_the_server(
    serve: Any, question: Conversation
) -> None:
    policy = Endless()
    server = await serve(policy.add)
    async with PolicyClient(server.address) as client:
        call = asyncio.create_task(client.generate(question))
        await policy.started.wait()
        call.cancel()
        await policy.cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_stream_that_takes_longer_than_its_timeout_is_ended(
    serve: Any, question: Conversation
) -> None:
    server = await serve(Endless().add)
    async with PolicyClient(server.address) as client:
        with pytest.raises(errors.DeadlineExceeded):
            _ = [piece async for piece in client.stream(question, timeout=0.2)]
