"""vLLM on the sandbox's model. Without vLLM none of these tests is collected: CI has a step of its
own for them, which fails if it finds none.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

if not collect_ignore_glob:
    # nothing is asked of the hub
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # whole cores are for whole machines
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
