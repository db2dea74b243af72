"""Every way in which a service refuses becomes the right exception, through a real call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.client import JudgeClient, PolicyClient, errors
from solon.v1 import errors_pb2, judge_pb2, judge_pb2_grpc, policy_pb2, policy_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[policy_pb2.GenerateRequest, Context], Awaitable[policy_pb2.GenerateResponse]]


class Policy(policy_pb2_grpc.PolicyServiceServicer):
    """Answers as the test says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def Generate(  # noqa: N802
        self, request: policy_pb2.GenerateRequest, context: Context
    ) -> policy_pb2.GenerateResponse:
        return await self._answer(request, context)

    async def StreamGenerate(self, request: Any, context: Context) -> Any:  # noqa: N802
        yield policy_pb2.StreamGenerateResponse(text="never finished")


def policy(answer: Answer) -> Callable[[grpc.aio.Server], None]:
    return lambda server: policy_pb2_grpc.add_PolicyServiceServicer_to_server(
        Policy(answer), server
    )


async def failure_of(address: str, question: Conversation, **options: Any) -> errors.SolonError:
    async with PolicyClient(address, retry_for=0, **options) as client:
        with pytest.raises(errors.SolonError) as caught:
            await client.generate(question, request_id="test-7")
    return caught.value


def test_every_reason_of_the_contract_has_a_class() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert set(errors.BY_REASON) == names - {"UNSPECIFIED"}


@pytest.mark.parametrize(("reason", "kind"), errors.BY_REASON.items())
async def test_a_reason_becomes_its_class_whatever_the_status_code(
    serve: Any, refuse: Any, question: Conversation, reason: str, kind: type[errors.SolonError]
) -> None:
    server = await serve(policy(lambda _, c: refuse(c, grpc.StatusCode.UNKNOWN, reason)))
    error = await failure_of(server.address, question)
    assert type(error) is kind
    assert (error.reason, error.request_id) == (reason, "test-7")


async def test_an_invalid_field_is_named_with_what_is_wrong_with_it(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    fields = {"sampling.top_p": "expected above 0 and up to 1, got 2.0", "n": "expected 1 to 64"}
    server = await serve(
        policy(
            lambda _, c: refuse(
                c, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", message="bad", fields=fields
            )
        )
    )
    error = await failure_of(server.address, question)
    assert isinstance(error, errors.InvalidArgument)
    assert dict(error.fields) == fields
    assert "sampling.top_p: expected above 0 and up to 1, got 2.0" in str(error)
    assert str(error).endswith("[INVALID_FIELD, request test-7]")


async def test_a_weight_version_mismatch_tells_both_versions(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    server = await serve(
        policy(
            lambda _, c: refuse(
                c,
                grpc.StatusCode.FAILED_PRECONDITION,
                "WEIGHT_VERSION_MISMATCH",
                metadata={"expected": "rl-8", "actual": "initial"},
            )
        )
    )
    error = await failure_of(server.address, question)
    assert isinstance(error, errors.WeightVersionMismatch)
    assert (error.expected, error.actual) == ("rl-8", "initial")


async def test_an_overloaded_server_says_when_to_come_back(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    server = await serve(
        policy(
            lambda _, c: refuse(
                c, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=1.5
            )
        )
    )
    error = await failure_of(server.address, question)
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after == 1.5


async def test_a_defect_is_found_in_the_servers_log_by_its_id(
    serve: Any, refuse: Any, question: Conversation
) -> None:
    server = await serve(
        policy(
            lambda _, c: refuse(
                c, grpc.StatusCode.INTERNAL, "ENGINE_FAILED", metadata={"error_id": "e-42"}
            )
        )
    )
    error = await failure_of(server.address, question)
    assert isinstance(error, errors.EngineFailed)
    assert error.error_id == "e-42"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgument),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, errors.ServerError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.NotAuthorized),
        (grpc.StatusCode.PERMISSION_DENIED, errors.NotAuthorized),
        (grpc.StatusCode.DATA_LOSS, errors.UnexpectedStatus),
    ],
)
@pytest.mark.parametrize("domain", ["solon.v1", "proxy.example"])
async def test_a_reason_of_a_newer_server_or_of_a_proxy_is_classed_by_its_code(
    serve: Any,
    refuse: Any,
    question: Conversation,
    code: grpc.StatusCode,
    kind: type[errors.SolonError],
    domain: str,
) -> None:
    server = await serve(policy(lambda _, c: refuse(c, code, "OF_THE_FUTURE", domain=domain)))
    error = await failure_of(server.address, question)
    assert type(error) is kind
    assert error.code is code
    assert error.reason == ("OF_THE_FUTURE" if domain == "solon.v1" else "")


async def test_a_status_without_details_keeps_its_text(serve: Any, question: Conversation) -> None:
    server = await serve(
        policy(lambda _, c: c.abort(grpc.StatusCode.UNAVAILABLE, "proxy: no route"))
    )
    error = await failure_of(server.address, question)
    assert type(error) is errors.Unavailable
    assert str(error) == "proxy: no route [UNAVAILABLE, request test-7]"


async def test_a_details_trailer_that_is_no_status_is_passed_over(
    serve: Any, question: Conversation
) -> None:
    trailer = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    server = await serve(
        policy(lambda _, c: c.abort(grpc.StatusCode.UNAVAILABLE, "odd", trailing_metadata=trailer))
    )
    assert type(await failure_of(server.address, question)) is errors.Unavailable


