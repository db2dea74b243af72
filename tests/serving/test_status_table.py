"""README's table of status codes: every row happens, and nothing else does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from solon.chat import Conversation
from solon.engine import base
from solon.policy.server import ROLE
from solon.serving import errors
from solon.serving.testing import FunctionEngine, running
from solon.v1 import errors_pb2, policy_pb2_grpc

README = Path(__file__).parents[2] / "README.md"
AGAIN = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
CAUSES: dict[str, Exception] = {
    "INVALID_ARGUMENT INVALID_FIELD": errors.InvalidFields.of("n", "expected 1 to 64, got 0"),
    "INVALID_ARGUMENT CONTEXT_EXCEEDED": base.ContextExceeded(
        prompt_tokens=9, max_tokens=9, context_tokens=9
    ),
    "INVALID_ARGUMENT CONTENT_FILTERED": base.ContentFiltered("withheld"),
    "INVALID_ARGUMENT UNKNOWN_PRINCIPLE": errors.UnknownPrinciple(
        "p", ["q"], field="principles", needs="a question"
    ),
    "NOT_FOUND UNKNOWN_CONSTITUTION": errors.UnknownConstitution("c", []),
    "FAILED_PRECONDITION DIGEST_MISMATCH": errors.DigestMismatch("c", expected="a", actual="b"),
    "FAILED_PRECONDITION WEIGHT_VERSION_MISMATCH": errors.WeightVersionMismatch(
        expected="a", actual="b"
    ),
    "FAILED_PRECONDITION WEIGHTS_NOT_LOADED": base.WeightsNotLoaded("no such directory"),
    "FAILED_PRECONDITION UNSUPPORTED_BY_ENGINE": base.Unsupported("no log-probabilities"),
    "ALREADY_EXISTS REQUEST_ID_REUSED": errors.RequestIdReused("r"),
    "RESOURCE_EXHAUSTED OVERLOADED": base.Overloaded("full", retry_after=1),
    "UNAVAILABLE NOT_SERVING": errors.NotServing(),
    "UNAVAILABLE PAUSED": base.Paused("paused"),
    "UNAVAILABLE BACKEND_UNAVAILABLE": base.BackendUnavailable("no answer"),
    "DEADLINE_EXCEEDED DEADLINE": errors.DeadlinePassed(),
    "UNAUTHENTICATED NOT_AUTHORIZED": errors.NotAuthenticated("no token"),
    "PERMISSION_DENIED NOT_AUTHORIZED": errors.NotPermitted("chat", "control"),
    "INTERNAL ENGINE_FAILED": base.EngineFailed("lost the device"),
    "INTERNAL INTERNAL": KeyError("a defect"),
}


def rows() -> dict[str, str]:
    """``CODE REASON`` -> whether to try again, as README says."""
    text = README.read_text("utf-8")
    found = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| .* \| ([a-z ]+) \|$", text, re.MULTILINE)
    return {f"{code} {reason}": again for code, reason, again in found}


def test_the_table_has_every_reason_of_the_contract() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert {row.split()[1] for row in rows()} == names - {"UNSPECIFIED"}
    assert set(rows()) == set(CAUSES)


@pytest.mark.parametrize(("row", "again"), rows().items())
async def test_a_row_of_the_table_happens(
    row: str, again: str, request_of: Callable[..., Any], told: Callable[..., Any]
) -> None:
    def answer(conversation: Conversation, sampling: base.Sampling) -> str:
        raise CAUSES[row]

    engine = FunctionEngine(answer=answer)
    async with running(ROLE, engine) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).Generate(request_of())
    seen = told(caught.value)
    assert f"{seen.code.name} {seen.reason}" == row
    assert (seen.retry_after is not None) == (again == "yes")
    assert (seen.code.name in AGAIN) == (again == "yes")
