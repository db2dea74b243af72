"""Services on the scripted engine, and a configuration of a run that uses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.runs import HELPFUL, RED, ROLES, port_of, serve


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Three services for all tests of a file."""
    folder = tmp_path_factory.mktemp("services")
    started = {role: serve(role, folder) for role in ROLES}
    found = {}
    for role, (process, ready) in started.items():
        found[role] = f"127.0.0.1:{port_of(process, ready)}"
    yield found
    for process, _ in started.values():
        process.terminate()
    for process, _ in started.values():
        process.wait(20)


@pytest.fixture
def config(tmp_path: Path, addresses: dict[str, str]) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name, count in (("red", RED), ("helpful", HELPFUL), ("held", 6)):
        lines = [json.dumps({"prompt": f"{name} number {n}?"}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    settings = {
        "constitution": "core",
        "run_dir": str(tmp_path / "run"),
        "models": dict.fromkeys(("policy", "critic", "judge", "base_for_sft"), str(model)),
        "services": {role: {"address": address} for role, address in addresses.items()}
        | {"in_flight": 8},
        "store": {"part_records": 5},
        "prompts": {
            "red_team": [f"{tmp_path}/red.jsonl"],
            "helpfulness": [f"{tmp_path}/helpful.jsonl"],
            "preferences": [f"{tmp_path}/red.jsonl", f"{tmp_path}/helpful.jsonl"],
            "evaluation": {"harmful": [f"{tmp_path}/held.jsonl"]},
        },
        "revisions": {"rounds": 3},
        "preferences": {"responses": 3, "pairs": 2, "test_share": 0.3},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    return path
