"""What a model is, from the files beside its weights: names and shapes of its parameters, context.

Shapes come from the headers of safetensors files, a few kilobytes even for a large model, or, where
there are no weights yet, from building the architecture without any (see ``shapes``). Knows nothing
of memory or time; imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from solon.trainer.config import model_source
from solon.trainer.errors import ConfigError

_HEADER_LIMIT = 100_000_000
"""Bytes; the safetensors format allows no longer header."""
_INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = ("*.bin", "*.gguf", "*.pt")
_NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "score")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Where a model of the configuration is."""

    name: str
    """As in the configuration."""
    folder: Path | None
    """Its directory, or its snapshot in the Hugging Face cache; None: it is not on this machine."""
    is_hub: bool
    """Whether it is a name on the hub."""
    has_weights: bool
    """Whether all its weights are on this machine."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's measures."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    """Parameter -> shape; tied parameters are there once."""
    layers: int
    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width inside of the feed-forward blocks."""
    key_value_width: int
    """Elements of the keys, and of the values, of one token in one layer."""
    vocabulary: int
    context: int | None
    """Most tokens of prompt and response together; None: the configuration does not say."""
    stored_bytes: int
    """Of the weight files, or what they would have in the configuration's number format."""

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def adapted(self, rank: int, targets: Sequence[str] | None) -> int:
        """Parameters of low-rank adapters: rank x (in + out) for each matrix.

        Source: Hu et al. 2021 (2106.09685), section 4.1.

        Args:
            rank: Of the factors, >= 1.
            targets: Last parts of the matrices' names; None: all linear layers but the head.
        """
        return sum(
            rank * sum(shape)
            for name, shape in self.shapes.items()
            if len(shape) == 2 and _is_target(name, targets)
        )


def _is_target(name: str, targets: Sequence[str] | None) -> bool:
    if targets is None:
        return not any(part in name for part in _NOT_LINEAR)
    return name.removesuffix(".weight").rpartition(".")[2] in targets


def find(name: str) -> Found:
    """Look for a model of the configuration on this machine; asks nobody else."""
    path = Path(model_source(name))
    if path.is_absolute():
        return Found(name=name, folder=path, is_hub=False, has_weights=_has_weights(path))
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - hub names alone need it

    cached = try_to_load_from_cache(name, "config.json")
    folder = Path(cached).parent if isinstance(cached, str) else None
    has_weights = folder is not None and _has_weights(folder)
    return Found(name=name, folder=folder, is_hub=True, has_weights=has_weights)


def problems_of(found: Found, key: str) -> list[str]:
    """What keeps a model from being loaded: a sentence each, with key, value and fix."""
    folder = found.folder
    if folder is None:
        return []
    if not (folder / "config.json").is_file():
        return [
            f"{key}: expected a directory in Hugging Face format or a hub name, but {str(folder)!r}"
            " has no config.json"
        ]
    problems = []
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        problems.append(f"{key}: {str(folder)!r} has no tokenizer.json: add the model's tokenizer")
    elif not _has_chat_template(folder):
        problems.append(
            f"{key}: the tokenizer in {str(folder)!r} has no chat template: add a "
            "chat_template.jinja"
        )
    if not found.is_hub and not found.has_weights:
        problems.append(
            f"{key}: {str(folder)!r} lacks weights: expected model.safetensors, or every file that "
            f"{_INDEX} names, whole"
        )
    return problems


def describe(found: Found) -> Model:
    """Read a model's measures.

    Raises:
        ConfigError: Its config.json is broken, or of an architecture that transformers lacks.
    """
    assert found.folder is not None, "whoever asks has seen that it is here"
    config = _config(found.folder)
    files = [path for path in _weight_files(found.folder) if path.is_file()]
    is_described = bool(files) and len(files) == len(_weight_files(found.folder))
    shapes = _from_headers(files) if is_described else _from_architecture(found.folder)
    stored = sum(path.stat().st_size for path in files) if found.has_weights else 0
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    width = int(config.get("head_dim") or hidden // heads)
    context = config.get("max_position_embeddings") or config.get("n_positions")
    model = Model(
        name=found.name,
        shapes=shapes,
        layers=int(config.get("num_hidden_layers") or config.get("n_layer") or 0),
        hidden=hidden,
        intermediate=int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
        key_value_width=width * int(config.get("num_key_value_heads") or heads),
        vocabulary=int(config.get("vocab_size") or 0),
        context=int(context) if context else None,
        stored_bytes=stored,
    )
    if stored:
        return model
    is_half = "16" in str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return Model(**{**vars(model), "stored_bytes": model.parameters * (2 if is_half else 4)})


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a model's configuration in JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {found!r:.60}")
    # a model that sees pictures, too, keeps the part that speaks apart
    inner = found.get("text_config")
    return {**found, **inner} if isinstance(inner, dict) else found


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and "chat_template" in path.read_text("utf-8")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        one = folder / "model.safetensors"
        return [one] if one.is_file() else []
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{index}: expected an index of safetensors files: {error}") from error
    return [folder / name for name in sorted(names)]


def _has_weights(folder: Path) -> bool:
    try:
        files = _weight_files(folder)
        if files:
            return all(path.is_file() and _is_whole(path) for path in files)
    except ConfigError:
        return False
    return any(True for pattern in _OTHER_WEIGHTS for _ in folder.glob(pattern))


def _is_whole(path: Path) -> bool:
    """Whether the file is as long as its header says: a copy that broke off is shorter."""
    header, length = _header(path)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    return path.stat().st_size == length + max(ends, default=0)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensor -> what the header says of it; and where the data begins."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _HEADER_LIMIT:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise ConfigError(f"{path}: expected a safetensors file: {error}") from error
    return {key: value for key, value in header.items() if key != "__metadata__"}, 8 + size


def _from_headers(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(entry["shape"]) for path in files for name, entry in _header(path)[0].items()
    }


def _from_architecture(folder: Path) -> dict[str, tuple[int, ...]]:
    """In a process of its own: the command itself stays free of torch, which takes seconds."""
    command = [sys.executable, "-m", "solon.trainer.forecast.shapes", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{folder}/config.json: transformers cannot build this model: {last}")
    return {name: tuple(shape) for name, shape in json.loads(done.stdout).items()}
