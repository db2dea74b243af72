"""The vllm engine's own options, under the names that vLLM has for them.

Knows nothing of vLLM: it is imported only when the engine starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from solon.engine.base import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmOptions:
    """What ``--engine-option`` can say (docs.vllm.ai has each at length)."""

    chat_template: str | None = None
    """Path of a Jinja chat template to use instead of the tokenizer's."""
    tensor_parallel_size: int = 1
    """GPUs that share each layer, >= 1."""
    pipeline_parallel_size: int = 1
    """Groups of them that share the layers, >= 1."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights and cache, in (0, 1]."""
    kv_cache_memory_bytes: int = 0
    """Cache of each GPU; 0: what that share leaves, and 4 GiB on a CPU."""
    kv_cache_dtype: str = "auto"
    """``auto`` (the model's), or ``fp8``."""
    max_model_len: int = 0
    """Most tokens of prompt and answer together; 0: what the model was made for."""
    max_num_batched_tokens: int = 0
    """Most tokens of one forward pass; 0: vLLM's own choice."""
    block_size: int = 0
    """Tokens of a block of the cache, which prefixes are shared by; 0: 32 on a CPU, else vLLM's own
    choice."""
    quantization: str | None = None
    """How the weights are quantized, if config.json does not say it."""
    enforce_eager: bool = False
    """Compile nothing: slower, but starts sooner and needs no compiler."""
    enable_lora: bool = False
    """Run adapters beside the weights, so that an update moves only theirs. Otherwise they are
    merged, which costs as much as full weights, and nothing afterwards."""
    max_lora_rank: int = 64
    """Highest rank of an adapter that runs beside the weights."""

    def __post_init__(self) -> None:
        """Check the ranges that vLLM does not name.

        Raises:
            InvalidInput: A value is out of its range.
        """
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "max_lora_rank"):
            if (value := getattr(self, name)) < 1:
                raise InvalidInput(f"engine option {name!r}: expected a number >= 1, got {value}")
        for name in (
            "kv_cache_memory_bytes",
            "max_model_len",
            "max_num_batched_tokens",
            "block_size",
        ):
            if (value := getattr(self, name)) < 0:
                raise InvalidInput(f"engine option {name!r}: expected a number >= 0, got {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InvalidInput(
                "engine option 'gpu_memory_utilization': expected a number in (0, 1], got "
                f"{self.gpu_memory_utilization}"
            )
