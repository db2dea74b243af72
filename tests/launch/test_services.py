"""Service processes start, come back after a kill, and leave with whoever started them."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from solon.chat import Conversation
from solon.client import (
    ControlClient,
    CriticClient,
    Generated,
    JudgeClient,
    PolicyClient,
    Sampling,
    errors,
)
from solon.trainer.launch.local import LaunchError, LocalServices, Patience, ServiceSpec

POLICY = ServiceSpec(
    role="policy",
    engine="scripted",
    model="scripted",
    threads=1,
    flags=("--settle-seconds", "0", "--drain-seconds", "1"),
)
JUDGE = ServiceSpec(
    role="judge",
    engine="scripted",
    model="scripted",
    threads=1,
    constitutions=("core",),
    flags=("--settle-seconds", "0", "--drain-seconds", "1"),
)
HELLO = Conversation.from_user("Hello")


async def test_services_answer_while_the_block_runs_and_are_gone_after_it(tmp_path: Path) -> None:
    async with LocalServices([POLICY, JUDGE], log_dir=tmp_path) as services:
        pids = services.pids
        assert all(os.getsid(pid) == pid for pid in pids.values())
        async with PolicyClient(services.addresses["policy"]) as policy:
            assert (await policy.generate(HELLO)).weight_version == "initial"
        async with JudgeClient(services.addresses["judge"]) as judge:
            verdict = await judge.compare(HELLO, "Hi.", "No.", constitution="core")
        assert verdict.probability_a is not None
        assert services.restarts == {"policy": 0, "judge": 0}
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert {path.name for path in tmp_path.iterdir()} == {"policy.log", "judge.log"}


async def test_calls_in_flight_outlive_a_killed_service(tmp_path: Path) -> None:
    slow = ServiceSpec(
        role="policy",
        engine="scripted",
        model="scripted",
        threads=1,
        flags=("--engine-option", "latency=0.2"),
    )
    async with LocalServices([slow], log_dir=tmp_path) as services:
        address = services.addresses["policy"]
        async with PolicyClient(address, retry_for=120) as policy:
            first = await policy.generate(HELLO)
            calls = [asyncio.create_task(policy.generate(HELLO)) for _ in range(20)]
            await asyncio.wait(calls, timeout=0.05)
            os.kill(services.pids["policy"], signal.SIGKILL)
            results = await services.guard(gather(calls))
        assert services.addresses["policy"] == address
        assert services.restarts == {"policy": 1}
    assert [r.completions[0].finish_reason for r in results] == [
        first.completions[0].finish_reason
    ] * 20


async def kill_before_it_serves(services: LocalServices, times: int) -> None:
    killed: set[int] = set()
    while len(killed) < times:
        for pid in set(services.pids.values()) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        await asyncio.sleep(0.02)


async def test_a_service_that_is_killed_before_it_serves_is_started_again(tmp_path: Path) -> None:
    services = LocalServices([POLICY], log_dir=tmp_path)
    killer = asyncio.create_task(kill_before_it_serves(services, times=2))
    async with services:
        await killer
        assert services.restarts == {"policy": 2}
        async with PolicyClient(services.addresses["policy"]) as policy:
            assert (await policy.generate(HELLO)).weight_version == "initial"


async def test_a_service_that_is_always_killed_before_it_serves_is_given_up(tmp_path: Path) -> None:
    patience = Patience(crashes=3, window=3600, first_backoff=0.01)
    services = LocalServices([POLICY], log_dir=tmp_path, patience=patience)
    killer = asyncio.create_task(kill_before_it_serves(services, times=3))
    with pytest.raises(LaunchError, match=r"did not start \(killed by SIGKILL"):
        await services.__aenter__()
    await killer
    assert not psutil.Process().children(recursive=True)


async def test_a_chain_outlives_its_critic_and_no_round_is_lost_or_doubled(tmp_path: Path) -> None:
    critic = ServiceSpec(
        role="critic", engine="scripted", model="scripted", threads=1, constitutions=("core",)
    )
    seeded = Sampling(seed=5, max_tokens=16)
    async with LocalServices([critic], log_dir=tmp_path) as services:
        async with CriticClient(services.addresses["critic"], retry_for=120) as client:

            async def chain(*, killed_after: int) -> list[tuple[int, str, str]]:
                made = []
                async for refined in client.refine(
                    HELLO, "Hi.", constitution="core", principle_seed=3, sampling=seeded
                ):
                    assert refined.revision is not None
                    made.append((refined.round, refined.principle_id, refined.revision.text))
                    if refined.round == killed_after:
                        os.kill(services.pids["critic"], signal.SIGKILL)
                return made

            undisturbed = await chain(killed_after=0)
            assert await services.guard(chain(killed_after=2)) == undisturbed
        assert [number for number, _, _ in undisturbed] == [1, 2, 3, 4]


async def test_a_restarted_policy_has_its_first_weights_and_says_so(tmp_path: Path) -> None:
    async with LocalServices([POLICY], log_dir=tmp_path) as services:
        address = services.addresses["policy"]
        async with (
            PolicyClient(address, retry_for=120) as policy,
            ControlClient(address, retry_for=120) as control,
        ):
            await control.update_weights(str(tmp_path), "rl-1")
            await policy.generate(HELLO, weight_version="rl-1")
            before = await control.get_server_info()
            os.kill(services.pids["policy"], signal.SIGKILL)
            with pytest.raises(errors.WeightVersionMismatch) as caught:
                await services.guard(refused(policy))
            assert (caught.value.expected, caught.value.actual) == ("rl-1", "initial")
            await control.update_weights(str(tmp_path), "rl-1")
            assert (await policy.generate(HELLO, weight_version="rl-1")).weight_version == "rl-1"
            assert (await control.get_server_info()).instance_id != before.instance_id


async def refused(policy: PolicyClient) -> None:
    # a call or two may still reach the process that is being killed
    while True:
        await policy.generate(HELLO, weight_version="rl-1")


async def gather(calls: list[asyncio.Task[Generated]]) -> list[Generated]:
    return list(await asyncio.gather(*calls))


async def test_a_users_mistake_is_told_in_the_services_own_words(tmp_path: Path) -> None:
    unknown = ServiceSpec(
        role="judge", engine="scripted", model="scripted", constitutions=("no-such-constitution",)
    )
    with pytest.raises(LaunchError, match="no-such-constitution") as caught:
        async with LocalServices([POLICY, unknown], log_dir=tmp_path):
            raise AssertionError("must not start")
    assert caught.value.user_error
    assert str(caught.value).startswith("the judge service did not start (exit code 2): ")
    assert str(tmp_path / "judge.log") in str(caught.value)
    assert not psutil.Process().children(recursive=True)


async def test_a_service_that_keeps_crashing_is_given_up_and_stops_the_work(
    tmp_path: Path,
) -> None:
    patience = Patience(crashes=2, window=3600, first_backoff=0.01)
    async with LocalServices([POLICY], log_dir=tmp_path, patience=patience) as services:
        os.kill(services.pids["policy"], signal.SIGKILL)
        while services.restarts["policy"] < 1 or not serving(services):
            await asyncio.sleep(0.02)
        os.kill(services.pids["policy"], signal.SIGKILL)
        with pytest.raises(LaunchError, match="the policy service ended 2 times within 3600 s"):
            await services.guard(asyncio.Event().wait())


def serving(services: LocalServices) -> bool:
    port = int(services.addresses["policy"].rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_port_that_was_taken_meanwhile_is_named(tmp_path: Path) -> None:
    patience = Patience(crashes=2, window=3600, first_backoff=0.01)
    async with LocalServices([POLICY], log_dir=tmp_path, patience=patience) as services:
        port = int(services.addresses["policy"].rpartition(":")[2])
        os.kill(services.pids["policy"], signal.SIGKILL)
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            while serving(services):
                await asyncio.sleep(0.001)
            thief.bind(("127.0.0.1", port))
            thief.listen()
            with pytest.raises(LaunchError, match=f"cannot listen on 127.0.0.1:{port}"):
                await services.guard(asyncio.Event().wait())


async def test_the_works_own_result_and_error_come_through(tmp_path: Path) -> None:
    async def fine() -> int:
        return 7

    async def broken() -> int:
        raise KeyError("mine")

    async with LocalServices([], log_dir=tmp_path) as services:
        assert await services.guard(fine()) == 7
        with pytest.raises(KeyError, match="mine"):
            await services.guard(broken())


def test_two_services_of_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most one service of a name"):
        LocalServices([POLICY, POLICY], log_dir=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_services_die_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    coordinator = dedent(
        f"""
        import asyncio, pathlib
        from solon.trainer.launch.local import LocalServices, ServiceSpec

        async def main():
            async with LocalServices([{POLICY!r}], log_dir=pathlib.Path({str(tmp_path)!r})) as s:
                print(s.pids["policy"], flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
        """
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", coordinator, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    service = os.pidfd_open(int(await parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    await parent.communicate()
    # readable once the process has ended, though nobody may have reaped it yet
    ended, _, _ = select.select([service], [], [], 30)
    os.close(service)
    assert ended
