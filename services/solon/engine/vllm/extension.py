"""What vLLM's workers import at their start, and mix into their class.

They, and the core above them, end with the service: vLLM ends them in order when it is told to, but
a service that is killed tells nobody, and they would hold on to the GPU's memory for ever. Knows
nothing of the engine.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress

from solon.engine.vllm import SERVICE


class Extension:
    """A worker's further methods."""

    def solon_renew_tied(self) -> None:
        """Have output layers that share the embeddings' weights follow them.

        ``reload_weights`` passes over layers that have no weights in the checkpoint, but on a CPU
        these hold a copy of their own, packed for matrix products.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # noqa: PLC0415 - heavy
            ParallelLMHead,
            UnquantizedEmbeddingMethod,
        )

        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        for layer in model.modules():
            if isinstance(layer, ParallelLMHead):
                method = layer.quant_method
                if isinstance(method, UnquantizedEmbeddingMethod):
                    method.process_weights_after_loading(layer)


def _end_with(service: int, parent: int) -> None:
    with suppress(ProcessLookupError):
        waiting = select.poll()
        waiting.register(os.pidfd_open(service), select.POLLIN)
        waiting.poll()
    # on a GPU alone the core is the worker, and its parent was the service
    if parent != service:
        with suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if SERVICE in os.environ:
    threading.Thread(
        target=_end_with,
        args=(int(os.environ[SERVICE]), os.getppid()),
        name="solon-end-with-service",
        daemon=True,
    ).start()
