"""Which requests a batch of the model served; mostly the real engine on the sandbox's model."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

from opentelemetry.sdk.trace import ReadableSpan

from solon.chat import Conversation
from solon.client import ControlClient, JudgeClient, PauseMode, PolicyClient, Sampling
from solon.constitution import load, resolve
from solon.engine import EngineOptions, create
from solon.judge.server import ROLE as JUDGE
from solon.policy.server import ROLE as POLICY
from solon.sandbox import model_path
from solon.serving.server import Role
from solon.serving.testing import running
from tests.conftest import Spans

HELLO = Conversation.from_user("Hello.")


class Held:
    """A service whose model waits until so many sequences are queued, so that it batches them."""

    def __init__(self, address: str, control: ControlClient) -> None:
        self.address = address
        self._control = control

    async def until(self, queued: int) -> None:
        while (await self._control.get_load()).queued < queued:
            pass
        await self._control.resume()


async def held(stack: AsyncExitStack, role: Role) -> Held:
    engine = create("transformers", EngineOptions(model=str(model_path()), threads=1))
    core = load(resolve("core"))
    address = await stack.enter_async_context(running(role, engine, constitutions=[core]))
    control = await stack.enter_async_context(ControlClient(address))
    await control.pause(PauseMode.KEEP)
    return Held(address, control)


def link_ids(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


async def test_concurrent_requests_share_the_span_of_their_batch(spans: Spans) -> None:
    async with AsyncExitStack() as stack:
        service = await held(stack, JUDGE)
        judge = await stack.enter_async_context(JudgeClient(service.address))
        compare = partial(judge.compare, constitution="core", principle_ids=["harmless"])
        calls = [asyncio.create_task(compare(HELLO, a, "Go.")) for a in ("Hi.", "Hm.")]
        await service.until(queued=4)
        await asyncio.gather(*calls)
    batch, scored = spans.one("engine.batch"), spans.named("engine.score")
    assert len({span.context.trace_id for span in scored if span.context}) == 2
    assert sorted(link_ids(batch)) == sorted(map(id_of, scored))
    assert [link_ids(one) for one in scored] == [[id_of(batch)]] * 2
    assert batch.parent is not None
    assert batch.parent.span_id in map(id_of, scored)
    assert dict(batch.attributes or {}) == {"solon.batch.kind": "score", "solon.batch.sequences": 4}


async def test_generations_that_join_together_share_a_span_and_know_their_company(
    spans: Spans,
) -> None:
    async with AsyncExitStack() as stack:
        service = await held(stack, POLICY)
        policy = await stack.enter_async_context(PolicyClient(service.address))
        sampling = Sampling(max_tokens=1)
        call = asyncio.create_task(policy.generate(HELLO, n=3, sampling=sampling))
        await service.until(queued=3)
        await call
    batch, made = spans.one("engine.batch"), spans.named("engine.generate")
    assert dict(batch.attributes or {})["solon.batch.kind"] == "prefill"
    assert sorted(link_ids(batch)) == sorted(map(id_of, made))
    assert [(one.attributes or {})["solon.batch.mean_sequences"] for one in made] == [3, 3, 3]


async def test_a_streamed_generation_is_linked_with_its_batch_as_well(spans: Spans) -> None:
    engine = create("scripted", EngineOptions(model="scripted"))
    async with running(POLICY, engine) as address, PolicyClient(address) as policy:
        _ = [piece async for piece in policy.stream(HELLO)]
    batch, made = spans.one("engine.batch"), spans.one("engine.generate")
    assert link_ids(batch) == [id_of(made)]
    assert link_ids(made) == [id_of(batch)]
