"""Judges that tell no log-probabilities, and those that a run starts before an endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.chat import Conversation
from solon.client import ChainOfThought
from solon.constitution import load, resolve
from solon.judge.server import ROLE
from solon.serving.testing import FunctionEngine, running
from solon.trainer.config import load_config
from solon.trainer.errors import ServiceError
from solon.trainer.fleet import look, open_fleet
from solon.trainer.roster import roster
from tests.engine.openai.conftest import Body, Fake, chat, listening


async def test_a_judge_without_log_probabilities_is_taken_only_where_it_reasons() -> None:
    async with running(ROLE, FunctionEngine(supports_logprobs=False)) as address:
        here = f"services.judge.address={address}"
        config = load_config("sandbox-tiny", [here])
        (place,) = roster(config, ["judge"])
        with pytest.raises(ServiceError, match=r"or set preferences\.chain_of_thought"):
            await look(config, place, patience=30)
        config = load_config("sandbox-tiny", [here, "preferences.chain_of_thought={}"])
        (place,) = roster(config, ["judge"])
        assert not (await look(config, place, patience=30)).supports_logprobs


async def test_a_run_starts_a_judge_before_an_endpoint_and_knows_what_it_charges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: Body) -> Body:
        if body.get("logprobs"):
            return chat()
        return chat("(A)" if len(body["messages"]) > 1 else "The first is kinder.")

    monkeypatch.setenv("SOME_KEY", "sk-some")
    async with listening(Fake(answer=answer)) as fake:
        options = f"{{base_url: '{fake.url}', api_key_env: SOME_KEY, input_price: 2}}"
        config = load_config(
            "sandbox-tiny",
            [
                *("models.judge=house/model", "services.judge.engine=openai"),
                *(f"services.judge.engine_options={options}", "preferences.chain_of_thought={}"),
            ],
        )
        constitution = load(resolve(config.constitution))
        async with open_fleet(config, constitution, ["judge"], log_dir=tmp_path) as fleet:
            info = fleet.info("judge")
            assert (info.engine, info.model) == ("openai", "house/model")
            compared = await fleet.judge().compare(
                Conversation.from_user("Can you help?"),
                *("Gladly.", "No."),
                constitution=fleet.constitution("judge"),
                both_orders=False,
                principle_ids=["polite"],
                chain_of_thought=ChainOfThought(clamp=0.4),
            )
            assert fleet.cost_usd == compared.usage.cost_usd == pytest.approx(2 * 1000 * 2 / 1e6)
    assert compared.probability_a == pytest.approx(0.6)
    assert {body["model"] for body in fake.asked} == {"house/model"}
    assert set(fake.keys) == {"Bearer sk-some"}
    assert "sk-some" not in (tmp_path / "judge.log").read_text()
