"""The blocking clients do what the async ones do, from a plain thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest

from solon.chat import Conversation
from solon.client import ControlClient, CriticClient, JudgeClient, PolicyClient, errors, sync
from solon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

STOPPED = common_pb2.FINISH_REASON_STOP


class Policy(policy_pb2_grpc.PolicyServiceServicer):
    """Answers with its count of calls; a stream goes on until it is left."""

    def __init__(self) -> None:
        self.calls = 0
        self.started = threading.Event()
        self.left = threading.Event()

    def add(self, server: Any) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        said = common_pb2.Completion(text=str(self.calls), finish_reason=STOPPED)
        return policy_pb2.GenerateResponse(completions=[said])

    async def StreamGenerate(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield policy_pb2.StreamGenerateResponse(text="a")
        if request.request_id == "endless":
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        yield policy_pb2.StreamGenerateResponse(text="b", finish_reason=STOPPED)


async def test_a_script_generates_and_streams(serve: Any, question: Conversation) -> None:
    server = await serve(Policy().add)

    def script() -> tuple[str, str]:
        with sync.PolicyClient(server.address) as client:
            client.wait_until_serving()
            generated = client.generate(question).completions[0].text
            return generated, "".join(piece.text for piece in client.stream(question))

    assert await asyncio.to_thread(script) == ("1", "ab")


async def test_a_script_that_leaves_a_stream_stops_the_server(
    serve: Any, question: Conversation
) -> None:
    policy = Policy()
    server = await serve(policy.add)

    def script() -> None:
        with sync.PolicyClient(server.address) as client:
            for _ in client.stream(question, request_id="endless"):
                assert policy.started.wait(30)
                break
            assert policy.left.wait(30)

    await asyncio.to_thread(script)


async def test_two_clients_at_once_do_not_disturb_each_other(
    serve: Any, question: Conversation
) -> None:
    server = await serve(Policy().add)

    def script() -> list[str]:
        with sync.PolicyClient(server.address) as one, sync.PolicyClient(server.address) as two:
            return [c.generate(question).completions[0].text for c in (one, two, one)]

    assert await asyncio.to_thread(script) == ["1", "2", "3"]


async def test_errors_are_the_same(serve: Any, question: Conversation) -> None:
    server = await serve(lambda _: None)

    def script() -> None:
        with sync.JudgeClient(server.address) as client:
            client.score(question, "Sure.", constitution="core")

    with pytest.raises(errors.UnexpectedStatus):
        await asyncio.to_thread(script)


def test_no_thread_is_left_behind() -> None:
    with sync.ControlClient("localhost:1"):
        assert "solon-client" in {thread.name for thread in threading.enumerate()}
    assert "solon-client" not in {thread.name for thread in threading.enumerate()}


def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="with ControlClient"):
        sync.ControlClient("localhost:1").get_load()


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [
        (sync.PolicyClient, PolicyClient),
        (sync.CriticClient, CriticClient),
        (sync.JudgeClient, JudgeClient),
        (sync.ControlClient, ControlClient),
    ],
)
def test_every_method_is_there_with_the_same_parameters(
    blocking: type[Any], asynchronous: type[Any]
) -> None:
    names = {name for name in dir(asynchronous) if name[0].islower()} | {"__init__"}
    for name in names:
        theirs, ours = getattr(asynchronous, name), getattr(blocking, name)
        if isinstance(theirs, property):
            assert isinstance(ours, property), name
            continue
        expected = str(inspect.signature(theirs).parameters)
        assert str(inspect.signature(ours).parameters) == expected, name
