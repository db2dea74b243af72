"""The README's commands and programs, word for word; CI runs the first two."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.client.sync import CriticClient, JudgeClient

PORTS = (50052, 50053)


def test_the_commands_of_the_tour(tour: Any) -> None:
    assert "harmful compliance" in tour.stdout
    assert "Judge, on" in tour.stdout
    assert (tour.run / "evaluation.json").exists()


@pytest.fixture
def services(checkout: Path, block: Callable[[str], str]) -> Iterator[None]:
    """The critic and the judge, started as the README says."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port}, which the README names, is in use on this machine")
    lines = block("services").splitlines()
    # exec, so that the signal at the end reaches the service itself
    running = [
        subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=checkout, stderr=subprocess.DEVNULL)
        for line in lines
    ]
    yield
    for process in running:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in running] == [0] * len(lines)


def test_the_program_that_asks_critic_and_judge(
    services: None, checkout: Path, block: Callable[[str], str]
) -> None:
    critic_port, judge_port = PORTS
    with CriticClient(f"localhost:{critic_port}") as critic:
        critic.wait_until_serving(120)
    with JudgeClient(f"localhost:{judge_port}") as judge:
        judge.wait_until_serving(120)
    done = subprocess.run(
        [sys.executable, "-c", block("client")],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *rounds, verdict = done.stdout.splitlines()
    assert len(rounds) == 2
    probability, reason = verdict.split()
    assert float(probability) > 0.5
    assert reason == "None"
