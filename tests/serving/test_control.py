"""The control plane over a real port."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from solon.constitution import Constitution, Principle
from solon.critic.server import ROLE as CRITIC
from solon.engine.base import PauseMode, WeightsNotLoaded
from solon.engine.sources import Source
from solon.policy.server import ROLE as POLICY
from solon.serving.testing import FunctionEngine, running
from solon.v1 import control_pb2, control_pb2_grpc


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> control_pb2_grpc.ControlServiceStub:
    return control_pb2_grpc.ControlServiceStub(channel)


async def test_a_server_says_what_it_is() -> None:
    constitution = Constitution(name="core", version="3", principles=(Principle(id="kind"),))
    async with (
        running(CRITIC, FunctionEngine(), constitutions=[constitution]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = control_pb2_grpc.ControlServiceStub(channel)
        info = await stub.GetServerInfo(control_pb2.GetServerInfoRequest(request_id="mine"))
    assert (info.request_id, info.service_role) == ("mine", control_pb2.SERVICE_ROLE_CRITIC)
    assert (info.engine, info.model, info.weight_version) == ("function", "function", "initial")
    assert info.context_tokens == 1024
    assert info.supports_logprobs
    assert info.supports_weight_update
    assert info.start_time.seconds > 0
    (known,) = info.constitutions
    assert (known.name, known.version, known.digest) == ("core", "3", constitution.digest)
    assert list(known.principle_ids) == ["kind"]


async def test_two_processes_have_different_instance_ids() -> None:
    ids = set()
    for _ in range(2):
        async with (
            running(POLICY, FunctionEngine()) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub = control_pb2_grpc.ControlServiceStub(channel)
            ids.add((await stub.GetServerInfo(control_pb2.GetServerInfoRequest())).instance_id)
    assert len(ids) == 2


async def test_new_weights_are_named_with_those_before(
    stub: control_pb2_grpc.ControlServiceStub,
) -> None:
    update = control_pb2.UpdateWeightsRequest(path="/next", weight_version="step-1")
    replaced = await stub.UpdateWeights(update)
    assert (replaced.weight_version, replaced.previous_weight_version) == ("step-1", "initial")
    load = await stub.GetLoad(control_pb2.GetLoadRequest())
    assert load.weight_version == "step-1"


async def test_weights_that_cannot_be_loaded_are_a_failed_precondition(
    engine: FunctionEngine,
    stub: control_pb2_grpc.ControlServiceStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(path: str, weight_version: str) -> None:
        raise WeightsNotLoaded(f"no config.json in {path!r}")

    monkeypatch.setattr(engine, "update_weights", refuse)
    update = control_pb2.UpdateWeightsRequest(path="/next", weight_version="step-1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UpdateWeights(update)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "no config.json in '/next'"


@pytest.mark.parametrize(
    "path", ["models/a", "models/link", "../b", "https://user:secret@host/m/a?key=secret"]
)
async def test_weights_from_elsewhere_than_the_server_takes_them_are_refused(
    path: str, tmp_path: Path, told: Callable[..., Any]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path)
    path = path if "://" in path else str(tmp_path / path)
    allowed = tuple(map(Source.parse, (str(tmp_path / "models" / "mine"), "https://host/models")))
    engine = FunctionEngine()
    async with (
        running(POLICY, engine, weights_from=allowed) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = control_pb2_grpc.ControlServiceStub(channel)
        update = control_pb2.UpdateWeightsRequest(path=path, weight_version="step-1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.UpdateWeights(update)
        seen = told(caught.value)
        assert (seen.code, seen.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert list(seen.fields) == ["path"]
        assert (
            f"beneath {str(allowed[0])!r}, 'https://host/models' (--weights-from)" in seen.message
        )
        assert "secret" not in seen.message
        assert engine.weight_version == "initial"
        for known in (str(tmp_path / "models" / "mine" / "a"), "https://host/models/a"):
            update = control_pb2.UpdateWeightsRequest(path=known, weight_version=known)
            assert (await stub.UpdateWeights(update)).weight_version == known


@pytest.mark.parametrize(
    ("mode", "meant"),
    [
        (control_pb2.PAUSE_MODE_UNSPECIFIED, PauseMode.WAIT),
        (control_pb2.PAUSE_MODE_WAIT, PauseMode.WAIT),
        (control_pb2.PAUSE_MODE_ABORT, PauseMode.ABORT),
        (control_pb2.PAUSE_MODE_KEEP, PauseMode.KEEP),
    ],
)
async def test_generation_is_paused_and_resumed(
    mode: control_pb2.PauseMode.ValueType,
    meant: PauseMode,
    engine: FunctionEngine,
    stub: control_pb2_grpc.ControlServiceStub,
) -> None:
    await stub.PauseGeneration(control_pb2.PauseGenerationRequest(mode=mode))
    assert engine.paused is meant
    assert (await stub.GetLoad(control_pb2.GetLoadRequest())).paused
    await stub.ResumeGeneration(control_pb2.ResumeGenerationRequest())
    assert not (await stub.GetLoad(control_pb2.GetLoadRequest())).paused
