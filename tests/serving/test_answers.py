"""A request that is asked again: one inference, one answer, whoever left in between."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.engine import base
from solon.policy.server import ROLE
from solon.serving.answers import Answer, Answers, Key, Put
from solon.serving.errors import RequestIdReused
from solon.serving.logs import JsonFormatter
from solon.serving.testing import FunctionEngine, running
from solon.v1 import common_pb2, control_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc
from tests.clock import Clock

KEY = Key(caller="", method="/m", request_id="mine")
Ask = Callable[..., policy_pb2.GenerateRequest]
Tell = Callable[[grpc.aio.AioRpcError], Any]


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> policy_pb2_grpc.PolicyServiceStub:
    return policy_pb2_grpc.PolicyServiceStub(channel)


def counting(engine: FunctionEngine) -> None:
    """Let the engine give every generation a text of its own."""
    engine.answer = lambda conversation, sampling: f"Answer {len(engine.asked)}."


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0)


async def text_of(call: Any) -> str:
    return str((await call).completions[0].text)


async def test_the_same_request_again_is_answered_without_a_second_inference(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    counting(engine)
    asked = request_of(request_id="mine")
    first, second = await stub.Generate(asked), await stub.Generate(asked)
    assert first == second
    assert first.completions[0].text == "Answer 1."
    assert len(engine.asked) == 1


async def test_the_same_request_while_the_first_runs_waits_for_its_answer(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    counting(engine)
    engine.gate.clear()
    calls = [asyncio.ensure_future(text_of(stub.Generate(request_of(request_id="mine"))))]
    await until(lambda: engine.running == 1)
    calls += [
        asyncio.ensure_future(text_of(stub.Generate(request_of(request_id="mine"))))
        for _ in range(20)
    ]
    engine.gate.set()
    assert set(await asyncio.gather(*calls)) == {"Answer 1."}
    assert len(engine.asked) == 1


async def streamed(answers: Answers, answer: Answer) -> bytes:
    [message] = [message async for message in answers.read(answer)]
    return message


@pytest.mark.parametrize("read", [Answers.only, streamed])
async def test_the_work_goes_on_for_the_second_when_the_first_caller_leaves(
    read: Callable[[Answers, Answer], Awaitable[Any]],
) -> None:
    answers, begun, go_on = Answers(window=10, most_bytes=1000), asyncio.Event(), asyncio.Event()
    made = 0

    async def work(put: Put) -> None:
        nonlocal made
        made += 1
        begun.set()
        await go_on.wait()
        put(b"done")

    async def ask_for_it() -> Any:
        answer = answers.find(KEY, b"body") or answers.start(KEY, b"body", work)
        return await read(answers, answer)

    first = asyncio.ensure_future(ask_for_it())
    await begun.wait()
    second = asyncio.ensure_future(ask_for_it())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    assert answers.running == 1
    go_on.set()
    assert await second == b"done"
    assert made == 1


async def test_work_that_nobody_waits_for_ends_and_asking_again_starts_anew(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    counting(engine)
    engine.gate.clear()
    calls = [stub.Generate(request_of(request_id="mine")) for _ in range(3)]
    await until(lambda: engine.running == 1)
    for call in calls:
        call.cancel()
    await until(lambda: engine.running == 0)
    engine.gate.set()
    assert await text_of(stub.Generate(request_of(request_id="mine"))) != "Answer 1."


async def test_a_known_answer_is_given_however_long_new_work_would_wait(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    first = await stub.Generate(request_of(request_id="mine"))
    engine.wait = 30.0
    assert await stub.Generate(request_of(request_id="mine"), timeout=20) == first


async def test_another_body_under_the_same_id_is_refused(
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    told: Tell,
) -> None:
    await stub.Generate(request_of("Hello.", request_id="mine"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request_of("Good evening.", request_id="mine"))
    seen = told(caught.value)
    assert (seen.code, seen.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert "evening" not in seen.message
    assert len(engine.asked) == 1


async def test_a_failure_is_not_remembered(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    def answer(conversation: Conversation, sampling: base.Sampling) -> str:
        if len(engine.asked) == 1:
            raise base.Overloaded("full", retry_after=0.1)
        return "At last."

    engine.answer = answer
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Generate(request_of(request_id="mine"))
    assert await text_of(stub.Generate(request_of(request_id="mine"))) == "At last."


async def test_requests_without_an_id_are_never_taken_for_each_other(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    counting(engine)
    assert await text_of(stub.Generate(request_of())) == "Answer 1."
    assert await text_of(stub.Generate(request_of())) == "Answer 2."


async def test_an_id_counts_for_one_method(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    asked = request_of(request_id="mine")
    await stub.Generate(asked)
    streamed = policy_pb2.StreamGenerateRequest(request_id="mine", conversation=asked.conversation)
    assert [piece.text async for piece in stub.StreamGenerate(streamed)]
    assert len(engine.asked) == 2


async def test_a_stream_is_given_again_from_its_first_piece(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub
) -> None:
    engine.answer = lambda conversation, sampling: "One two three four."
    message = common_pb2.Message(role=common_pb2.ROLE_USER, content="Count.")
    request = policy_pb2.StreamGenerateRequest(
        request_id="mine", conversation=common_pb2.Conversation(messages=[message])
    )
    first = aiter(stub.StreamGenerate(request))
    begun = await anext(first)
    second = [piece async for piece in stub.StreamGenerate(request)]
    whole = [begun, *[piece async for piece in first]]
    again = [piece async for piece in stub.StreamGenerate(request)]
    assert "".join(piece.text for piece in second) == "One two three four."
    assert whole == second == again
    assert len(engine.asked) == 1


async def test_control_always_tells_what_is_now(engine: FunctionEngine) -> None:
    async with running(ROLE, engine) as address, grpc.aio.insecure_channel(address) as channel:
        control = control_pb2_grpc.ControlServiceStub(channel)
        request = control_pb2.GetLoadRequest(request_id="mine")
        assert not (await control.GetLoad(request)).paused
        await control.PauseGeneration(control_pb2.PauseGenerationRequest())
        assert (await control.GetLoad(request)).paused


async def test_the_log_says_which_call_was_answered_before_and_counts_tokens_once(
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "solon"):
        await stub.Generate(request_of(request_id="mine"))
        await stub.Generate(request_of(request_id="mine"))
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    first, second = [line for line in lines if line["event"] == "call"]
    assert first["prompt_tokens"] == 10
    assert "replayed" not in first
    assert second["replayed"] is True
    assert "prompt_tokens" not in second


async def ask(answers: Answers, key: Key, size: int = 10) -> str:
    """The answer, and whether it was made for this call."""

    async def work(put: Put) -> None:
        put(b"x" * size)

    known = answers.find(key, b"body")
    answer = known or answers.start(key, b"body", work)
    await answers.only(answer)
    return "known" if known else "made"


async def test_an_answer_is_forgotten_after_its_window() -> None:
    clock = Clock()
    answers = Answers(window=10, most_bytes=10_000, clock=clock)
    assert await ask(answers, KEY) == "made"
    clock.now = 9.9
    assert await ask(answers, KEY) == "known"
    with pytest.raises(RequestIdReused):
        answers.find(KEY, b"another body")
    clock.now = 10
    assert answers.find(KEY, b"another body") is None
    assert answers.remembered_bytes == 0


async def test_the_oldest_answers_make_room_and_even_a_short_one_takes_some() -> None:
    answers = Answers(window=10, most_bytes=5_000)
    keys = [KEY._replace(request_id=str(number)) for number in range(8)]
    assert [await ask(answers, key) for key in keys] == ["made"] * 8
    assert 4_000 < answers.remembered_bytes <= 5_000
    assert await ask(answers, keys[-1]) == "known"
    assert await ask(answers, keys[0]) == "made"
    assert await ask(answers, KEY, size=6_000) == "made"
    assert await ask(answers, KEY, size=6_000) == "made"


async def test_a_window_of_nothing_remembers_nothing() -> None:
    answers = Answers(window=0, most_bytes=1000)
    assert [await ask(answers, KEY) for _ in range(2)] == ["made", "made"]
    assert answers.remembered_bytes == 0
    assert answers.running == 0
