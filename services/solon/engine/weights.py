"""New weights for the model that runs: full ones or an adapter, from a directory or a URL.

They are read beside the old ones, on the CPU, and checked to fit. Knows nothing of requests, and
touches nothing that runs.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solon.engine.adapters import merged
from solon.engine.base import InvalidInput, WeightsNotLoaded
from solon.engine.fetching import ADAPTER_CONFIG, fetched
from solon.engine.pretrained import UNREADABLE, first_line, from_pretrained, read_config
from solon.engine.sources import Source

_STRUCTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
)
"""What of config.json changes the function that the weights compute."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""A type for the bits of a number, by its size in bytes."""

_UNUSABLE = (*UNREADABLE, InvalidInput, TypeError, AttributeError)
"""What is raised, besides, for a config.json of a wrong shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The full weights that were loaded last, which adapters are merged into.

    Only where they are: a copy in memory would cost as much as the model.
    """

    source: Source
    fingerprint: Mapping[str, int] | None = None
    """Of each tensor, to know them again. None: they run as they are, without an adapter."""

    @classmethod
    def of(cls, model: str) -> Base:
        """What an engine was started with: a directory, or a name on the hub."""
        return cls(source=Source.parse(model) if Path(model).is_dir() else Source(path=model))


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What new weights must fit: the model that runs, wherever that is."""

    config: Any
    dtype: torch.dtype
    shapes: Mapping[str, torch.Size]
    tied: Mapping[str, str]
    """Name of a tensor -> the first name of the same one."""
    fingerprint: Callable[[], Mapping[str, int]]
    """Of the full weights that it was started with. Raises WeightsNotLoaded if they are gone."""

    @classmethod
    def of(cls, model: Any, fingerprint: Callable[[], Mapping[str, int]] | None = None) -> Served:
        """A model with these weights; it is only looked at.

        ``fingerprint``: default: that of the model's own tensors.
        """
        # tensors are known by their identity: those of a model without memory have no address
        tensors = model.state_dict(keep_vars=True)
        first_of: dict[int, str] = {}
        return cls(
            config=model.config,
            dtype=model.dtype,
            shapes={name: tensor.shape for name, tensor in tensors.items()},
            tied={name: first_of.setdefault(id(t), name) for name, t in tensors.items()},
            fingerprint=fingerprint or (lambda: fingerprint_of(model.state_dict())),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What lies at a path, here for a while."""

    source: Source
    folder: Path

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, and not full weights."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @contextmanager
    def said_of(self) -> Iterator[None]:
        """Turn what goes wrong within into one sentence about the source.

        Raises:
            WeightsNotLoaded: Something did.
        """
        try:
            yield
        except _UNUSABLE as error:
            # a folder that is gone by the time that the error is read helps nobody
            text = first_line(error).replace(str(self.folder), str(self.source))
            raise WeightsNotLoaded(f"path {str(self.source)!r}: {text}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class NewWeights:
    """Weights that fit the model that runs."""

    model: Any
    """A model that has them, on the CPU."""
    base: Base
    """What the next adapter is merged into."""


async def until_ended(update: Callable[[threading.Event], Awaitable[None]]) -> None:
    """Run an update of weights to its end, whatever becomes of the caller.

    Args:
        update: Gets an event that is set when nobody waits for it any more: then it is to change
            nothing, unless the swap has begun, and to end soon.
    """
    abandoned = threading.Event()
    # a task of its own: a thread and a swap cannot be cancelled, only asked to end, and how they
    # ended must be known
    task = asyncio.ensure_future(update(abandoned))
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        abandoned.set()
        await asyncio.wait([task])
        task.exception()  # it is nobody's any more
        raise
    task.result()


def read_weights(
    path: str, *, base: Base, served: Served, abandoned: threading.Event
) -> NewWeights:
    """The weights at a path. See ``found`` and ``read``."""
    with found(path, abandoned) as there:
        return read(there, base=base, served=served, abandoned=abandoned)


@contextmanager
def found(path: str, abandoned: threading.Event) -> Iterator[Found]:
    """What lies at a directory or URL, fetched for as long as this lasts.

    ``abandoned``: set when nobody waits for it any more: ends a transfer, with an error.

    Raises:
        WeightsNotLoaded: There is nothing; the text says why.
        InvalidInput: ``path`` can be neither.
    """
    source = Source.parse(path)
    with _opened(source, abandoned) as folder:
        # unlike Path.is_dir it raises nothing, whatever the name
        if not os.path.isdir(folder):
            raise WeightsNotLoaded(f"path: expected a directory or a URL, {path!r} is neither")
        yield Found(source=source, folder=folder)


def read(there: Found, *, base: Base, served: Served, abandoned: threading.Event) -> NewWeights:
    """Read weights and check that they fit the served model and are finite.

    Args:
        there: Where they lie.
        base: What an adapter is merged into.
        served: The model that they are for.
        abandoned: Set when nobody waits for them any more: ends this soon, with an error.

    Raises:
        WeightsNotLoaded: They do not fit; the text says why.
    """
    if there.is_adapter:
        if base.fingerprint is None:
            base = replace(base, fingerprint=served.fingerprint())
        model = _read_base(base, served, abandoned)
        with there.said_of():
            model = merged(there.folder, model)
    else:
        model = _read_full(there, served)
        base = Base(source=there.source)
    with there.said_of():
        _check_tensors(model.state_dict(), served)
    if abandoned.is_set():
        raise WeightsNotLoaded("nobody waits for these weights any more")
    return NewWeights(model=model, base=base)


@contextmanager
def _opened(source: Source, abandoned: threading.Event) -> Iterator[Path]:
    """A directory with what lies at the source."""
    if not source.scheme:
        yield Path(source.path)
        return
    with fetched(source, abandoned) as folder:
        yield folder


def _read_full(there: Found, served: Served) -> Any:
    with there.said_of():
        _check_structure(read_config(str(there.folder)), served.config)
        model, report = from_pretrained(str(there.folder), served.dtype)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                names = ", ".join(sorted(map(str, report[kind]))[:3])
                raise ValueError(
                    f"{len(report[kind])} {kind.replace('_', ' ')}, such as {names}: expected the "
                    "weights of the model that is being served"
                )
    return model


def _read_base(base: Base, served: Served, abandoned: threading.Event) -> Any:
    try:
        with _opened(base.source, abandoned) as folder:
            model = _read_full(Found(source=base.source, folder=folder), served)
    except WeightsNotLoaded as error:
        raise WeightsNotLoaded(
            f"the full weights that the adapter is for cannot be read again: {error}; load full "
            "weights first"
        ) from error
    if fingerprint_of(model.state_dict()) != base.fingerprint:
        raise WeightsNotLoaded(
            f"the full weights at {str(base.source)!r} have changed since they were loaded: load "
            "full weights first, then the adapter"
        )
    return model


def fingerprint_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """All bits of each tensor xored together: the same on every device, in any order."""
    return {
        name: int(torch.hash_tensor(tensor.view(_BITS[tensor.element_size()])).view(torch.int64))
        for name, tensor in weights.items()
        if tensor.numel()
    }


def _check_structure(new: Any, old: Any) -> None:
    for key in _STRUCTURE:
        ours, theirs = getattr(old, key, None), getattr(new, key, None)
        if ours != theirs:
            raise ValueError(
                f"config.json has {key} {theirs!r}, but the model that is being served has "
                f"{ours!r}: expected weights of the same architecture"
            )


def _check_tensors(new: Mapping[str, Tensor], served: Served) -> None:
    if new.keys() != served.shapes.keys():
        names = ", ".join(sorted(new.keys() ^ served.shapes.keys())[:3])
        raise ValueError(f"the tensors' names differ, such as {names}")
    for name, tensor in new.items():
        if tensor.shape != served.shapes[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(served.shapes[name])}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")
        first = served.tied[name]
        if first != name and not torch.equal(tensor, new[first]):
            raise ValueError(
                f"{name} differs from {first}, but the model that is being served ties the two"
            )
