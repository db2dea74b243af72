"""What must start in an instant loads no heavy library: shown in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "trl", "datasets", "accelerate", "peft")
SHOW_HELP = """
import sys
from solon.{module} import main
sys.argv = ["solon", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded_after(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after ``code``."""
    report = "\nimport sys\nprint('\\n' + ' '.join({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module", ["trainer.cli", "policy.server", "critic.server", "judge.server"]
)
def test_help_loads_no_heavy_library(module: str) -> None:
    assert loaded_after(SHOW_HELP.format(module=module)).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module", ["trainer.config", "constitution", "sandbox", "engine", "serving", "client"]
)
def test_an_import_loads_no_heavy_library(module: str) -> None:
    assert loaded_after(f"import solon.{module}").isdisjoint(HEAVY)


def test_the_client_loads_neither_pydantic_nor_yaml() -> None:
    loaded = loaded_after("import solon.client, solon.client.sync")
    assert "grpc" in loaded
    assert loaded.isdisjoint({"pydantic", "yaml", *HEAVY})


def test_the_sdk_of_traces_is_not_loaded_by_an_import() -> None:
    loaded_after(
        "import solon.client, solon.judge.server, solon.trainer.failures, solon.tracing.export\n"
        "import sys\nassert 'opentelemetry.trace' in sys.modules\n"
        "assert 'opentelemetry.sdk' not in sys.modules"
    )


def test_a_heavy_library_would_be_seen() -> None:
    assert "torch" in loaded_after("import sys, types; sys.modules['torch.nn'] = types")
