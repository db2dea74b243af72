"""What a client sees of a call that is refused, fails, is cancelled or is late."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.engine import base
from solon.policy.server import ROLE
from solon.serving import errors, guard, status
from solon.serving.constitutions import Library
from solon.serving.logs import JsonFormatter
from solon.serving.options import ServerOptions
from solon.serving.server import Resources, Server
from solon.serving.testing import FunctionEngine, running
from solon.v1 import (
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    errors_pb2,
    policy_pb2,
    policy_pb2_grpc,
)

Ask = Callable[..., policy_pb2.GenerateRequest]
Tell = Callable[[grpc.aio.AioRpcError], Any]


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> policy_pb2_grpc.PolicyServiceStub:
    return policy_pb2_grpc.PolicyServiceStub(channel)


def fail_with(engine: FunctionEngine, error: Exception) -> None:
    def answer(conversation: Conversation, sampling: base.Sampling) -> str:
        raise error

    engine.answer = answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0)


ENGINE_ERRORS = [
    (
        base.ContextExceeded(prompt_tokens=900, max_tokens=200, context_tokens=1024),
        grpc.StatusCode.INVALID_ARGUMENT,
        "CONTEXT_EXCEEDED",
        {"prompt_tokens": "900", "max_tokens": "200", "context_tokens": "1024"},
        None,
    ),
    (
        base.InvalidInput("expected a chat template"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {},
        None,
    ),
    (
        base.Overloaded("the queue is full", retry_after=0.25),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        {},
        0.25,
    ),
    (base.Paused("paused"), grpc.StatusCode.UNAVAILABLE, "PAUSED", {}, 1.0),
    (
        base.BackendUnavailable("no answer from the backend"),
        grpc.StatusCode.UNAVAILABLE,
        "BACKEND_UNAVAILABLE",
        {},
        1.0,
    ),
    (
        base.Unsupported("no log-probabilities"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "UNSUPPORTED_BY_ENGINE",
        {},
        None,
    ),
    (
        base.ContentFiltered("withheld by the endpoint"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "CONTENT_FILTERED",
        {},
        None,
    ),
    (
        base.WeightsNotLoaded("no such directory"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "WEIGHTS_NOT_LOADED",
        {},
        None,
    ),
]


@pytest.mark.parametrize(("error", "code", "reason", "metadata", "retry_after"), ENGINE_ERRORS)
async def test_an_engine_error_reaches_the_client_with_its_reason_and_details(
    error: base.EngineError,
    code: grpc.StatusCode,
    reason: str,
    metadata: dict[str, str],
    retry_after: float | None,
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    told: Tell,
) -> None:
    fail_with(engine, error)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request_of(request_id="mine"))
    seen = told(caught.value)
    assert (seen.code, seen.reason, seen.message) == (code, reason, str(error))
    assert seen.metadata == {**metadata, "request_id": "mine"}
    assert seen.retry_after == retry_after
    assert seen.pushback == (None if retry_after is None else f"{retry_after * 1000:.0f}")
    assert bool(seen.fields) == (code is grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (base.EngineFailed("device lost while answering: my secret"), "ENGINE_FAILED"),
        (RuntimeError("cannot parse: my secret"), "INTERNAL"),
    ],
)
async def test_a_defect_shows_an_error_id_that_the_log_explains_and_neither_shows_the_prompt(
    error: Exception,
    reason: str,
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    told: Tell,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail_with(engine, error)
    with caplog.at_level(logging.INFO, "solon"), pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request_of("my secret"))
    seen = told(caught.value)
    assert (seen.code, seen.reason) == (grpc.StatusCode.INTERNAL, reason)
    assert "secret" not in str(caught.value)
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert line["error_id"] == seen.metadata["error_id"]
    assert line["exceptions"][0].endswith(type(error).__name__)
    assert any(frame.endswith(" answer") for frame in line["frames"])
    # an engine vouches for its own words
    assert ("messages" in line) == isinstance(error, base.EngineError)


def test_every_reason_of_the_contract_is_told_by_some_exception() -> None:
    made = [
        errors.InvalidFields.of("n", "expected 1 to 64, got 0"),
        errors.UnknownConstitution("x", ["core"]),
        errors.UnknownPrinciple("x", ["kind"], field="principles", needs="a revision request"),
        errors.DigestMismatch("x", expected="0", actual="1"),
        errors.WeightVersionMismatch(expected="a", actual="b"),
        errors.NotServing(),
        errors.DeadlinePassed(),
        *(error for error, *_ in ENGINE_ERRORS),
        base.EngineFailed("lost"),
        RuntimeError("defect"),
    ]
    # authorisation and idempotency are not part of this server yet
    later = {"UNSPECIFIED", "NOT_AUTHORIZED", "REQUEST_ID_REUSED"}
    names = {name.removeprefix("ERROR_REASON_") for name, _ in errors_pb2.ErrorReason.items()}
    assert {status.failure_of(error).reason_name for error in made} == names - later


def test_a_status_fits_the_headers_however_long_its_texts_are() -> None:
    long = "ü" * 10_000
    worst = errors.InvalidFields([errors.Violation("a" * 80, long)] * 500)
    failure = status.failure_of(worst)
    size = sum(len(value) for _, value in failure.trailers("r" * 128))
    # base64 in the trailer, and the message once more, percent-encoded
    assert size * 4 / 3 + len(failure.message.encode()) * 3 < 8 * 1024
    bad = failure.rich("r").details[1]
    assert b"and 488 more" in bad.value


async def test_a_missing_request_id_is_made_and_given_back(
    stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    first, second = await stub.Generate(request_of()), await stub.Generate(request_of())
    assert len(first.request_id) == len(second.request_id) == 32
    assert first.request_id != second.request_id
    assert (await stub.Generate(request_of(request_id="mine"))).request_id == "mine"


async def test_a_call_that_breaks_a_rule_never_reaches_the_engine(
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    told: Tell,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request_of(n=65, sampling=common_pb2.SamplingParams(top_p=0)))
    seen = told(caught.value)
    assert (seen.code, seen.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert seen.fields == {
        "sampling.top_p": "expected above 0 and up to 1, got 0.0",
        "n": "expected 1 to 64, got 65",
    }
    assert engine.asked == []


async def test_a_body_that_is_no_message_is_an_invalid_argument(
    channel: grpc.aio.Channel, told: Tell
) -> None:
    raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/solon.v1.PolicyService/Generate"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff\xff")
    assert told(caught.value).reason == "INVALID_FIELD"


async def test_other_weights_than_demanded_are_a_failed_precondition(
    stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask, told: Tell
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request_of(weight_version="step-7"))
    seen = told(caught.value)
    assert (seen.code, seen.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WEIGHT_VERSION_MISMATCH",
    )
    assert (seen.metadata["expected"], seen.metadata["actual"]) == ("step-7", "initial")


async def test_a_call_before_the_model_is_loaded_is_unavailable(
    engine: FunctionEngine, request_of: Ask, told: Tell
) -> None:
    resources = Resources(engine=engine, library=Library(), max_tokens_default=8)
    server = Server(ROLE, resources, ServerOptions(settle_seconds=0))
    port = await server.bind()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).Generate(request_of())
    seen = told(caught.value)
    assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_SERVING")
    assert seen.retry_after == 1
    await server.stop()


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_the_end_of_a_call_stops_the_model(
    end: str,
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
) -> None:
    engine.gate.clear()
    call = stub.Generate(request_of(n=3), timeout=0.3 if end == "deadline" else None)
    await until(lambda: engine.running == 3)
    if end == "cancel":
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: engine.running == 0)


async def test_calls_that_are_given_up_leave_no_task_behind(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    await stub.Generate(request_of())
    engine.gate.clear()
    before = len(asyncio.all_tasks())
    streamed = policy_pb2.StreamGenerateRequest(conversation=request_of().conversation)
    for turn in range(3):
        calls: list[Any] = [
            stub.Generate(request_of(request_id=f"{turn}-{number}" if number % 2 else ""))
            for number in range(300)
        ]
        calls += [stub.StreamGenerate(streamed) for _ in range(100)]
        await until(lambda: engine.running == 400)
        for call in calls:
            call.cancel()
        await until(lambda: engine.running == 0)
    del calls
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_cancelling_a_stream_stops_the_model(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    engine.answer = lambda conversation, sampling: "one two three"
    ended = asyncio.Event()
    pieces = engine.stream

    async def watched(
        conversation: Conversation, sampling: base.Sampling
    ) -> AsyncIterator[base.GenerationPiece]:
        try:
            async for piece in pieces(conversation, sampling):
                yield piece
                engine.gate.clear()
        finally:
            ended.set()

    engine.stream = watched  # type: ignore[method-assign, assignment]
    call = stub.StreamGenerate(
        policy_pb2.StreamGenerateRequest(conversation=request_of().conversation)
    )
    first = await call.read()
    assert isinstance(first, policy_pb2.StreamGenerateResponse)
    assert first.text == "one"
    call.cancel()
    async with asyncio.timeout(120):
        await ended.wait()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_work_is_begun_past_the_deadline(seconds: float) -> None:
    with pytest.raises(errors.DeadlinePassed):
        guard.refuse_if_late(seconds)
    assert status.failure_of(errors.DeadlinePassed()).code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("seconds", [None, 0.01])
def test_a_call_with_time_left_or_no_deadline_goes_on(seconds: float | None) -> None:
    guard.refuse_if_late(seconds)


async def test_the_log_has_a_line_a_call_with_its_cost_and_without_its_text(
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.answer = lambda conversation, sampling: "a hushed reply"
    with caplog.at_level(logging.INFO, "solon"):
        await stub.Generate(request_of("my secret", request_id="mine", n=2))
    (record,) = (r for r in caplog.records if r.message == "call")
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert line["method"] == "/solon.v1.PolicyService/Generate"
    assert (line["code"], line["request_id"], line["level"]) == ("OK", "mine", "INFO")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (20, 6)
    # of calls that run at the same time, the slowest counts
    assert (line["queue_seconds"], line["inference_seconds"]) == (0.25, 0.5)
    assert "secret" not in text
    assert "hushed" not in text


async def test_hundreds_of_calls_in_flight_are_all_answered(
    engine: FunctionEngine, stub: policy_pb2_grpc.PolicyServiceStub, request_of: Ask
) -> None:
    engine.gate.clear()
    calls = [asyncio.ensure_future(_text(stub, request_of())) for _ in range(500)]
    await until(lambda: engine.running == len(calls))
    engine.gate.set()
    assert await asyncio.gather(*calls) == ["Yes."] * len(calls)


async def _text(
    stub: policy_pb2_grpc.PolicyServiceStub, request: policy_pb2.GenerateRequest
) -> str:
    return (await stub.Generate(request)).completions[0].text


async def test_a_call_that_would_miss_its_deadline_in_the_queue_is_refused_before_it_starts(
    engine: FunctionEngine,
    stub: policy_pb2_grpc.PolicyServiceStub,
    request_of: Ask,
    told: Tell,
) -> None:
    engine.wait = 30.0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request_of(), timeout=20)
    seen = told(caught.value)
    assert (seen.code, seen.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
    assert "30.0 s" in seen.message
    assert seen.metadata["queue_seconds"] == "30.000"
    assert seen.retry_after == pytest.approx(10, abs=2)
    assert engine.asked == []
    await stub.Generate(request_of(), timeout=60)
    await stub.Generate(request_of())
    assert len(engine.asked) == 2


async def test_calls_beyond_the_bound_are_refused_but_for_the_control_plane(
    engine: FunctionEngine, request_of: Ask, told: Tell
) -> None:
    engine.gate.clear()
    async with (
        running(ROLE, engine, max_in_flight=3) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        # one inference, and still three calls that wait
        held = [asyncio.ensure_future(_text(stub, request_of(request_id="mine"))) for _ in range(3)]
        control = control_pb2_grpc.ControlServiceStub(channel)
        # gRPC takes the calls of one connection in their order
        await control.GetLoad(control_pb2.GetLoadRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(request_of())
        seen = told(caught.value)
        assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert seen.retry_after == 1
        await control.GetLoad(control_pb2.GetLoadRequest())
        engine.gate.set()
        assert await asyncio.gather(*held) == ["Yes."] * 3
        assert await _text(stub, request_of()) == "Yes."


async def test_health_and_control_answer_however_long_the_queue_is(
    engine: FunctionEngine, channel: grpc.aio.Channel
) -> None:
    engine.wait = 1e6
    control = control_pb2_grpc.ControlServiceStub(channel)
    load = await control.GetLoad(control_pb2.GetLoadRequest(), timeout=20)
    assert load.queue_capacity == 8
