"""The ``vllm`` engine: vLLM's AsyncLLM on the service's own event loop, its core beside it."""

SERVICE = "SOLON_VLLM_SERVICE"
"""Environment variable: the process id that vLLM's workers end with."""
