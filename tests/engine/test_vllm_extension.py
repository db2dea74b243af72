"""What vLLM's workers import: they and the core end with the service. Without vLLM itself."""

from __future__ import annotations

import subprocess
import sys

import psutil

WORKER = "import solon.engine.vllm.extension, time; print('ready', flush=True); time.sleep(600)"
CORE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])"
SERVICE = (
    "import os, subprocess, sys\n"
    "environment = os.environ | {'SOLON_VLLM_SERVICE': str(os.getpid())}\n"
    f"subprocess.run([sys.executable, '-c', {CORE!r}], env=environment)"
)


def test_core_and_workers_end_with_a_service_that_is_killed() -> None:
    command = [sys.executable, "-c", SERVICE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == "ready\n"
            core, worker = psutil.Process(service.pid).children(recursive=True)
        finally:
            service.kill()
        _, alive = psutil.wait_procs([core, worker], timeout=60)
    assert not alive
