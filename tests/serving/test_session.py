"""One request's use of an engine: one set of weights, costs added up, failures at once."""

from __future__ import annotations

import asyncio

import pytest

from solon.chat import Conversation
from solon.engine.base import EngineFailed, Sampling, Timing, Usage
from solon.engine.tasks import concurrently
from solon.serving.errors import WeightVersionMismatch
from solon.serving.session import Session
from solon.serving.testing import FunctionEngine

HELLO = Conversation.from_user("Hello.")


async def test_a_request_keeps_the_weights_of_its_first_call() -> None:
    engine = FunctionEngine()
    session = Session(engine)
    await session.generate(HELLO, Sampling())
    await engine.update_weights("/next", "step-1")
    assert session.weight_version == "initial"
    with pytest.raises(WeightVersionMismatch, match="'step-1', not 'initial'"):
        await session.score([HELLO], [["Yes"]])


async def test_an_answer_of_other_weights_than_demanded_is_no_answer() -> None:
    engine = FunctionEngine()
    session = Session(engine, weight_version="initial")
    engine.gate.clear()
    answer = asyncio.create_task(session.generate(HELLO, Sampling()))
    await asyncio.sleep(0)
    await engine.update_weights("/next", "step-1")
    engine.gate.set()
    with pytest.raises(WeightVersionMismatch):
        await answer


async def test_costs_add_up_over_calls_and_calls_at_the_same_time_take_the_slowest() -> None:
    session = Session(FunctionEngine())
    await session.generate_all([(HELLO, Sampling())] * 3)
    await session.score([HELLO], [["Yes"]])
    assert session.usage == Usage(prompt_tokens=40, completion_tokens=3, model_calls=4)
    assert session.timing == Timing(queue=0.5, inference=1.0)


async def test_the_first_failure_of_calls_made_together_cancels_the_others() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        raise EngineFailed("lost")

    with pytest.raises(EngineFailed, match="lost"):
        await concurrently([waits(), fails()])
    assert cancelled.is_set()
