"""Services before an endpoint, over gRPC: what it says of itself reaches whoever calls."""

from __future__ import annotations

import pytest

from solon.chat import Conversation
from solon.client import PolicyClient, errors
from solon.engine import EngineOptions, create
from solon.policy.server import ROLE
from solon.serving.testing import running
from tests.engine.openai.conftest import Fake, chat, error

ASKED = Conversation.from_user("Can you help?")


async def test_callers_are_told_what_it_costs_what_is_not_to_be_had_and_when_to_come_again(
    fake: Fake,
) -> None:
    extra = {"base_url": fake.url, "scoring": "none", "retries": "0", "output_price": "3"}
    engine = create("openai", EngineOptions(model="m", extra=extra))
    async with (
        running(ROLE, engine) as address,
        PolicyClient(address, retry_for=0) as policy,
    ):
        made = await policy.generate(ASKED, n=2)
        assert [one.text for one in made.completions] == ["Gladly."] * 2
        assert made.usage.cost_usd == policy.cost_usd == pytest.approx(2 * 10 * 3 / 1e6)
        # the seed that repeats an answer is the one that was sent
        assert {one.seed % 2**31 for one in made.completions} == {
            body["seed"] for body in fake.asked[-2:]
        }
        asked = len(fake.asked)
        with pytest.raises(errors.Unsupported, match="return_tokens"):
            await policy.generate(ASKED, return_tokens=True)
        assert len(fake.asked) == asked
        fake.answer = lambda body: error(429, "too many", retry_after="7")
        with pytest.raises(errors.Overloaded, match="too many") as caught:
            await policy.generate(ASKED)
        assert caught.value.retry_after == 7
        fake.answer = lambda body: chat("It is", "content_filter")
        with pytest.raises(errors.ContentFiltered, match="withheld"):
            await policy.generate(ASKED)
