"""Replicas restart, die, come and go under load, and no caller notices."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from solon.client import JudgeClient
from tests.replicas import Names, Replica, Traffic, replicas

CALLERS = 30


@pytest.fixture
def names() -> Iterator[Names]:
    server = Names("127.0.0.2")
    yield server
    server.close()


def all_of(judges: list[Replica]) -> str:
    return "ipv4:" + ",".join(judge.address for judge in judges)


async def test_a_rolling_restart_fails_no_call() -> None:
    async with replicas(*["127.0.0.1"] * 3) as judges, JudgeClient(all_of(judges)) as client:
        traffic = Traffic(client)
        async with traffic.of(CALLERS):
            await traffic.more(200)
            for judge in judges * 2:
                await judge.end(signal.SIGTERM)
                await judge.start()
                await traffic.more(200)
            await traffic.more(5000 - traffic.answered)
        assert traffic.failed == []
        # drained, not cut off: the clients knew before, or it would be some at each restart
        assert client.retried < len(judges * 2)


async def test_a_killed_replica_costs_its_own_calls_a_second_attempt_and_fails_none() -> None:
    async with replicas(*["127.0.0.1"] * 3) as judges, JudgeClient(all_of(judges)) as client:
        traffic = Traffic(client)
        async with traffic.of(CALLERS):
            await traffic.more(200)
            for judge in judges:
                before = client.retried
                await judge.end(signal.SIGKILL)
                await traffic.more(200)
                # those that were there, once each
                assert 0 < client.retried - before <= CALLERS
                await judge.start()
                await traffic.more(200)
        assert traffic.failed == []


async def test_a_replica_that_dns_names_takes_load_and_one_that_it_no_longer_names_gets_none(
    names: Names,
) -> None:
    hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    async with replicas(*hosts, flags=["--max-connection-age=1"]) as judges:
        names.addresses = [*hosts[:2]]
        async with JudgeClient(names.target(judges[0].port)) as client:
            traffic = Traffic(client)
            async with traffic.of(CALLERS):
                await traffic.more(200)
                assert await judges[2].answered() == 0
                names.addresses = [*hosts[1:]]
                async with asyncio.timeout(120):
                    while not await judges[2].answered():
                        await traffic.more(10)
                    left = -1
                    while left != (left := await judges[0].answered()):
                        await traffic.more(500)
                added = await judges[2].answered()
                await traffic.more(300)
                assert await judges[0].answered() == left
                assert await judges[2].answered() >= added + 100
            assert traffic.failed == []
