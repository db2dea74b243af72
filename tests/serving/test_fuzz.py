"""Whatever is sent to whichever method: no defect, nothing left behind, and it still serves.

A few messages for each, the same ones every time. ``tests/fuzz`` has the programs that send as
many as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solon.engine import EngineOptions, create
from solon.serving.tokens import Scope, line_of
from solon.v1 import control_pb2
from tests.engine.conftest import make_model
from tests.fuzz.bench import Bench, serving
from tests.fuzz.corpus import ROLES, Method, methods, services
from tests.fuzz.replies import check
from tests.fuzz.strategies import bodies, metadata

METHODS = list(methods())
INFERRING = [m for m in METHODS if m.descriptor.containing_service is m.role.service]
[PAUSE, *_] = (m for m in METHODS if m.descriptor.name == "PauseGeneration")
FIRST = {role.name: next(m for m in INFERRING if m.role is role) for role in ROLES}
BY_TRANSPORT = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
"""Codes by which gRPC itself answers a call that was late, or whose headers were too long."""


def repeatable(messages: int) -> settings:
    return settings(
        max_examples=messages,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with serving(lambda: create("scripted", EngineOptions(model=""))) as bench:
        yield bench


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    path = make_model(tmp_path_factory.mktemp("model"), context=1024)
    options = EngineOptions(model=str(path), device="cpu", threads=1)
    with serving(lambda: create("transformers", options)) as bench:
        yield bench


def bodies_of(method: Method) -> st.SearchStrategy[bytes]:
    return bodies(GetMessageClass(method.descriptor.input_type), method.requests)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_no_body_leads_to_a_defect_or_leaves_anything_behind(method: Method, bench: Bench) -> None:
    @repeatable(25)
    @given(bodies_of(method))
    def holds(body: bytes) -> None:
        bench.try_out(method, body)

    bench.check_works(method)
    holds()
    bench.check_works(method)


@pytest.mark.parametrize("method", INFERRING, ids=lambda m: m.name)
def test_no_body_leads_to_a_defect_of_a_real_model(method: Method, real: Bench) -> None:
    @repeatable(10)
    @given(bodies_of(method))
    def holds(body: bytes) -> None:
        real.try_out(method, body)

    holds()
    real.check_works(method)


@pytest.mark.parametrize("method", FIRST.values(), ids=lambda m: m.name)
def test_odd_headers_and_deadlines_lead_to_no_defect(method: Method, bench: Bench) -> None:
    body = method.requests[0].SerializeToString()

    @repeatable(25)
    @given(metadata(), st.sampled_from([None, 0.0, 1e-9, 1e-3, 1e9, 1e300]))
    def holds(odd: list[tuple[str, str | bytes]], timeout: float | None) -> None:
        reply = bench.send(method, body, metadata=odd, timeout=timeout)
        check(reply, ours=reply.code not in BY_TRANSPORT)
        bench.check_well(method)

    holds()
    bench.check_works(method)


@pytest.mark.parametrize("method", INFERRING, ids=lambda m: m.name)
@pytest.mark.parametrize("mode", [control_pb2.PAUSE_MODE_ABORT, control_pb2.PAUSE_MODE_WAIT])
def test_no_body_leads_to_a_defect_while_paused(
    method: Method, mode: control_pb2.PauseMode.ValueType, bench: Bench
) -> None:
    pause = control_pb2.PauseGenerationRequest(mode=mode).SerializeToString()

    @repeatable(3)
    @given(bodies_of(method))
    def holds(body: bytes) -> None:
        assert bench.send(Method(method.role, PAUSE.descriptor), pause).code == "OK"
        bench.try_out(method, body)

    holds()
    bench.check_works(method)


def test_what_is_fuzzed_is_what_the_servers_say_that_they_serve(bench: Bench) -> None:
    for role in ROLES:
        [reflection] = (
            m for m in METHODS if m.role is role and m.descriptor.name == "ServerReflectionInfo"
        )
        [listed] = bench.send(reflection, reflection.requests[0].SerializeToString()).responses
        names = {one.name for one in listed.list_services_response.service}  # type: ignore[attr-defined]
        assert names == {service.full_name for service in services(role)}


def test_an_odd_authorization_opens_nothing(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(line_of("ours", [Scope.INFER], "secret") + "\n", "utf-8")
    method = FIRST["policy"]
    body = method.requests[0].SerializeToString()
    engine = EngineOptions(model="")
    with serving(lambda: create("scripted", engine), token_file=tokens) as bench:

        @repeatable(25)
        @given(metadata())
        def holds(odd: list[tuple[str, str | bytes]]) -> None:
            reply = bench.send(method, body, metadata=odd)
            assert reply.code in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED")

        holds()
        known = bench.send(method, body, metadata=[("authorization", "Bearer secret")])
        assert known.code == "OK"
