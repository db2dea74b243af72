"""What ``--device`` and ``--dtype`` mean, for engines that run a model themselves."""

from __future__ import annotations

import torch

from solon.engine.base import InvalidInput
from solon.engine.pretrained import first_line


def device_of(name: str) -> torch.device:
    """The device of a name; ``auto``: CUDA if there is any.

    Raises:
        InvalidInput: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(
            f"device: expected auto, cpu, cuda or cuda:N, got {name!r}: {first_line(error)}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            f"device: {name!r} was asked for, but torch sees no CUDA device here: use cpu or auto"
        )
    return device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of a name; ``auto``: float32 on a CPU, bfloat16 on a GPU.

    Raises:
        InvalidInput: It is none of floating point.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidInput(f"dtype: expected auto, float32, bfloat16 or float16, got {name!r}")
    return dtype
