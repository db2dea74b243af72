"""A client keeps as many calls in flight as the servers take; of a silent service one call asks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.client import PolicyClient, errors
from solon.client.line import Line
from solon.v1 import common_pb2, policy_pb2, policy_pb2_grpc
from tests.clock import Clock

ANSWER = common_pb2.Completion(text="Yes.", finish_reason=common_pb2.FINISH_REASON_STOP)
FULL = errors.Overloaded("the queue is full")
GONE = errors.Unavailable("nobody answers")
NO_TIME = errors.DeadlineInQueue("the deadline would pass in the queue")
LATE = errors.DeadlineExceeded("the deadline passed")


class Places(policy_pb2_grpc.PolicyServiceServicer):
    """Holds so many calls and refuses more; answers none before so many were refused."""

    def __init__(self, places: int, first: int, refuse: Callable[[Any], Any]) -> None:
        self.places = places
        self._first = first
        self._begin = asyncio.Event()
        self.held = self.most_held = self.answered = self.refused = 0
        self._refuse = refuse

    def add(self, server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def Generate(self, request: Any, context: Any) -> policy_pb2.GenerateResponse:  # noqa: N802
        if self.held >= self.places:
            self.refused += 1
            if self.refused >= self._first:
                self._begin.set()
            await self._refuse(context)
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        await self._begin.wait()
        # so that others come meanwhile
        for _ in range(20):
            await asyncio.sleep(0)
        self.held -= 1
        self.answered += 1
        return policy_pb2.GenerateResponse(completions=[ANSWER])

    async def StreamGenerate(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield policy_pb2.StreamGenerateResponse()


async def fail(line: Line, error: errors.SolonError) -> None:
    with pytest.raises(type(error)), line.turn():
        raise error


async def enter(line: Line, calls: int) -> None:
    for _ in range(calls):
        await line.enter(line.ticket())


def answer(line: Line) -> None:
    with line.turn():
        pass


async def test_a_crowd_at_a_small_server_is_answered_with_few_refusals(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    policy = Places(
        10,
        990,
        lambda c: refuse(c, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.001),
    )
    server = await serve(policy.add)
    async with PolicyClient(server.address) as client:
        await asyncio.gather(*(client.generate(question) for _ in range(1000)))
    assert policy.answered == 1000
    assert policy.most_held == 10
    # those who came before anybody knew, and a few that the growing bound tried
    assert policy.refused < 990 + 50


async def test_without_patience_no_call_waits_for_another(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    policy = Places(1, 49, lambda c: refuse(c, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"))
    server = await serve(policy.add)
    async with PolicyClient(server.address, retry_for=0) as client:
        calls = (client.generate(question) for _ in range(50))
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert (policy.answered, policy.refused) == (1, 49)
    assert sum(isinstance(end, errors.Overloaded) for end in ended) == 49


@pytest.mark.parametrize("refusal", [FULL, NO_TIME])
async def test_the_bound_falls_to_what_the_servers_hold_and_grows_with_the_answers(
    refusal: errors.SolonError,
) -> None:
    line = Line(60)
    await enter(line, 100)
    assert line.limit == math.inf
    for _ in range(50):
        await fail(line, refusal)
    assert (line.in_flight, line.limit) == (50, 45)
    waiting = [asyncio.ensure_future(line.enter(line.ticket())) for _ in range(30)]
    await asyncio.sleep(0)
    assert line.waiting == 30
    for _ in range(45):
        answer(line)
    assert 45.5 < line.limit < 46
    assert line.in_flight == 35
    await asyncio.gather(*waiting)


async def test_after_an_outage_the_bound_doubles_with_every_round_of_answers() -> None:
    line = Line(60)
    await enter(line, 3)
    for _ in range(3):
        await fail(line, GONE)
    assert line.limit == 1
    waiting = [asyncio.ensure_future(line.enter(line.ticket())) for _ in range(15)]
    for together in (1, 2, 4, 8):
        await asyncio.sleep(0)
        assert line.in_flight == together
        for _ in range(together):
            answer(line)
    await asyncio.gather(*waiting)
    assert line.in_flight == 0


async def test_of_a_silent_service_one_call_asks_and_the_others_are_sent_away_in_the_end() -> None:
    clock = Clock()
    line = Line(60, clock=clock)
    await enter(line, 1)
    await fail(line, GONE)
    await line.enter(line.ticket())
    behind = [asyncio.ensure_future(line.enter(line.ticket())) for _ in range(20)]
    await asyncio.sleep(0)
    clock.now = 61
    await fail(line, GONE)
    ended = await asyncio.gather(*behind, return_exceptions=True)
    assert {type(end) for end in ended} == {errors.Unavailable}
    assert all("none of which was answered" in end.__notes__[0] for end in ended)  # type: ignore[union-attr]
    assert (line.in_flight, line.waiting) == (0, 0)


async def test_nobody_is_sent_away_while_a_call_is_in_flight_or_after_an_answer() -> None:
    clock = Clock()
    line = Line(60, clock=clock)
    await enter(line, 2)
    await fail(line, FULL)
    behind = asyncio.ensure_future(line.enter(line.ticket()))
    await asyncio.sleep(0)
    clock.now = 61
    answer(line)
    await behind
    again = asyncio.ensure_future(line.enter(line.ticket()))
    await asyncio.sleep(0)
    await fail(line, FULL)
    await again


async def test_a_call_that_is_tried_again_is_let_in_before_those_that_came_later() -> None:
    line = Line(60)
    first = line.ticket()
    await enter(line, 1)
    await fail(line, GONE)
    await enter(line, 1)
    later = asyncio.ensure_future(line.enter(line.ticket()))
    await asyncio.sleep(0)
    retried = asyncio.ensure_future(line.enter(first))
    await asyncio.sleep(0)
    await fail(line, GONE)
    await retried
    assert not later.done()
    answer(line)
    await later


async def test_a_caller_that_leaves_the_line_takes_no_place() -> None:
    line = Line(60)
    await enter(line, 1)
    await fail(line, GONE)
    await enter(line, 1)
    leaves, at_its_turn, stays = [
        asyncio.ensure_future(line.enter(line.ticket())) for _ in range(3)
    ]
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait({leaves})
    await fail(line, GONE)
    at_its_turn.cancel()
    await asyncio.wait({at_its_turn})
    await stays
    assert (line.in_flight, line.waiting) == (1, 0)


async def test_a_mistake_of_the_caller_changes_no_bound() -> None:
    line = Line(60)
    await enter(line, 5)
    await fail(line, errors.InvalidArgument("no"))
    assert (line.in_flight, line.limit) == (4, math.inf)


async def late(line: Line, meanwhile: Callable[[], Any]) -> bool:
    """Whether a call that is late may have been for the others that were in flight."""
    with pytest.raises(errors.DeadlineExceeded), line.turn() as turn:  # noqa: PT012
        await meanwhile()
        raise LATE
    return turn.late


async def nothing() -> None:
    pass


async def test_where_late_is_better_than_never_the_bound_is_what_is_done_in_a_calls_time() -> None:
    line = Line(60, retry_late=True)
    await enter(line, 100)

    async def meanwhile() -> None:
        for _ in range(20):
            answer(line)

    assert await late(line, meanwhile)
    assert line.limit == 18


async def test_elsewhere_a_deadline_that_passed_changes_no_bound() -> None:
    line = Line(60)
    await enter(line, 2)
    assert not await late(line, nothing)
    assert line.limit == math.inf


async def test_a_call_is_late_by_itself_only_if_no_other_was_in_flight() -> None:
    line = Line(60, retry_late=True)
    await enter(line, 1)
    assert not await late(line, nothing)
    await enter(line, 2)
    assert await late(line, nothing)

    async def another() -> None:
        line.limit = 2
        await enter(line, 1)
        answer(line)

    assert await late(line, another)
