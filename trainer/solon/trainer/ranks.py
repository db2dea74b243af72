"""Which of how many processes of a stage this is, and how they find one another.

RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE tell it, as torchrun and Kubernetes' training
operators set them, and ``launch.stages`` on one machine. Knows nothing of models or of what is
trained. Imports torch only where there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from solon.trainer.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")

_TIMEOUT = timedelta(hours=2)
"""For which a process waits for the others: for as long as the longest thing that one does alone,
such as writing a model, may take. One that dies is noticed at once."""


def rank() -> int:
    """This process's number among all, 0 for the one that reports and writes."""
    return _number("RANK", 0)


@contextmanager
def joined(processes: int, *, key: str, rendezvous: str | None) -> Iterator[None]:
    """Be one of the processes of a stage while the block runs.

    Args:
        processes: How many the configuration says.
        key: The stage's part of the configuration.
        rendezvous: Where they meet, a URL as ``torch.distributed`` takes it. None: at MASTER_ADDR
            and MASTER_PORT, as torchrun sets them.

    Raises:
        ConfigError: As many were not started, or this machine has not as many accelerators.
    """
    started = _number("WORLD_SIZE", 1)
    if started != processes:
        raise ConfigError(
            f"{key}.processes: expected {started}, as many as were started (WORLD_SIZE), got "
            f"{processes!r}; start as many, or change it"
        )
    if processes == 1:
        yield
        return
    import torch  # noqa: PLC0415 - heavy, and one process needs none of it here

    gpus, here = torch.cuda.device_count(), _number("LOCAL_WORLD_SIZE", started)
    if 0 < gpus < here:
        raise ConfigError(
            f"{key}.processes: expected at most {gpus} on this machine, which has as many "
            f"accelerators, got {here!r}; lower it, or use more machines"
        )
    if gpus:
        torch.cuda.set_device(_number("LOCAL_RANK", 0))
    torch.distributed.init_process_group(
        # what is gathered on its way to the disk goes through the CPU
        backend="cuda:nccl,cpu:gloo" if gpus else "gloo",
        init_method=rendezvous or "env://",
        rank=rank(),
        world_size=processes,
        timeout=_TIMEOUT,
    )
    yield
    # not after an error: the others may wait for what never comes, and this process ends anyhow
    torch.distributed.destroy_process_group()


def from_all(value: Item) -> list[Item]:
    """The value that each process has, on every process. Called by all of them."""
    processes = _number("WORLD_SIZE", 1)
    if processes == 1:
        return [value]
    import torch  # noqa: PLC0415 - heavy

    found: list[Item | None] = [None] * processes
    torch.distributed.all_gather_object(found, value)
    return [one for one in found if one is not None]


def from_first(value: Item) -> Item:
    """The value that the first process has, on every process. Called by all of them."""
    if _number("WORLD_SIZE", 1) == 1:
        return value
    import torch  # noqa: PLC0415 - heavy

    found = [value]
    torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def divided(items: Sequence[Item], work: Callable[[Sequence[Item]], Tensor]) -> Tensor:
    """``work`` on all items, each process on its share; every process has the whole result.

    Args:
        items: The same on every process.
        work: One number an item, [B]. Called once, on as many items as in every other process, so
            that it may wait for the others: who has fewer does one more than it needs.
    """
    processes = _number("WORLD_SIZE", 1)
    if processes == 1 or not items:
        return work(items)
    import torch  # noqa: PLC0415 - heavy

    each = -(-len(items) // processes)
    first = rank() * each
    mine = [items[min(row, len(items) - 1)] for row in range(first, first + each)]
    return torch.cat(from_all(work(mine).cpu()))[: len(items)]


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))
