"""A call outlives a busy, a restarting and a dying server, and no error is repeated in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.client import CriticClient, PolicyClient, errors
from solon.client.line import Line
from solon.client.retry import Retries, RetryPolicy
from solon.v1 import common_pb2, critic_pb2, critic_pb2_grpc, policy_pb2, policy_pb2_grpc
from tests.clock import Clock

Context = grpc.aio.ServicerContext[Any, Any]
STOPPED = common_pb2.FINISH_REASON_STOP
ANSWER = common_pb2.Completion(text="Yes.", finish_reason=STOPPED)


class Policy(policy_pb2_grpc.PolicyServiceServicer):
    """Refuses the first calls, then answers; keeps the request ids."""

    def __init__(self, refusals: list[Callable[[Context], Any]]) -> None:
        self._refusals = refusals
        self.request_ids: list[str] = []

    def add(self, server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def Generate(  # noqa: N802
        self, request: policy_pb2.GenerateRequest, context: Context
    ) -> policy_pb2.GenerateResponse:
        await self._maybe_refuse(request.request_id, context)
        return policy_pb2.GenerateResponse(completions=[ANSWER])

    async def StreamGenerate(  # noqa: N802
        self, request: policy_pb2.StreamGenerateRequest, context: Context
    ) -> Any:
        if request.weight_version != "fail-later":
            await self._maybe_refuse(request.request_id, context)
        yield policy_pb2.StreamGenerateResponse(text="Ye")
        await self._maybe_refuse(request.request_id, context)
        yield policy_pb2.StreamGenerateResponse(text="s.", finish_reason=STOPPED)

    async def _maybe_refuse(self, request_id: str, context: Context) -> None:
        self.request_ids.append(request_id)
        if self._refusals:
            await self._refusals.pop(0)(context)


@pytest.fixture
def overloaded(refuse: Any) -> Callable[[Context], Any]:
    return lambda context: refuse(
        context, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.01
    )


async def test_a_busy_server_is_asked_again_with_the_same_request_id(
    serve: Any, overloaded: Any, question: Conversation
) -> None:
    policy = Policy([overloaded, overloaded])
    server = await serve(policy.add)
    async with PolicyClient(server.address) as client:
        result = await client.generate(question, request_id="r-1")
    assert result.completions[0].text == "Yes."
    assert policy.request_ids == ["r-1"] * 3


async def test_without_patience_a_busy_server_is_asked_once(
    serve: Any, overloaded: Any, question: Conversation
) -> None:
    policy = Policy([overloaded, overloaded])
    server = await serve(policy.add)
    async with PolicyClient(server.address, retry_for=0) as client:
        with pytest.raises(errors.Overloaded) as caught:
            await client.generate(question)
    assert len(policy.request_ids) == 1
    assert caught.value.__notes__[0].startswith("gave up after 1 attempts")


async def test_a_wait_that_the_server_asks_for_beyond_the_patience_is_not_begun(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    policy = Policy(
        [lambda c: refuse(c, grpc.StatusCode.UNAVAILABLE, "PAUSED", retry_after=3600.0)]
    )
    server = await serve(policy.add)
    async with PolicyClient(server.address, retry_for=60) as client:
        with pytest.raises(errors.Paused):
            await client.generate(question)
    assert len(policy.request_ids) == 1


async def test_an_error_that_would_come_again_is_not_repeated(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    policy = Policy([lambda c: refuse(c, grpc.StatusCode.INTERNAL, "ENGINE_FAILED")])
    server = await serve(policy.add)
    async with PolicyClient(server.address) as client:
        with pytest.raises(errors.EngineFailed):
            await client.generate(question)
    assert len(policy.request_ids) == 1


async def test_a_stream_is_repeated_before_its_first_piece(
    serve: Any, overloaded: Any, question: Conversation
) -> None:
    policy = Policy([overloaded])
    server = await serve(policy.add)
    async with PolicyClient(server.address) as client:
        text = "".join([piece.text async for piece in client.stream(question)])
    assert text == "Yes."
    assert len(policy.request_ids) == 3


async def test_a_stream_is_not_repeated_after_its_first_piece(
    serve: Any, overloaded: Any, question: Conversation
) -> None:
    policy = Policy([overloaded])
    server = await serve(policy.add)
    seen = []
    async with PolicyClient(server.address) as client:
        with pytest.raises(errors.Overloaded):  # noqa: PT012
            async for piece in client.stream(question, weight_version="fail-later"):
                seen.append(piece.text)  # noqa: PERF401
    assert seen == ["Ye"]


async def test_a_call_waits_for_a_server_that_comes_back_on_its_port(
    serve: Any, question: Conversation
) -> None:
    running = asyncio.Event()

    async def hang(context: Context) -> None:
        running.set()
        await asyncio.Event().wait()

    server = await serve(Policy([hang]).add)
    async with PolicyClient(server.address, retry_for=60) as client:
        call = asyncio.create_task(client.generate(question))
        await running.wait()
        await server.stop()
        await serve(Policy([]).add, port=server.port)
        result = await call
    assert result.completions[0].text == "Yes."


class Critic(critic_pb2_grpc.CriticServiceServicer):
    """Makes rounds whose text depends on the seed; fails in the middle of the first chain."""

    def __init__(
        self, *, text_of_second_chain: str = "", weights_of_second_chain: str = "w-3"
    ) -> None:
        self.requests: list[critic_pb2.RefineRequest] = []
        self._other_weights = weights_of_second_chain
        self._other_text = text_of_second_chain

    def add(self, server: grpc.aio.Server) -> None:
        critic_pb2_grpc.add_CriticServiceServicer_to_server(self, server)

    async def Critique(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Revise(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Assess(self, request: Any, context: Context) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Refine(self, request: critic_pb2.RefineRequest, context: Context) -> Any:  # noqa: N802
        self.requests.append(request)
        first = len(self.requests) == 1
        for number in range(1, request.rounds + 1):
            if first and number == 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
            text = f"{request.sampling.seed}-{number}" + ("" if first else self._other_text)
            yield critic_pb2.RefineResponse(
                weight_version="w-3" if first else self._other_weights,
                round=number,
                principle_id=str(request.principles.sample.seed),
                revision=common_pb2.Completion(text=text, finish_reason=STOPPED),
                revision_outcome=critic_pb2.OUTCOME_MADE,
            )


async def test_a_chain_that_breaks_goes_on_after_the_rounds_already_made(
    serve: Any, question: Conversation
) -> None:
    critic = Critic()
    server = await serve(critic.add)
    async with CriticClient(server.address) as client:
        rounds = [r async for r in client.refine(question, "Sure.", constitution="core")]
    seed = critic.requests[0].sampling.seed
    assert [r.revision.text for r in rounds if r.revision] == [
        f"{seed}-{number}" for number in (1, 2, 3, 4)
    ]
    first, second = critic.requests
    # in every field, or a server that still makes the first would refuse the second's request_id
    assert first == second


async def test_a_repeated_chain_that_says_something_else_is_refused(
    serve: Any, question: Conversation
) -> None:
    server = await serve(Critic(text_of_second_chain="!").add)
    made = []
    async with CriticClient(server.address) as client:
        with pytest.raises(errors.BadReply, match="do not compute alike"):  # noqa: PT012
            async for refined in client.refine(question, "Sure.", constitution="core"):
                made.append(refined.round)  # noqa: PERF401
    assert made == [1, 2]


async def test_a_repeated_chain_on_other_weights_is_refused(
    serve: Any, question: Conversation
) -> None:
    server = await serve(Critic(weights_of_second_chain="w-4").add)
    async with CriticClient(server.address) as client:
        with pytest.raises(errors.WeightVersionMismatch) as caught:
            _ = [r async for r in client.refine(question, "Sure.", constitution="core")]
    assert (caught.value.expected, caught.value.actual) == ("w-3", "w-4")


async def test_the_patience_begins_with_the_first_failure_not_with_the_call() -> None:
    times = iter([1_000.0, 1_061.0])
    policy = RetryPolicy(retry_for=60, first_delay=0.001)
    retries = Retries(policy, Line(60), clock=lambda: next(times))
    await retries.wait_after(errors.Unavailable("gone"))
    with pytest.raises(errors.Unavailable) as caught:
        await retries.wait_after(errors.Unavailable("gone"))
    assert caught.value.__notes__ == ["gave up after 2 attempts in 61.0 s"]


async def test_patience_with_a_crowd_begins_anew_whenever_another_call_is_answered() -> None:
    clock = Clock()
    line = Line(60, clock=clock)
    retries = Retries(RetryPolicy(retry_for=60, first_delay=0.001), line, clock=clock)

    async def refused(error: errors.SolonError) -> None:
        await retries.turn()
        with pytest.raises(type(error)), retries.attempt():
            raise error
        await retries.wait_after(error)

    no_time = errors.DeadlineInQueue("the deadline would pass in the queue")
    for _ in range(5):
        await refused(no_time)
        await line.enter(line.ticket())
        with line.turn():
            clock.now += 50
    clock.now += 50
    await refused(no_time)
    clock.now += 11
    with pytest.raises(errors.DeadlineInQueue) as caught:
        await refused(no_time)
    assert caught.value.__notes__ == ["gave up after 7 attempts in 311.0 s"]


async def test_calls_that_are_late_together_are_tried_again_however_long_each_takes() -> None:
    clock = Clock()
    line = Line(60, retry_late=True, clock=clock)
    policy = RetryPolicy(retry_for=60, first_delay=0.001, longest_delay=0.001)
    late = errors.DeadlineExceeded("the deadline passed")
    one, other = (Retries(policy, line, clock=clock) for _ in range(2))

    async def passes(until: asyncio.Event) -> None:
        await until.wait()
        raise late

    async def attempt(retries: Retries, until: asyncio.Event) -> None:
        await retries.turn()
        with pytest.raises(errors.DeadlineExceeded), retries.attempt():
            await passes(until)
        await retries.wait_after(late)

    for _ in range(2):
        line.limit = 2
        ends = [asyncio.Event(), asyncio.Event()]
        tried = [
            asyncio.ensure_future(attempt(retries, end))
            for retries, end in zip((one, other), ends, strict=True)
        ]
        await asyncio.sleep(0)
        third = asyncio.ensure_future(line.enter(line.ticket()))
        for end in ends:
            clock.now += 600
            end.set()
            await asyncio.sleep(0)
        # both have failed, nothing was answered for ten times the patience: one asks alone
        await third
        assert (line.in_flight, line.limit) == (1, 1)
        with line.turn():
            pass
        await asyncio.gather(*tried)
    alone = asyncio.Event()
    alone.set()
    with pytest.raises(errors.DeadlineExceeded):
        await attempt(one, alone)


async def test_answers_to_others_give_no_patience_with_a_service_that_is_gone() -> None:
    clock = Clock()
    line = Line(60, clock=clock)
    retries = Retries(RetryPolicy(retry_for=60, first_delay=0.001), line, clock=clock)
    gone = errors.Unavailable("gone")
    await retries.wait_after(gone)
    clock.now = 61
    await line.enter(line.ticket())
    with line.turn():
        pass
    with pytest.raises(errors.Unavailable):
        await retries.wait_after(gone)


def test_pauses_grow_to_their_bound_and_are_never_shorter_than_asked_for() -> None:
    policy = RetryPolicy(first_delay=0.1, longest_delay=2.0)
    for failures, bound in [(1, 0.1), (2, 0.2), (3, 0.4), (10, 2.0), (5_000, 2.0)]:
        pauses = [policy.delay(failures, None) for _ in range(200)]
        assert bound / 2 <= min(pauses) < max(pauses) <= bound
    asked = [policy.delay(1, 8.0) for _ in range(200)]
    assert 8.0 <= min(asked) < max(asked) <= 10.0
