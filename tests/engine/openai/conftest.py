"""An endpoint on loopback that answers, or misbehaves, as a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from solon.engine import Engine, EngineOptions, create

Body = dict[str, Any]
Answer = Callable[[Body], "Body | web.StreamResponse | Awaitable[Body | web.StreamResponse]"]


def chat(text: str | None = "Gladly.", finish: str | None = "stop", **more: Any) -> Body:
    """A chat completion as an endpoint gives it. ``more``: fields of its choice."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **more}],
        "usage": {
            "prompt_tokens": 1000,
            "completion_tokens": 10,
            "total_tokens": 1010,
            "prompt_tokens_details": {"cached_tokens": 600},
        },
    }


def error(status: int, message: str, code: str | None = None, **headers: str) -> web.Response:
    """An error as endpoints tell it."""
    told = {"error": {"message": message, "type": "t", "param": None, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response(told, status=status, headers=named)


def top(*places: dict[str, float]) -> Body:
    """``logprobs`` of a choice: of each place the likeliest tokens, the chosen one first."""
    content = [
        {
            "token": next(iter(place)),
            "logprob": next(iter(place.values())),
            "bytes": None,
            "top_logprobs": [
                {"token": token, "logprob": logprob, "bytes": list(token.encode())}
                for token, logprob in place.items()
            ],
        }
        for place in places
    ]
    return {"content": content}


@dataclass
class Fake:
    """The endpoint; what it was asked, in order."""

    answer: Answer = lambda body: chat()
    models: Body | None = None
    """Its list; None: it has none."""
    asked: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client leaves before it was answered."""
    url: str = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("Authorization"))
        self.asked.append(body := await request.json())
        try:
            made = self.answer(body | {"request": request})
            reply = await made if isinstance(made, Awaitable) else made
        except asyncio.CancelledError:
            self.hung_up.set()
            raise
        return web.json_response(reply) if isinstance(reply, dict) else reply

    async def list(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        return error(404, "no such path") if self.models is None else web.json_response(self.models)


async def streamed(request: web.Request, pieces: Iterable[Body | str | None]) -> web.StreamResponse:
    """Server-sent events; after None the connection is cut."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for piece in pieces:
        if piece is None:
            assert request.transport is not None
            request.transport.abort()
            break
        data = piece if isinstance(piece, str) else json.dumps(piece)
        await response.write(f"data: {data}\n\n".encode())
    return response


def piece(text: str = "", finish: str | None = None, **more: Any) -> Body:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}
    return {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}


SPENT: Body = {"id": "1", "object": "chat.completion.chunk", "choices": []} | {
    "usage": chat()["usage"]
}
"""The last piece, with the usage."""


@asynccontextmanager
async def listening(fake: Fake) -> AsyncIterator[Fake]:
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/v1/chat/completions", fake.serve)
    app.router.add_get("/v1/models", fake.list)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with listening(Fake()) as fake:
        yield fake


Start = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def start(fake: Fake) -> AsyncIterator[Start]:
    """Start an engine at the endpoint; keywords are its own options. What it asked is forgotten."""
    async with AsyncExitStack() as stack:

        async def started(
            model: str = "m", *, max_batch: int = 64, queue_capacity: int = 64, **extra: str
        ) -> Engine:
            # what is not the test's subject is not asked for: neither retries nor log-probabilities
            extra = {"base_url": fake.url, "retries": "0", "scoring": "none"} | extra
            options = EngineOptions(
                model=model, max_batch=max_batch, queue_capacity=queue_capacity, extra=extra
            )
            engine = create("openai", options)
            stack.push_async_callback(engine.close)
            await engine.start()
            fake.asked.clear()
            return engine

        yield started
