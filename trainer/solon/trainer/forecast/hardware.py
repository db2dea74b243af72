"""Accelerators: how much they hold, how fast they are, and how long work takes on them.

The figures are the makers' (dense bfloat16, no sparsity). Work never reaches them: the shares below
are what is commonly measured, and the estimate is as good as they are. Knows nothing of stages.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from solon.trainer.errors import ConfigError

GIB = 2**30
UTILISATION = 0.35
"""Of peak FLOP/s in training and prefill. Chowdhery et al. 2022 (2204.02311, table 3) report 21 to
46 % over systems."""
BANDWIDTH_SHARE = 0.6
"""Of peak bandwidth in decoding with transformers' generate."""
USABLE = 0.95
"""Of a device's memory; the rest is lost to fragmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One device."""

    name: str
    memory: int
    """Bytes."""
    flops: float
    """Peak FLOP/s in dense bfloat16."""
    bandwidth: float
    """Peak bytes/s of its memory."""


def _known(name: str, gib: int, teraflops: float, terabytes: float) -> Accelerator:
    return Accelerator(
        name=name, memory=gib * GIB, flops=teraflops * 1e12, bandwidth=terabytes * 1e12
    )


KNOWN: Mapping[str, Accelerator] = {
    one.name: one
    for one in (
        _known("a100-40gb", 40, 312, 1.555),
        _known("a100-80gb", 80, 312, 2.039),
        _known("h100-80gb", 80, 989, 3.35),
        _known("h200-141gb", 141, 989, 4.8),
        _known("l40s-48gb", 48, 362, 0.864),
        _known("rtx4090-24gb", 24, 165, 1.008),
    )
}
"""By name; from the makers' data sheets."""


def parse_gpus(text: str) -> tuple[Accelerator, ...]:
    """Devices from ``2xa100-40gb``.

    Raises:
        ConfigError: Another form, or a device that is not known.
    """
    found = re.fullmatch(r"([1-9]\d{0,3})x(.+)", text.strip().lower())
    if found is None or found[2] not in KNOWN:
        raise ConfigError(
            f"--gpus: expected a number and a device such as 2xa100-40gb, got {text!r}; known "
            f"devices: {', '.join(KNOWN)}"
        )
    return (KNOWN[found[2]],) * int(found[1])


def detected() -> tuple[Accelerator, ...]:
    """The NVIDIA devices of this machine, as the driver's own tool lists them; none without it.

    One that is not among ``KNOWN`` has its own memory and the rates of the nearest in size.
    """
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return tuple(_device(*line.rsplit(",", 1)) for line in lines)


def _device(name: str, mebibytes: str) -> Accelerator:
    memory = int(mebibytes) * 2**20
    near = min(KNOWN.values(), key=lambda one: abs(one.memory - memory))
    return Accelerator(name=name.strip(), memory=memory, flops=near.flops, bandwidth=near.bandwidth)


def training_seconds(device: Accelerator, *, parameters: int, tokens: int, passes: float) -> float:
    """Seconds of forward and backward passes: 2 FLOP a parameter, token and pass.

    Source: Kaplan et al. 2020 (2001.08361), section 2.1.

    Args:
        device: On which.
        parameters: Of the network.
        tokens: That go through it.
        passes: 1 is a forward pass, 3 is one with its backward pass; 4 if activations are computed
            again.
    """
    return 2 * parameters * tokens * passes / (device.flops * UTILISATION)


def generation_seconds(
    device: Accelerator,
    *,
    weight_bytes: int,
    cache_bytes: int,
    parameters: int,
    prompt_tokens: int,
    completion_tokens: int,
    together: int,
) -> float:
    """Seconds to read prompts and to write completions.

    Reading is bound by FLOP/s; a step of writing reads all weights, and the cache of every
    sequence, from memory once (Pope et al. 2022, 2211.05102, section 2).

    Args:
        device: On which.
        weight_bytes: Of the weights in memory.
        cache_bytes: Of the keys and values of all sequences that run together.
        parameters: Of the model.
        prompt_tokens: In all.
        completion_tokens: In all.
        together: Sequences in one batch, >= 1.
    """
    reading = training_seconds(device, parameters=parameters, tokens=prompt_tokens, passes=1)
    step = (weight_bytes + cache_bytes) / (device.bandwidth * BANDWIDTH_SHARE)
    return reading + completion_tokens / together * step
