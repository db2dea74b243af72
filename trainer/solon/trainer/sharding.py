"""Networks of which each of several processes holds an equal part: fully sharded data parallelism.

Weights, gradients and AdamW's moments are divided (ZeRO's third stage, Rajbhandari et al. 2020,
1910.02054, section 5.3); a layer's weights are gathered for as long as it computes. torch's
``fully_shard`` (FSDP2) does it. Knows nothing of losses or of what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from solon.trainer.ranks import rank
from solon.trainer.training import WeightSettings


def number_formats(settings: WeightSettings) -> MixedPrecisionPolicy:
    """Layers compute in the settings' format; gradients are summed up in float32."""
    half = torch.bfloat16 if settings.precision == "bfloat16" else None
    return MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)


def plugin_arguments(settings: WeightSettings) -> dict[str, Any]:
    """Of accelerate's plugin, by which the stages on TRL are sharded."""
    return {
        "fsdp_version": 2,
        "auto_wrap_policy": "transformer_based_wrap",
        "reshard_after_forward": True,
        # each process writes its own part of a checkpoint
        "state_dict_type": "SHARDED_STATE_DICT",
        "mixed_precision_policy": number_formats(settings),
        "cpu_ram_efficient_loading": False,
    }


def shard_anywhere(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Let accelerate shard on a CPU, too: it has that for accelerators only, torch for both."""
    if not torch.cuda.is_available():
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def shard(
    network: nn.Module,
    lm: PreTrainedModel,
    settings: WeightSettings,
    *,
    exact: nn.Module | None = None,
) -> None:
    """Divide a network among all processes, in place.

    Args:
        network: On the CPU; called as a whole from here on, or by methods that are registered with
            ``register_fsdp_forward_method``.
        lm: The model in it, whose layers are gathered one at a time.
        settings: Its number formats.
        exact: A part of it that computes in float32 whatever they are.
    """
    if exact is not None:
        fully_shard(exact)
    policy = number_formats(settings)
    layers = set(lm._no_split_modules or ())
    for module in lm.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mp_policy=policy)
    # its layers are to know that they are parts, also if one of them is called before the whole
    # and what a whole network is given, such as features in float32, stays as it is
    kept = replace(policy, cast_forward_inputs=False)
    fully_shard(network, mp_policy=kept)._get_fsdp_state()._lazy_init()


def is_sharded(network: nn.Module) -> bool:
    """Whether this process holds a part of it only."""
    return isinstance(network, FSDPModule)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside of this every process has the whole network, in the format that it computes in.

    For many passes without gradients, such as sampling: parts of it may be called by themselves,
    and the processes need not keep pace. Does nothing to a network that is not sharded.
    """
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not network, recurse=False)


def whole(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in one piece, on the CPU of the first process. Called by all of them.

    Args:
        model: Sharded, or not: then it is given back.
        dtype: The number format of the result.

    Returns:
        A model of the same class to be written, not to be called; on the other processes without
        weights.
    """
    if not any(isinstance(tensor, DTensor) for tensor in model.parameters()):
        return model
    state = {}
    for name, tensor in model.state_dict().items():
        found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            state[name] = found.to("cpu", dtype)
    plain = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        made = cast("type[PreTrainedModel]", plain)(model.config)
    if hasattr(model, "generation_config"):
        made.generation_config = model.generation_config
    if state:
        made.load_state_dict(state, assign=True)
        made.tie_weights()
    return made


def save_parts(
    directory: Path, networks: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]
) -> None:
    """Write sharded networks and their optimisers, by name; each process its own part."""
    for name, (network, optimizer) in networks.items():
        weights, moments = get_state_dict(network, optimizer)
        save({"weights": weights, "moments": moments}, checkpoint_id=str(directory / name))


def load_parts(
    directory: Path, networks: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]
) -> None:
    """Go on from what ``save_parts`` wrote, with as many processes."""
    for name, (network, optimizer) in networks.items():
        weights, moments = get_state_dict(network, optimizer)
        state: dict[str, Any] = {"weights": weights, "moments": moments}
        load(state, checkpoint_id=str(directory / name))
        set_state_dict(
            network,
            optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["moments"],
        )
