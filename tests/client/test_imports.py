"""The client runs on the base install: a few megabytes, nothing heavy."""

from __future__ import annotations

import subprocess
import sys

BEYOND_THE_BASE = (
    *("torch", "transformers", "trl", "datasets", "numpy", "pyarrow", "pydantic", "yaml", "rich"),
    # grpc imports these by itself where they are installed
    *("grpc_health", "grpc_reflection", "grpc_tools"),
)

SCRIPT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BEYOND_THE_BASE!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import solon.client, solon.client.sync
portions = {{name.split(".")[1] for name in sys.modules if name.startswith("solon.")}}
print(sorted(portions), [name for name in {BEYOND_THE_BASE!r} if name in sys.modules])
"""


def test_the_client_can_be_imported_where_only_the_base_is_installed() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert run.stdout == "['chat', 'client', 'tracing', 'v1'] []\n", run.stderr
