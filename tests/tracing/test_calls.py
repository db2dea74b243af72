"""One trace from client to engine: real servers on port 0, spans kept in memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from solon.chat import Conversation
from solon.client import PolicyClient, Sampling, errors
from solon.engine import base
from solon.policy.server import ROLE
from solon.serving.testing import FunctionEngine, running
from solon.serving.tokens import Scope, line_of
from tests.conftest import Spans

GENERATE = "solon.v1.PolicyService/Generate"
STREAM = "solon.v1.PolicyService/StreamGenerate"
SECRET = "sesame"
ASKED = Conversation.from_user(f"What opens with {SECRET}?")
CALL = {"rpc.system": "grpc", "rpc.service": "solon.v1.PolicyService"}


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    assert child.context is not None
    assert parent.context is not None
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )


def of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_one_trace_joins_client_server_and_engine(spans: Spans) -> None:
    async with running(ROLE, FunctionEngine()) as address, PolicyClient(address) as client:
        await client.generate(ASKED, n=2, request_id="r-1")
    called, served = spans.one(GENERATE, SpanKind.CLIENT), spans.one(GENERATE, SpanKind.SERVER)
    made = spans.named("engine.generate")
    assert called.parent is None
    assert is_child(served, called)
    assert [is_child(one, served) for one in made] == [True, True]
    said = {**CALL, "rpc.method": "Generate", "rpc.grpc.status_code": 0, "solon.request_id": "r-1"}
    assert of(called) == said | {"server.address": address}
    assert of(served) == said | {
        "solon.prompt_tokens": 20,
        "solon.completion_tokens": 2,
        "solon.queue_seconds": 0.25,
        "solon.inference_seconds": 0.5,
        "solon.weight_version": "initial",
    }
    assert of(made[0]) == {
        "solon.prompt_tokens": 10,
        "solon.cached_tokens": 0,
        "solon.completion_tokens": 1,
        "solon.model_calls": 1,
        "solon.queue_seconds": 0.25,
        "solon.inference_seconds": 0.5,
        "solon.weight_version": "initial",
    }
    assert {span.status.status_code for span in spans.all} == {StatusCode.UNSET}


async def test_a_stream_is_one_trace_whose_spans_are_nobody_elses(spans: Spans) -> None:
    engine = FunctionEngine(answer=lambda c, s: "one two three")
    async with running(ROLE, engine) as address, PolicyClient(address) as client:
        async for _ in client.stream(ASKED):
            # in between, what the caller does is not the call's work
            await client.generate(ASKED)
    called, served = spans.one(STREAM, SpanKind.CLIENT), spans.one(STREAM, SpanKind.SERVER)
    (made,) = (one for one in spans.named("engine.generate") if is_child(one, served))
    assert is_child(served, called)
    assert of(made)["solon.completion_tokens"] == 3
    assert of(called)["rpc.grpc.status_code"] == of(served)["rpc.grpc.status_code"] == 0
    assert {span.parent for span in spans.named(GENERATE, SpanKind.CLIENT)} == {None}


async def test_a_stream_that_is_left_ends_its_spans(spans: Spans) -> None:
    def answer(conversation: Conversation, sampling: base.Sampling) -> str:
        # no further piece after the first
        engine.gate.clear()
        return "one two three"

    engine = FunctionEngine(answer=answer)
    async with running(ROLE, engine) as address, PolicyClient(address) as client:
        pieces = client.stream(ASKED)
        await anext(pieces)
        await pieces.aclose()
        async with asyncio.timeout(60):
            # gRPC counts a cancelled call as over before its handler is
            while not spans.named(STREAM, SpanKind.SERVER):
                await asyncio.sleep(0)
    assert of(spans.one(STREAM, SpanKind.CLIENT)).get("error.type") is None
    assert of(spans.one(STREAM, SpanKind.SERVER))["rpc.grpc.status_code"] == 1
    assert spans.one("engine.generate").end_time is not None


@pytest.mark.parametrize("streams", [False, True])
async def test_each_failed_attempt_is_an_event_of_the_call(spans: Spans, streams: bool) -> None:
    failures = [base.Overloaded("full", retry_after=0.01)] * 2

    def answer(conversation: Conversation, sampling: base.Sampling) -> str:
        if failures:
            raise failures.pop()
        return "Yes."

    engine = FunctionEngine(answer=answer)
    async with running(ROLE, engine) as address, PolicyClient(address) as client:
        if streams:
            _ = [piece async for piece in client.stream(ASKED)]
        else:
            await client.generate(ASKED)
    name = STREAM if streams else GENERATE
    called = spans.one(name, SpanKind.CLIENT)
    failed = {"error.type": "OVERLOADED", "rpc.grpc.status_code": 8}
    told = [(event.name, dict(event.attributes or {})) for event in called.events]
    assert told == [("attempt failed", failed)] * 2
    assert of(called)["rpc.grpc.status_code"] == 0
    served = spans.named(name, SpanKind.SERVER)
    assert [of(one)["rpc.grpc.status_code"] for one in served] == [8, 8, 0]
    assert all(is_child(one, called) for one in served)


@pytest.mark.parametrize(
    ("error", "reason", "code", "servers_fault"),
    [
        (base.EngineFailed(SECRET), "ENGINE_FAILED", 13, StatusCode.ERROR),
        (base.InvalidInput(SECRET), "INVALID_FIELD", 3, StatusCode.UNSET),
        (RuntimeError(SECRET), "INTERNAL", 13, StatusCode.ERROR),
    ],
)
async def test_a_failure_is_in_every_span_by_its_reason_and_never_its_text(
    spans: Spans, error: Exception, reason: str, code: int, servers_fault: StatusCode
) -> None:
    def answer(conversation: Conversation, sampling: base.Sampling) -> str:
        raise error

    engine = FunctionEngine(answer=answer)
    async with running(ROLE, engine) as address, PolicyClient(address) as client:
        with pytest.raises(errors.SolonError):
            await client.generate(ASKED)
    called, served = spans.one(GENERATE, SpanKind.CLIENT), spans.one(GENERATE, SpanKind.SERVER)
    for span in (called, served):
        assert of(span)["rpc.grpc.status_code"] == code
        assert of(span)["error.type"] == reason
    assert (called.status.status_code, called.status.description) == (StatusCode.ERROR, reason)
    assert served.status.status_code is servers_fault
    assert of(spans.one("engine.generate"))["error.type"] == type(error).__name__
    assert SECRET not in everything_in(spans)


async def test_a_call_that_nobody_answers_has_its_end_too(spans: Spans) -> None:
    async with PolicyClient("127.0.0.1:1", retry_for=0) as client:
        with pytest.raises(errors.Unavailable):
            await client.generate(ASKED)
    called = spans.one(GENERATE, SpanKind.CLIENT)
    assert of(called)["error.type"] == "Unavailable"
    assert of(called)["rpc.grpc.status_code"] == 14


async def test_an_answer_that_was_known_is_marked_and_used_no_engine(spans: Spans) -> None:
    async with running(ROLE, FunctionEngine()) as address, PolicyClient(address) as client:
        for _ in range(2):
            await client.generate(ASKED, request_id="r-1")
    first, again = spans.named(GENERATE, SpanKind.SERVER)
    assert [of(span).get("solon.replayed") for span in (first, again)] == [None, True]
    assert is_child(spans.one("engine.generate"), first)


async def test_no_span_holds_a_prompt_an_answer_or_a_token(spans: Spans, tmp_path: Path) -> None:
    token, tokens = "correct-horse-battery-staple-1234", tmp_path / "tokens"
    tokens.write_text(line_of("chat", [Scope.INFER], token), "utf-8")
    engine = FunctionEngine(answer=lambda c, s: f"{SECRET} does")
    async with (
        running(ROLE, engine, token_file=tokens) as address,
        PolicyClient(address, token=token) as client,
    ):
        await client.generate(ASKED, sampling=Sampling(stop=(SECRET.upper(),)))
        _ = [piece async for piece in client.stream(ASKED, return_tokens=True)]
    assert of(spans.one(GENERATE, SpanKind.SERVER))["solon.caller"] == "chat"
    told = everything_in(spans)
    assert "PolicyService" in told
    assert SECRET not in told
    assert SECRET.upper() not in told
    assert token not in told


def everything_in(spans: Spans) -> str:
    return json.dumps([span.to_json() for span in spans.all])
