"""What of the networks is held in memory and in checkpoints.

Knows nothing of rewards, of episodes or of what the networks are for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputing(*networks: nn.Module | None) -> Iterator[None]:
    """Layers with gradient checkpointing use it inside of this.

    transformers has them do so in training mode, which would switch dropout on, too: so only the
    layers themselves are in it, not what is in them; and sampling, whose cache they would refuse,
    is outside.
    """
    layers = [
        module
        for network in networks
        if network is not None
        for module in network.modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Inside of this the network is what it was before ``stages.adapters.attach``."""
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def give_back() -> None:
    """Have the C library return memory that no tensor uses any more.

    glibc keeps the pages between blocks in use: with every batch more of them, and those of
    sampling's cache while the gradients are computed. Does nothing where there is no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def checkpoint_what_learns(accelerator: Accelerator) -> None:
    """Leave frozen weights out of checkpoints: they are in the models that the networks began as.

    Such a checkpoint is loaded with ``load_state(..., strict=False)``.
    """
    accelerator.register_save_state_pre_hook(_drop_frozen)


def _drop_frozen(models: Sequence[nn.Module], weights: list[dict[str, Any]], _: str) -> None:
    for model, state in zip(models, weights, strict=False):  # none where FSDP saves by itself
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state.pop(name, None)