async def test_a_reply_above_the_clients_bound_is_too_large_and_not_overload(
    serve: Any, question: Conversation
) -> None:
    async def long_answer(_: Any, __: Context) -> policy_pb2.GenerateResponse:
        return policy_pb2.GenerateResponse(weight_version="x" * 10_000)

    server = await serve(policy(long_answer))
    error = await failure_of(server.address, question, max_message_bytes=5_000)
    assert type(error) is errors.MessageTooLarge


async def test_a_request_above_the_servers_bound_is_too_large_and_not_overload(
    serve: Any,
) -> None:
    async def unreached(_: Any, __: Context) -> policy_pb2.GenerateResponse:
        raise AssertionError("the request must not arrive")

    server = await serve(policy(unreached))
    five_mebibytes = Conversation.from_user("x" * (5 * 1024 * 1024))
    assert type(await failure_of(server.address, five_mebibytes)) is errors.MessageTooLarge


async def test_nobody_at_the_address_is_unavailable_and_the_text_says_where(
    serve: Any, question: Conversation
) -> None:
    server = await serve(lambda _: None)
    await server.stop()
    error = await failure_of(server.address, question)
    assert type(error) is errors.Unavailable
    assert str(server.port) in str(error)


async def test_another_service_at_the_address_is_an_unexpected_status(
    serve: Any, question: Conversation
) -> None:
    server = await serve(lambda _: None)
    assert type(await failure_of(server.address, question)) is errors.UnexpectedStatus


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [({"queue_seconds": "615.7"}, errors.DeadlineInQueue), ({}, errors.DeadlineExceeded)],
)
async def test_no_time_in_the_queue_and_no_time_at_all_are_told_apart_by_a_field(
    serve: Any, refuse: Any, question: Conversation, metadata: Any, kind: type[errors.SolonError]
) -> None:
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    server = await serve(policy(lambda _, c: refuse(c, late, "DEADLINE", metadata=metadata)))
    assert type(await failure_of(server.address, question)) is kind


async def test_no_answer_within_the_timeout_is_deadline_exceeded_and_not_repeated(
    serve: Any, question: Conversation
) -> None:
    calls = 0

    async def never(_: Any, context: Context) -> policy_pb2.GenerateResponse:
        nonlocal calls
        calls += 1
        return await _forever()

    server = await serve(policy(never))
    async with PolicyClient(server.address, retry_for=30, timeout=0.3) as client:
        with pytest.raises(errors.DeadlineExceeded):
            await client.generate(question)
    assert calls <= 1


async def _forever() -> policy_pb2.GenerateResponse:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


async def test_a_client_that_is_not_open_says_how_to_open_it(question: Conversation) -> None:
    with pytest.raises(RuntimeError, match="async with JudgeClient"):
        await JudgeClient("localhost:1").score(question, "x", constitution="core")


class Judge(judge_pb2_grpc.JudgeServiceServicer):
    """Gives neither a verdict nor a reason."""

    async def Compare(self, request: Any, context: Context) -> judge_pb2.CompareResponse:  # noqa: N802
        return judge_pb2.CompareResponse()

    async def Score(self, request: Any, context: Context) -> judge_pb2.ScoreResponse:  # noqa: N802
        return judge_pb2.ScoreResponse(score=1.0, no_verdict_reason=9)  # type: ignore[arg-type]

    async def Rank(self, request: Any, context: Context) -> judge_pb2.RankResponse:  # noqa: N802
        pair = judge_pb2.PairVerdict(no_verdict_reason=9)  # type: ignore[arg-type]
        return judge_pb2.RankResponse(pairs=[pair])


async def test_a_reply_that_breaks_the_contract_is_no_verdict_at_all(
    serve: Any, question: Conversation
) -> None:
    server = await serve(lambda s: judge_pb2_grpc.add_JudgeServiceServicer_to_server(Judge(), s))
    async with JudgeClient(server.address) as client:
        with pytest.raises(errors.BadReply, match=r"got neither \[request r-1\]"):
            await client.compare(question, "a", "b", constitution="core", request_id="r-1")
        with pytest.raises(errors.BadReply, match="got both"):
            await client.score(question, "a", constitution="core")
        with pytest.raises(errors.BadReply, match="got the number 9; a newer server"):
            await client.rank(question, ["a", "b"], constitution="core")


async def test_a_stream_that_ends_without_its_last_piece_is_a_bad_reply(
    serve: Any, question: Conversation
) -> None:
    server = await serve(policy(lambda _, __: _forever()))
    async with PolicyClient(server.address) as client:
        with pytest.raises(errors.BadReply, match="finish_reason"):
            _ = [piece async for piece in client.stream(question)]


async def test_fewer_completions_than_asked_for_are_a_bad_reply(
    serve: Any, question: Conversation
) -> None:
    async def none(_: Any, __: Context) -> policy_pb2.GenerateResponse:
        return policy_pb2.GenerateResponse()

    server = await serve(policy(none))
    error = await failure_of(server.address, question)
    assert type(error) is errors.BadReply
    assert str(error) == "completions: expected 1, got 0 [request test-7]"
