"""New weights for the model that runs: full ones or an adapter, from a directory or a URL.

They are read beside the old ones, on the CPU, and checked to fit. Knows nothing of requests, and
touches nothing that runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solon.engine.base import InvalidInput, WeightsNotLoaded
from solon.engine.fetching import ADAPTER_CONFIG, fetched
from solon.engine.hf.adapters import merged
from solon.engine.hf.loading import UNREADABLE, first_line, from_pretrained, read_config
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
class NewWeights:
    """Weights that fit the model that runs."""

    tensors: Mapping[str, Tensor]
    base: Base
    """What the next adapter is merged into."""


def read_weights(path: str, *, base: Base, running: Any, abandoned: threading.Event) -> NewWeights:
    """Read weights and check that they fit the running model and are finite.

    Args:
        path: Directory or URL. One that has an adapter_config.json is an adapter.
        base: What an adapter is merged into.
        running: The model that they are for; it is only looked at.
        abandoned: Set when nobody waits for them any more: ends this soon, with an error.

    Raises:
        WeightsNotLoaded: They are not there or do not fit; the text says why.
        InvalidInput: ``path`` can be neither.
    """
    source = Source.parse(path)
    with _opened(source, abandoned) as folder:
        # unlike Path.is_dir it raises nothing, whatever the name
        if not os.path.isdir(folder):
            raise WeightsNotLoaded(f"path: expected a directory or a URL, {path!r} is neither")
        is_adapter = (folder / ADAPTER_CONFIG).is_file()
        if is_adapter:
            if base.fingerprint is None:
                base = replace(base, fingerprint=_fingerprint(running.state_dict()))
            model = _read_base(base, running, abandoned)
            with _said_of(source, folder):
                model = merged(folder, model)
        else:
            model = _read_full(source, folder, running)
        tensors = model.state_dict()
        with _said_of(source, folder):
            _check_tensors(tensors, running.state_dict())
    if abandoned.is_set():
        raise WeightsNotLoaded("nobody waits for these weights any more")
    return NewWeights(tensors=tensors, base=base if is_adapter else Base(source=source))


@contextmanager
def _opened(source: Source, abandoned: threading.Event) -> Iterator[Path]:
    """A directory with what lies at the source."""
    if not source.scheme:
        yield Path(source.path)
        return
    with fetched(source, abandoned) as folder:
        yield folder


@contextmanager
def _said_of(source: Source, folder: Path) -> Iterator[None]:
    """Turn what goes wrong within into one sentence about the source."""
    try:
        yield
    except _UNUSABLE as error:
        # a folder that is gone by the time that the error is read helps nobody
        text = first_line(error).replace(str(folder), str(source))
        raise WeightsNotLoaded(f"path {str(source)!r}: {text}") from error


def _read_full(source: Source, folder: Path, running: Any) -> Any:
    with _said_of(source, folder):
        _check_structure(read_config(str(folder)), running.config)
        model, report = from_pretrained(str(folder), running.dtype)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                names = ", ".join(sorted(map(str, report[kind]))[:3])
                raise ValueError(
                    f"{len(report[kind])} {kind.replace('_', ' ')}, such as {names}: expected the "
                    "weights of the model that is being served"
                )
    return model


def _read_base(base: Base, running: Any, abandoned: threading.Event) -> Any:
    try:
        with _opened(base.source, abandoned) as folder:
            model = _read_full(base.source, folder, running)
    except WeightsNotLoaded as error:
        raise WeightsNotLoaded(
            f"the full weights that the adapter is for cannot be read again: {error}; load full "
            "weights first"
        ) from error
    if _fingerprint(model.state_dict()) != base.fingerprint:
        raise WeightsNotLoaded(
            f"the full weights at {str(base.source)!r} have changed since they were loaded: load "
            "full weights first, then the adapter"
        )
    return model


def _fingerprint(weights: Mapping[str, Tensor]) -> dict[str, int]:
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


def _check_tensors(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
    if new.keys() != old.keys():
        names = ", ".join(sorted(new.keys() ^ old.keys())[:3])
        raise ValueError(f"the tensors' names differ, such as {names}")
    first_of: dict[int, str] = {}
    for name, tensor in new.items():
        if tensor.shape != old[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(old[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")
        first = first_of.setdefault(old[name].data_ptr(), name)
        if first != name and not torch.equal(tensor, new[first]):
            raise ValueError(
                f"{name} differs from {first}, but the model that is being served ties the two"
            )
