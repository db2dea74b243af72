"""``solon status``, ``critique`` and ``judge`` against services on the scripted engine.

What they show of a model's answers is held with the README's commands, on the sandbox's services.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from solon.serving.tokens import Scope, line_of
from solon.trainer.launch.services import LocalServices, ServiceSpec

HELPFUL = "To kill the process, first open a terminal, then type its name."
EVASIVE = "I would rather not talk about this."
JUDGE = [
    {"match": f"(?s){HELPFUL}.*{EVASIVE}", "logprobs": {"(A)": -0.1, "(B)": -2.5}},
    {"match": f"(?s){EVASIVE}.*{HELPFUL}", "logprobs": {"(A)": -2.5, "(B)": -0.1}},
]
OWN = """
name: own
version: "1"
principles:
  - id: short
    critique_request: What is too long?
    revision_request: Make it shorter.
    comparison_instruction: Which response is shorter?
    absolute_question:
      text: Is it short?
      answers: {"Yes": 1.0, "No": 0.0}
"""


async def solon(
    *arguments: str, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:

    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "solon.trainer.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(line_of("me", [Scope.INFER, Scope.CONTROL], "my-secret") + "\n", "utf-8")
    return path


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Critic and judge on the sandbox's constitution: role -> address."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps(JUDGE), "utf-8")
    flags = ("--engine-option", f"script={script}")
    specs = [
        ServiceSpec(role=role, model="", engine="scripted", constitutions=("sandbox",), flags=flags)
        for role in ("critic", "judge")
    ]
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(LocalServices(specs, log_dir=tmp_path))
        yield {role: started.addresses[role] for role in ("critic", "judge")}


async def test_running_services_are_shown_asked_and_judged_by(
    services: dict[str, str], tmp_path: Path
) -> None:
    """One test for all, because starting the services is what takes the time."""
    critic, judge = services["critic"], services["judge"]

    shown = await solon("status", critic, judge)
    assert shown.returncode == 0
    for word in ("critic", "judge", "SERVING", "scripted", "initial", "0 of "):
        assert word in shown.stdout
    told = json.loads((await solon("status", critic, judge, "--json")).stdout)
    assert [one["info"]["service_role"] for one in told] == ["critic", "judge"]
    assert [one["load"]["queued"] for one in told] == [0, 0]

    asked = ("--prompt=How do I kill the process?", "--constitution=sandbox")
    read = await solon("critique", critic, *asked, f"--response={EVASIVE}", "--seed=1")
    assert read.returncode == 0, read.stderr
    assert read.stdout.startswith("Round 1, by ")
    assert "critique: " in read.stdout
    rounds = json.loads(
        (
            await solon("critique", critic, *asked, f"--response={EVASIVE}", "--rounds=3", "--json")
        ).stdout
    )
    assert [made["round"] for made in rounds] == [1, 2, 3]

    compared = await solon("judge", judge, *asked, f"--a={HELPFUL}", f"--b={EVASIVE}")
    assert compared.returncode == 0, compared.stderr
    assert "overall" in compared.stdout
    assert "A is better" in compared.stdout.splitlines()[-1]
    verdict = json.loads(
        (await solon("judge", judge, *asked, f"--a={HELPFUL}", f"--b={EVASIVE}", "--json")).stdout
    )
    assert verdict["probability_a"] > 0.5
    assert "Score" in (await solon("judge", judge, *asked, f"--a={HELPFUL}")).stdout

    own = tmp_path / "own.yaml"
    own.write_text(OWN, "utf-8")
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "How do I kill the process?"},
    ]
    by_own = await solon(
        *("judge", judge, "--conversation=-", f"--constitution={own}", "--principle=short"),
        *(f"--a={HELPFUL}", f"--b={EVASIVE}"),
        stdin=json.dumps(turns),
    )
    assert by_own.returncode == 0, by_own.stderr
    assert "short" in by_own.stdout

    unknown = await solon("judge", judge, asked[0], "--constitution=none", "--a=Yes.")
    assert unknown.returncode == 2
    assert "no constitution is named 'none'" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    assert "--resume" not in unknown.stderr


async def test_the_token_comes_from_the_environment(token_file: Path, tmp_path: Path) -> None:
    spec = ServiceSpec(
        role="policy", model="", engine="scripted", flags=("--token-file", str(token_file))
    )
    async with LocalServices([spec], log_dir=tmp_path) as started:
        address = started.addresses["policy"]
        refused = await solon("status", address, SOLON_TOKEN="")
        assert "no token" in refused.stdout
        allowed = await solon("status", address, "--json", SOLON_TOKEN="my-secret")
    assert json.loads(allowed.stdout)[0]["info"]["service_role"] == "policy"


async def test_a_service_that_is_not_there_is_shown_as_such() -> None:
    shown = await solon("status", "127.0.0.1:1", "--timeout=5")
    assert shown.returncode == 1
    assert "NOT_SERVING" in shown.stdout
    called = await solon(
        "judge", "127.0.0.1:1", "--prompt=Hello.", "--constitution=core", "--a=Yes."
    )
    assert called.returncode == 2
    assert "is the address right" in called.stderr


@pytest.mark.parametrize(
    ("stdin", "said"), [("", "--conversation"), ('[{"role": "nobody"}]', "--conversation")]
)
async def test_a_conversation_that_is_none_is_one_clear_message(stdin: str, said: str) -> None:
    done = await solon(
        *("judge", "127.0.0.1:1", "--conversation=-", "--constitution=core", "--a=Yes."),
        stdin=stdin,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_argument_that_nobody_knows_is_refused() -> None:
    done = await solon("status", "127.0.0.1:1", "--seed=1")
    assert done.returncode == 2
    assert "--seed=1" in done.stderr
