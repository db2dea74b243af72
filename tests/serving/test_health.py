"""Health and reflection, as any gRPC client sees them."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from solon.policy.server import ROLE
from solon.serving.constitutions import Library
from solon.serving.options import ServerOptions
from solon.serving.server import Resources, Server
from solon.serving.testing import FunctionEngine

Status = health_pb2.HealthCheckResponse
SERVICES = ["", "solon.v1.PolicyService", "solon.v1.ControlService"]


@pytest.fixture
async def server(engine: FunctionEngine) -> Server:
    resources = Resources(engine=engine, library=Library(), max_tokens_default=8)
    return Server(ROLE, resources, ServerOptions(settle_seconds=0, drain_seconds=60))


async def check(channel: grpc.aio.Channel, service: str) -> int:
    ask: grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, Status] = (
        channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=Status.FromString,
        )
    )
    return int((await ask(health_pb2.HealthCheckRequest(service=service))).status)


def watch(
    channel: grpc.aio.Channel, service: str
) -> grpc.aio.UnaryStreamCall[health_pb2.HealthCheckRequest, Status]:
    ask: grpc.aio.UnaryStreamMultiCallable[health_pb2.HealthCheckRequest, Status] = (
        channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=Status.FromString,
        )
    )
    return ask(health_pb2.HealthCheckRequest(service=service))


async def seen(call: grpc.aio.UnaryStreamCall[health_pb2.HealthCheckRequest, Status]) -> object:
    """The next status, or the end."""
    response = await call.read()
    return response.status if isinstance(response, Status) else response


async def test_a_server_serves_only_once_its_model_is_loaded(
    server: Server, engine: FunctionEngine
) -> None:
    port = await server.bind()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert [await check(channel, s) for s in SERVICES] == [Status.NOT_SERVING] * 3
        await server.load()
        assert [await check(channel, s) for s in SERVICES] == [Status.SERVING] * 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(channel, "solon.v1.JudgeService")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await server.drain()
    assert engine.closed


async def test_watchers_see_every_change_and_do_not_hold_up_the_end(server: Server) -> None:
    port = await server.bind()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watches = [
            watch(channel, service)
            for service in ("", "solon.v1.PolicyService", "solon.v1.PolicyService", "none")
        ]
        first = [await seen(call) for call in watches]
        assert first == [Status.NOT_SERVING] * 3 + [Status.SERVICE_UNKNOWN]
        # one watcher that leaves must not take the others' news with it
        watches.pop(1).cancel()
        await server.load()
        assert [await seen(call) for call in watches[:2]] == [Status.SERVING] * 2
        async with asyncio.timeout(120):
            await server.drain()
        assert [await seen(call) for call in watches[:2]] == [Status.NOT_SERVING] * 2
        assert [await seen(call) for call in watches] == [grpc.aio.EOF] * 3


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    ask: grpc.aio.StreamStreamMultiCallable[
        reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    ] = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = ask()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    response = await call.read()
    assert isinstance(response, reflection_pb2.ServerReflectionResponse)
    names = {service.name for service in response.list_services_response.service}
    assert names == {
        "solon.v1.PolicyService",
        "solon.v1.ControlService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    call.cancel()


async def test_calls_that_run_are_finished_before_the_engine_is_closed(
    server: Server, engine: FunctionEngine
) -> None:
    from solon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

    port = await server.bind()
    await server.load()
    message = common_pb2.Message(role=common_pb2.ROLE_USER, content="Hello.")
    request = policy_pb2.GenerateRequest(conversation=common_pb2.Conversation(messages=[message]))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        engine.gate.clear()
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request)
        async with asyncio.timeout(120):
            while not engine.running:
                await asyncio.sleep(0)
        draining = asyncio.create_task(server.drain())
        done, _ = await asyncio.wait({draining}, timeout=0.1)
        assert not done
        assert not engine.closed
        engine.gate.set()
        assert (await call).completions[0].text == "Yes."
        await draining
    assert engine.closed


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
@pytest.mark.parametrize("health_alone", [False, True])
async def test_a_body_that_is_no_message_is_the_callers_mistake(
    method: str, health_alone: bool, engine: FunctionEngine
) -> None:
    if health_alone and "reflection" in method:
        pytest.skip("the port for probes serves health alone")
    resources = Resources(engine=engine, library=Library(), max_tokens_default=8)
    server = Server(ROLE, resources, ServerOptions(health_port=0))
    ports = [await server.bind(), await server.bind_health()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[health_alone]}") as channel:
        ask: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{method}")
        call = ask(iter([b"\xff\xff"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await server.stop()


async def test_a_service_name_of_any_length_is_not_found(server: Server) -> None:
    port = await server.bind()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(channel, "x" * 1_000_000)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await server.stop()
