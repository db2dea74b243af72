"""vLLM itself: started from our options, and what it raises in our terms.

Knows nothing of conversations.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from solon.engine.base import BackendUnavailable, EngineError, EngineFailed, InvalidInput
from solon.engine.options import EngineOptions
from solon.engine.pretrained import first_line
from solon.engine.vllm import SERVICE
from solon.engine.vllm.options import VllmOptions

T = TypeVar("T")

_CPU_CACHE_BYTES = 4 * 2**30
_CPU_BLOCK = 32
"""vLLM's own 128 would have most of a judge's question computed again; its kernels want 32s."""
_EXTENSION = "solon.engine.vllm.extension.Extension"
"""By name: a worker that is forked must be the first to import it."""
_ENVIRONMENT = {
    # it says over the network what it runs, unless told not to
    "VLLM_NO_USAGE_STATS": "1",
    # its lines go where the service's go
    "VLLM_CONFIGURE_LOGGING": "0",
    # a fork of a process that serves gRPC inherits locks that nobody will release
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@dataclass(kw_only=True, slots=True)
class Passes:
    """Forward passes, as vLLM reports them."""

    batches: int = 0
    batched_sequences: int = 0
    """Tokens that they gave, one a sequence, added up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """A vLLM that runs."""

    llm: Any
    """An AsyncLLM. It must be used on one event loop."""
    device: str
    dtype: str
    context_tokens: int
    passes: Passes = field(default_factory=Passes)

    async def workers(self, method: str, **arguments: object) -> None:
        """Have every worker call one of its methods. Errors as ``answer``."""
        await self.answer(self.llm.collective_rpc(method, kwargs=arguments))

    async def answer(self, asked: Awaitable[T]) -> T:
        """What vLLM's core answers.

        Raises:
            BackendUnavailable: It died; vLLM itself would wait for ever.
            EngineFailed: It refused.
        """
        task = asyncio.ensure_future(asked)
        dead = self.llm.output_handler
        try:
            await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise gone()
            with failures():
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def gone() -> BackendUnavailable:
    """The error of a core that died."""
    return BackendUnavailable("vLLM's core has died: the service's log has its last words")


@contextmanager
def failures() -> Iterator[None]:
    """Turn what vLLM raises for a request into an engine's errors."""
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415 - heavy
    from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415

    try:
        yield
    except EngineError:
        raise
    except EngineDeadError as error:
        raise gone() from error
    except VLLMValidationError as error:
        raise InvalidInput(first_line(error)) from error
    except Exception as error:  # whatever a worker's method raised, in words
        cause = error.__cause__ or error
        raise EngineFailed(f"vLLM failed: {type(cause).__name__}: {first_line(cause)}") from error


def start(options: EngineOptions, own: VllmOptions) -> Backend:
    """Start vLLM, with its processes; takes as long as loading the model does.

    To be called in a thread, and what it returns to be used on the event loop.

    Raises:
        InvalidInput: vLLM does not take these options, or not this model.
        EngineFailed: It could not start.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ[SERVICE] = str(os.getpid())
    if own.enforce_eager:
        # vLLM itself would still compile a few functions of its sampler
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if options.threads is not None:
        # its workers take as many; to bind each to a core of its own is for whole machines
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with _no_interrupts(), _mistakes():
        return _start(options, own)


def _start(options: EngineOptions, own: VllmOptions) -> Backend:
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 - heavy
    from vllm.platforms import current_platform  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    on_cpu = current_platform.is_cpu()
    _check_device(options.device, on_cpu=on_cpu)
    dtype = {True: "float32", False: "bfloat16"}[on_cpu] if options.dtype == "auto" else None
    passes = Passes()
    config = AsyncEngineArgs(
        **_arguments(options, own, on_cpu=on_cpu), dtype=dtype or options.dtype
    ).create_engine_config(UsageContext.ENGINE_CONTEXT)
    llm = AsyncLLM.from_vllm_config(
        config,
        # its own statistics are for its own server; ours count passes and give each request times
        disable_log_stats=True,
        stat_loggers=[lambda *_: _counting(passes)],
    )
    return Backend(
        llm=llm,
        device="cpu" if on_cpu else str(current_platform.device_type),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        context_tokens=config.model_config.max_model_len,
        passes=passes,
    )


def _arguments(options: EngineOptions, own: VllmOptions, *, on_cpu: bool) -> dict[str, Any]:
    """Of AsyncEngineArgs, the type left out."""
    cache = own.kv_cache_memory_bytes
    if not cache and on_cpu and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        cache = _CPU_CACHE_BYTES
    return {
        "model": options.model,
        "tensor_parallel_size": own.tensor_parallel_size,
        "pipeline_parallel_size": own.pipeline_parallel_size,
        "gpu_memory_utilization": own.gpu_memory_utilization,
        "kv_cache_memory_bytes": cache or None,
        "kv_cache_dtype": own.kv_cache_dtype,
        "max_model_len": own.max_model_len or None,
        "max_num_seqs": options.max_batch,
        "max_num_batched_tokens": own.max_num_batched_tokens or None,
        "block_size": own.block_size or (_CPU_BLOCK if on_cpu else None),
        "quantization": own.quantization,
        "enforce_eager": own.enforce_eager,
        "enable_lora": own.enable_lora,
        "max_lora_rank": own.max_lora_rank,
        # the adapter that is served, and the one that is to take its place
        "max_loras": 2,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "trust_remote_code": False,
        "worker_extension_cls": _EXTENSION,
    }


def _counting(passes: Passes) -> Any:
    from vllm.v1.metrics.loggers import StatLoggerBase  # noqa: PLC0415 - heavy

    class Counting(StatLoggerBase):  # type: ignore[misc]
        """vLLM's hook after each forward pass."""

        def __init__(self) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            """Count a pass."""
            if iteration_stats is not None:
                passes.batches += 1
                passes.batched_sequences += iteration_stats.num_generation_tokens

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return Counting()


def _check_device(device: str, *, on_cpu: bool) -> None:
    if device in ("auto", "cpu" if on_cpu else "cuda"):
        return
    if ":" in device:
        raise InvalidInput(
            f"device: expected auto, cpu or cuda, got {device!r}: choose GPUs with "
            "CUDA_VISIBLE_DEVICES"
        )
    raise InvalidInput(
        f"device: {device!r} was asked for, but the vLLM that is installed here runs on "
        f"{'the CPU' if on_cpu else 'GPUs'} only: install the other build, or use auto"
    )


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """For processes that are started within: Ctrl-C is for the service, which tells them to end."""
    mask: Sequence[int] = (signal.SIGINT,)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _mistakes() -> Iterator[None]:
    """Tell the mistakes of whoever started the engine from those of vLLM."""
    try:
        yield
    except ImportError as error:
        raise InvalidInput(
            f"engine: vLLM is not installed here: {first_line(error)}: pip install 'solon[vllm]'"
        ) from error
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        # pydantic has a headline, the name of a field and then what is wrong with it
        text = " ".join(str(error).split())
        raise InvalidInput(f"model: vLLM cannot run it like this: {text}") from error
    except RuntimeError as error:
        raise EngineFailed(
            f"vLLM could not start, and has said why: {first_line(error)}"
        ) from error
