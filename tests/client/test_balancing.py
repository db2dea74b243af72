"""Calls spread evenly over the replicas that report themselves healthy, and go to no other."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.client import ControlClient, PolicyClient, errors
from solon.v1 import common_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc

ANSWER = common_pb2.Completion(text="Yes.", finish_reason=common_pb2.FINISH_REASON_STOP)


class Policy(policy_pb2_grpc.PolicyServiceServicer):
    """Answers at once and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def Generate(self, request: Any, context: Any) -> policy_pb2.GenerateResponse:  # noqa: N802
        self.calls += 1
        return policy_pb2.GenerateResponse(completions=[ANSWER])

    async def StreamGenerate(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield policy_pb2.StreamGenerateResponse()


@pytest.fixture
def replicas() -> list[Policy]:
    return [Policy(), Policy(), Policy()]


async def client_of(servers: list[Any], question: Conversation) -> PolicyClient:
    """A client that has found every healthy one of the servers."""
    return PolicyClient("ipv4:" + ",".join(server.address for server in servers))


async def ask_until_each_answered(
    client: PolicyClient, question: Conversation, expected: list[Policy]
) -> None:
    while not all(replica.calls for replica in expected):
        await client.generate(question)
    for replica in expected:
        replica.calls = 0


async def test_three_replicas_get_equal_shares(
    serve: Any, replicas: list[Policy], question: Conversation
) -> None:
    servers = [await serve(replica.add) for replica in replicas]
    async with await client_of(servers, question) as client:
        await ask_until_each_answered(client, question, replicas)
        await asyncio.gather(*(client.generate(question) for _ in range(90)))
    assert [replica.calls for replica in replicas] == [30, 30, 30]


async def test_a_replica_that_is_not_serving_gets_no_call_until_it_is(
    serve: Any, replicas: list[Policy], question: Conversation
) -> None:
    first, loading, third = [
        await serve(replica.add, serving=replica is not replicas[1]) for replica in replicas
    ]
    async with await client_of([first, loading, third], question) as client:
        await ask_until_each_answered(client, question, [replicas[0], replicas[2]])
        await asyncio.gather(*(client.generate(question) for _ in range(60)))
        assert [replica.calls for replica in replicas] == [30, 0, 30]
        loading.report_serving()
        await ask_until_each_answered(client, question, replicas)


async def test_with_no_healthy_replica_the_call_says_so(
    serve: Any, replicas: list[Policy], question: Conversation
) -> None:
    server = await serve(replicas[0].add, serving=False)
    async with PolicyClient(server.address, retry_for=0) as client:
        with pytest.raises(errors.Unavailable):
            await client.generate(question)
    assert replicas[0].calls == 0


async def test_waiting_ends_when_a_replica_serves(serve: Any, replicas: list[Policy]) -> None:
    server = await serve(replicas[0].add, serving=False)
    async with PolicyClient(server.address) as client:
        waiting = asyncio.create_task(client.wait_until_serving(60))
        with pytest.raises(errors.NotServing, match=r"solon\.v1\.PolicyService at"):
            await client.wait_until_serving(0)
        assert not waiting.done()
        server.report_serving()
        await waiting


async def test_waiting_for_nobody_says_who_was_expected_where(serve: Any) -> None:
    server = await serve(lambda _: None)
    await server.stop()
    async with PolicyClient(server.address) as client:
        with pytest.raises(errors.NotServing) as caught:
            await client.wait_until_serving(0.2)
    assert f"solon.v1.PolicyService at {server.address} does not answer" in str(caught.value)
    assert "gave up after" in caught.value.__notes__[0]


async def test_waiting_at_another_services_address_fails_at_once(serve: Any) -> None:
    server = await serve(lambda _: None)

    class Other(PolicyClient):
        HEALTH_NAME = "example.Other"

    async with Other(server.address) as client:
        with pytest.raises(errors.UnexpectedStatus, match=r"expected example\.Other at"):
            await client.wait_until_serving(60)


class Control(control_pb2_grpc.ControlServiceServicer):
    """Never asked."""

    GetServerInfo = GetLoad = UpdateWeights = None  # type: ignore[assignment]
    PauseGeneration = ResumeGeneration = None  # type: ignore[assignment]


async def test_control_waits_for_the_whole_server(serve: Any) -> None:
    server = await serve(
        lambda s: control_pb2_grpc.add_ControlServiceServicer_to_server(Control(), s)
    )
    async with ControlClient(server.address) as client:
        await client.wait_until_serving(60)


async def test_a_proxy_of_the_environment_is_not_asked_for_the_way_to_this_machine(
    serve: Any, replicas: list[Policy]
) -> None:
    server = await serve(replicas[0].add)
    script = (
        "import sys\n"
        "from solon.client.sync import PolicyClient\nfrom solon.chat import Conversation\n"
        "with PolicyClient(sys.argv[1], retry_for=0) as client:\n"
        "    print(client.generate(Conversation.from_user('Hi')).completions[0].text)\n"
    )
    proxied = {
        **{name: value for name, value in os.environ.items() if "no_proxy" not in name.lower()},
        "http_proxy": "http://127.0.0.1:1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, server.address),
        env=proxied,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, complaints = await process.communicate()
    assert (output.decode(), process.returncode) == ("Yes.\n", 0), complaints.decode()
