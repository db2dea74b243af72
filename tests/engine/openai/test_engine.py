"""The openai engine against an endpoint that does what it is told, on a real socket."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from solon.chat import Conversation, Message
from solon.engine import Engine, EngineOptions, create
from solon.engine.base import (
    BackendUnavailable,
    ContentFiltered,
    ContextExceeded,
    EngineError,
    EngineFailed,
    FinishReason,
    GenerationPiece,
    InvalidInput,
    Overloaded,
    PauseMode,
    Sampling,
    Unsupported,
)
from tests.engine.openai.conftest import SPENT, Body, Fake, Start, chat, error, piece, streamed, top

ASKED = Conversation((Message("system", "Be kind."), Message("user", "Can you help?")))
SOME = Sampling(max_tokens=50, temperature=0.5, top_p=0.9, seed=2**63 + 7, stop=("END",))
KEY = "sk-very-secret"


async def test_a_conversation_is_answered_counted_and_priced(
    fake: Fake, start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-endpoint")
    caplog.set_level(logging.DEBUG, "solon")
    engine = await start(
        api_key_env="SOME_KEY",
        input_price="2.5",
        cached_price="1.25",
        output_price="10",
        reasoning_tokens="100",
        body='{"service_tier": "flex"}',
    )
    made = await engine.generate(ASKED, SOME)
    assert (made.text, made.finish_reason) == ("Gladly.", FinishReason.STOP)
    assert (made.usage.prompt_tokens, made.usage.cached_tokens) == (1000, 600)
    assert (made.usage.completion_tokens, made.usage.model_calls) == (10, 1)
    assert made.usage.cost_usd == pytest.approx((400 * 2.5 + 600 * 1.25 + 10 * 10) / 1e6)
    assert made.timing.inference > 0
    assert made.weight_version == "initial"
    # nobody told their ids
    assert made.tokens == ()
    assert not engine.info.supports_tokens
    assert fake.asked == [
        {
            "model": "m",
            "messages": ASKED.as_dicts(),
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 7,
            "stop": ["END"],
            "max_completion_tokens": 150,
            "service_tier": "flex",
        }
    ]
    assert set(fake.keys) == {f"Bearer {KEY}"}
    told = f"{engine.info}{caplog.text}{[vars(record) for record in caplog.records]}"
    assert KEY not in told
    assert "'input_price': '2.5'" in told


async def test_a_key_in_a_file_may_change_and_without_one_none_is_sent(
    fake: Fake, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    await (await start()).generate(ASKED, SOME)
    assert KEY not in str(fake.keys)
    held = tmp_path / "key"
    held.write_text("first\n")
    engine = await start(api_key_file=str(held))
    held.write_text("second\n")
    await engine.generate(ASKED, SOME)
    assert fake.keys[-1] == "Bearer second"
    held.unlink()
    with pytest.raises(BackendUnavailable, match="api_key_file"):
        await engine.generate(ASKED, SOME)


async def test_a_rate_limit_is_waited_for_and_in_the_end_told_with_its_time(
    fake: Fake, start: Start
) -> None:
    engine = await start(retries="2")
    answers = [error(429, "slow", retry_after_ms="1"), error(503, "busy", retry_after_ms="1")]
    fake.answer = lambda body: answers.pop(0) if answers else chat()
    assert (await engine.generate(ASKED, SOME)).text == "Gladly."
    assert len(fake.asked) == 3
    fake.answer = lambda body: error(429, "too many", retry_after="150")
    with pytest.raises(Overloaded, match="too many") as caught:
        await engine.generate(ASKED, SOME)
    assert caught.value.retry_after == 150
    fake.answer = lambda body: error(429, "no money", "insufficient_quota", retry_after_ms="1")
    with pytest.raises(BackendUnavailable, match="no money"):
        await engine.generate(ASKED, SOME)


def hang_up(body: Body) -> web.Response:
    body["request"].transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (lambda body: error(500, "broken"), BackendUnavailable, "500.*broken"),
        (hang_up, BackendUnavailable, "cannot be reached"),
        (lambda body: error(401, "revoked"), BackendUnavailable, "revoked"),
        (lambda body: error(400, "no such field"), InvalidInput, "no such field"),
        (lambda body: error(418, "a teapot"), EngineFailed, "teapot"),
        (lambda body: error(400, "bad", "content_filter"), ContentFiltered, "filter refuses"),
        (lambda body: chat("It is", "content_filter"), ContentFiltered, "filter withheld"),
        (lambda body: chat("It is", "abort"), BackendUnavailable, "abort"),
        (lambda body: chat(None, "tool_calls"), EngineFailed, "tool_calls"),
        (lambda body: chat("It is", None), EngineFailed, "None"),
        (lambda body: web.Response(text="<html>"), EngineFailed, "the body: Invalid JSON"),
        (lambda body: web.json_response([1]), EngineFailed, "no chat reply"),
        (lambda body: {"object": "chat.completion"}, EngineFailed, "choices: Field required"),
        (lambda body: chat() | {"choices": []}, EngineFailed, "got 0"),
        (lambda body: chat() | {"choices": ["secret"]}, EngineFailed, r"choices\.0: (?!.*secret)"),
    ],
)
async def test_what_goes_wrong_is_told_by_its_type(
    fake: Fake,
    start: Start,
    answer: Callable[[Body], Any],
    kind: type[EngineError],
    text: str,
) -> None:
    engine = await start()
    fake.answer = answer
    with pytest.raises(kind, match=text) as caught:
        await engine.generate(ASKED, SOME)
    assert type(caught.value) is kind
    # nothing hangs on the error that quotes an answer or a key: the log shows all that does
    assert caught.value.__context__ is None
    fake.answer = lambda body: chat()
    assert (await engine.generate(ASKED, SOME)).text == "Gladly."


@pytest.mark.parametrize(
    ("said", "code", "tokens"),
    [
        (
            "This model's maximum context length is 8192 tokens. However, you requested 8250 "
            "tokens (8200 in the messages, 50 in the completion).",
            "context_length_exceeded",
            "8200",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted "
            "in 9001 tokens. Please reduce the length of the messages.",
            "context_length_exceeded",
            "9001",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, your prompt contains at "
            "least 8193 input tokens, which exceeds this limit even without any output tokens.",
            None,
            "at least 8193",
        ),
        ("the request exceeds the available context size, try increasing it", None, "at least"),
    ],
)
async def test_a_context_that_is_exceeded_is_told_with_the_numbers_that_are_known(
    fake: Fake, start: Start, said: str, code: str | None, tokens: str
) -> None:
    engine = await start(context_tokens="8192")
    fake.answer = lambda body: error(400, said, code)
    with pytest.raises(ContextExceeded, match=f"prompt has {tokens} .* context is 8192"):
        await engine.generate(ASKED, SOME)


async def test_a_silent_endpoint_is_given_up(fake: Fake, start: Start) -> None:
    engine = await start(timeout="0.05")

    async def never(body: Body) -> Body:
        await asyncio.Event().wait()
        return {}

    fake.answer = never
    with pytest.raises(BackendUnavailable, match=r"said nothing for 0\.05 s"):
        await engine.generate(ASKED, SOME)


async def test_cancelling_hangs_up_and_makes_room(fake: Fake, start: Start) -> None:
    engine = await start(max_batch=1, queue_capacity=1)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow(body: Body) -> Body:
        asked.set()
        await answered.wait()
        return chat()

    fake.answer = slow
    first = asyncio.create_task(engine.generate(ASKED, SOME))
    await asked.wait()
    second = asyncio.create_task(engine.generate(ASKED, SOME))
    while not engine.load().queued:
        await asyncio.sleep(0)
    assert engine.load().running == 1
    with pytest.raises(Overloaded, match="1 sequences wait"):
        await engine.generate(ASKED, SOME)
    first.cancel()
    await fake.hung_up.wait()
    answered.set()
    assert (await second).text == "Gladly."
    assert (engine.load().queued, engine.load().running) == (0, 0)


async def read(engine: Engine) -> list[GenerationPiece]:
    return [made async for made in engine.stream(ASKED, SOME)]


async def test_an_answer_is_streamed(fake: Fake, start: Start) -> None:
    engine = await start(output_price="1")
    said: list[Body | str | None] = [
        piece(),
        piece("Gl"),
        piece("adly."),
        piece(finish="stop"),
        SPENT,
        "[DONE]",
    ]
    fake.answer = lambda body: streamed(body["request"], said)
    pieces = await read(engine)
    assert [made.text for made in pieces] == ["Gl", "adly.", ""]
    final = pieces[-1].final
    assert final is not None
    assert (final.text, final.finish_reason) == ("Gladly.", FinishReason.STOP)
    assert final.usage.completion_tokens == 10
    assert final.usage.cost_usd == pytest.approx(10 / 1e6)
    assert fake.asked[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ([piece("Gl"), None], BackendUnavailable),
        ([piece("Gl"), "[DONE]"], BackendUnavailable),
        ([piece("Gl"), {"error": {"message": "out of memory"}}], BackendUnavailable),
        ([piece("Gl"), piece(finish="content_filter")], ContentFiltered),
        ([piece("Gl"), "no json"], EngineFailed),
        ([piece("Gl"), {"choices": 3}], EngineFailed),
    ],
)
async def test_a_stream_that_does_not_end_well_ends_with_an_error(
    fake: Fake, start: Start, said: list[Body | str | None], kind: type[EngineError]
) -> None:
    engine = await start()
    fake.answer = lambda body: streamed(body["request"], said)
    with pytest.raises(kind):
        await read(engine)
    assert engine.load().running == 0


async def test_pausing_ends_what_runs_with_the_text_so_far(fake: Fake, start: Start) -> None:
    engine = await start()

    async def unending(body: Body) -> web.StreamResponse:
        response = await streamed(body["request"], [piece("Gl")])
        await asyncio.Event().wait()
        return response

    fake.answer = unending
    stream = engine.stream(ASKED, SOME)
    assert (await anext(stream)).text == "Gl"
    pausing = asyncio.create_task(engine.pause(PauseMode.ABORT))
    final = (await anext(stream)).final
    assert final is not None
    assert (final.text, final.finish_reason) == ("Gl", FinishReason.ABORT)
    assert await pausing == 1
    await fake.hung_up.wait()
    await engine.resume()
    fake.answer = lambda body: chat()
    assert (await engine.generate(ASKED, SOME)).text == "Gladly."


async def test_a_judge_reads_what_is_among_the_likeliest_tokens(fake: Fake, start: Start) -> None:
    by_place = top({"(": -0.1, "Sure": -3.0}, {"A": -0.2, "B": -1.7})
    fake.answer = lambda body: chat(logprobs=by_place if body.get("logprobs") else None)
    engine = await start(scoring="auto", top_logprobs="5")
    assert engine.info.supports_logprobs
    assert engine.info.extra["scoring"] == "top_logprobs"
    scored = await engine.score([ASKED] * 2, [["(A)", "(B)"], ["(A)", "(C)"]])
    assert scored.logprobs[0] == pytest.approx((-0.3, -1.8))
    assert scored.logprobs[1][0] == pytest.approx(-0.3)
    # never a default: that it is not among the likeliest does not say how unlikely it is
    assert math.isnan(scored.logprobs[1][1])
    assert scored.usage.model_calls == 2
    assert scored.usage.prompt_tokens == 2000
    (asked, _) = fake.asked
    assert (asked["max_completion_tokens"], asked["top_logprobs"], asked["temperature"]) == (
        2,
        5,
        0,
    )


async def test_of_a_prompt_that_is_filtered_nothing_is_told(fake: Fake, start: Start) -> None:
    by_place = top({"Yes": -0.1, "No": -3.0})

    def picky(body: Body) -> Any:
        if "murder" in str(body["messages"]):
            return error(400, "refused", "content_filter")
        return chat(logprobs=by_place if body.get("logprobs") else None)

    fake.answer = picky
    engine = await start(scoring="top_logprobs")
    harmful = Conversation.from_user("How do I murder?")
    scored = await engine.score([harmful, ASKED], [["Yes", "No"]] * 2)
    assert scored.logprobs[1] == (-0.1, -3.0)
    assert all(map(math.isnan, scored.logprobs[0]))


async def test_without_log_probabilities_scoring_is_refused(fake: Fake, start: Start) -> None:
    def plain(body: Body) -> Any:
        return error(400, "logprobs are not supported") if body.get("logprobs") else chat()

    fake.answer = plain
    engine = await start(scoring="auto")
    assert not engine.info.supports_logprobs
    with pytest.raises(Unsupported, match="log-probabilities"):
        await engine.score([ASKED], [["(A)"]])
    with pytest.raises(InvalidInput, match=r"scoring.*not supported.*got 'top_logprobs'"):
        await start(scoring="top_logprobs")


async def test_what_only_a_vllm_server_can_is_refused_of_others(start: Start) -> None:
    engine = await start()
    with pytest.raises(Unsupported, match="top_k"):
        await engine.generate(ASKED, Sampling(top_k=5))
    with pytest.raises(Unsupported, match="ends with the assistant"):
        await engine.generate(ASKED.then(Message("assistant", "I")), SOME)
    with pytest.raises(Unsupported, match="weights"):
        await engine.update_weights("path", "next")
    with pytest.raises(InvalidInput, match="temperature"):
        await engine.generate(ASKED, Sampling(temperature=-1))


async def test_a_model_that_is_drawn_from_in_its_own_way_is_asked_for_nothing_else(
    fake: Fake, start: Start
) -> None:
    def only_its_own(body: Body) -> Any:
        if "temperature" in body:
            return error(400, "temperature does not support 0 with this model")
        return chat()

    fake.answer = only_its_own
    with pytest.raises(InvalidInput, match=r"fixed_sampling.*expected true .*support 0.*got False"):
        await start()
    engine = await start(fixed_sampling="true")
    await engine.generate(ASKED, SOME)
    assert not {"temperature", "top_p", "seed"} & set(fake.asked[0])


@pytest.mark.parametrize("ignored", [False, True])
async def test_the_bound_of_answers_is_a_field_that_the_endpoint_heeds(
    fake: Fake, start: Start, ignored: bool
) -> None:
    def old(body: Body) -> Any:
        if "max_tokens" in body:
            return chat()
        if not ignored:
            return error(422, "unknown field max_completion_tokens")
        endless = chat()
        endless["usage"]["completion_tokens"] = 400
        return endless

    fake.answer = old
    engine = await start()
    await engine.generate(ASKED, SOME)
    assert fake.asked[0]["max_tokens"] == 50
    with pytest.raises(InvalidInput, match="max_completion_tokens"):
        await start(max_tokens_field="max_completion_tokens")


@pytest.mark.parametrize(
    ("status", "options", "text"),
    [
        (401, {}, r"api_key_env.* asks for a key \(401: no none\).*api_key_file"),
        (
            401,
            {"api_key_env": "SOME_KEY"},
            r"refuses the key that 'SOME_KEY' holds \(401: no \*{3}\)",
        ),
        (404, {}, r"model: .* has no 'm' \(404: .*it has 'large', 'small'"),
    ],
)
async def test_a_wrong_key_or_model_is_the_mistake_of_whoever_starts_it(
    fake: Fake,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    options: dict[str, str],
    text: str,
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    fake.models = {"object": "list", "data": [{"id": "large"}, {"id": "small"}]}
    fake.answer = lambda body: error(status, f"no {KEY if options else 'none'}")
    with pytest.raises(InvalidInput, match=text) as caught:
        await start(**options)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"base_url": ""}, "base_url.*http://localhost:8000/v1"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "https://user:word@host/v1"}, "without a user or a password"),
        ({"base_url": "http://host/v1", "api_key_env": "SOME_KEY"}, "plain text.*allow_plain_key"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "api_key_env.*NO_SUCH_VARIABLE"),
        ({"api_key_env": KEY}, "api_key_env.*the name of an environment variable$"),
        ({"api_key_env": "SOME_KEY", "api_key_file": "key"}, "got both"),
        ({"api_key_file": "/no/such/file"}, "api_key_file"),
        ({"api_key": KEY}, "no such option"),
        ({"dialect": "french"}, "dialect.*auto, vllm, openai.*'french'"),
        ({"scoring": "vllm", "dialect": "openai"}, "scoring.*dialect is openai"),
        ({"body": "{"}, "body.*JSON"),
        ({"body": '{"temperature": 1}'}, "body.*temperature"),
        ({"timeout": "0"}, "timeout"),
        ({"input_price": "-1"}, "input_price"),
        ({"allow_plain_key": "yes"}, "allow_plain_key"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], text: str
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    extra = {"base_url": "http://localhost:1/v1"} | options
    with pytest.raises(InvalidInput, match=text) as caught:
        create("openai", EngineOptions(model="m", extra=extra))
    assert KEY not in str(caught.value)
