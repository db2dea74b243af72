"""Models and weights from disk or the hub, with errors that say what to do.

Knows nothing of requests.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from solon.engine.base import InvalidInput, WeightsNotLoaded
from solon.engine.hf.masks import Masks
from solon.engine.options import EngineOptions

_LOG = logging.getLogger(__name__)

_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError)
"""What transformers raises for weights that are missing, cut short or of another kind."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to run."""

    model: Any
    tokenizer: Any
    masks: Masks
    device: torch.device
    dtype: torch.dtype
    context_tokens: int
    eos_ids: frozenset[int]


def load(options: EngineOptions, chat_template: str | None) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        options: What to load, where to.
        chat_template: Path of a Jinja template to use instead of the tokenizer's.

    Raises:
        InvalidInput: It cannot be loaded; one sentence says why and what to do.
    """
    disable_progress_bar()
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    config = _config(options.model)
    masks = Masks.of(config, options.model)
    tokenizer = _tokenizer(options.model, chat_template)
    model = _model(options.model, dtype).to(device).eval()
    _check_forward(options.model, model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        masks=masks,
        device=device,
        dtype=dtype,
        context_tokens=_context_tokens(config, tokenizer),
        eos_ids=_eos_ids(options.model, config, tokenizer),
    )


def read_weights(path: str, model: Any) -> dict[str, Tensor]:
    """Weights from a directory, on the CPU, checked to fit ``model`` and to be finite.

    Raises:
        WeightsNotLoaded: They are not there or do not fit; the text says why.
    """
    try:
        # a name would be looked up on the hub: whoever may call UpdateWeights must not fetch
        if not Path(path).is_dir():
            raise WeightsNotLoaded(f"path: expected a directory of weights, {path!r} is none")
        _check_structure(path, _config(path), model.config)
        found, report = _from_pretrained(path, model.dtype)
    except InvalidInput as error:
        raise WeightsNotLoaded(str(error)) from error
    except _UNREADABLE as error:
        raise WeightsNotLoaded(f"path {path!r}: {_first_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = ", ".join(sorted(map(str, report[kind]))[:3])
            raise WeightsNotLoaded(
                f"path {path!r}: {len(report[kind])} {kind.replace('_', ' ')}, such as {names}: "
                "expected the weights of the model that is being served"
            )
    weights: dict[str, Tensor] = found.state_dict()
    _check_weights(path, weights, model.state_dict())
    return weights


def _check_structure(path: str, new: Any, old: Any) -> None:
    for key in _STRUCTURE:
        ours, theirs = getattr(old, key, None), getattr(new, key, None)
        if ours != theirs:
            raise WeightsNotLoaded(
                f"path {path!r}: config.json has {key} {theirs!r}, but the model that is being "
                f"served has {ours!r}: expected weights of the same architecture"
            )


def _check_weights(path: str, new: dict[str, Tensor], old: dict[str, Tensor]) -> None:
    if new.keys() != old.keys():
        names = ", ".join(sorted(new.keys() ^ old.keys())[:3])
        raise WeightsNotLoaded(f"path {path!r}: the tensors' names differ, such as {names}")
    for name, tensor in new.items():
        if tensor.shape != old[name].shape:
            raise WeightsNotLoaded(
                f"path {path!r}: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(old[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsNotLoaded(f"path {path!r}: {name} holds NaN or infinity")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(
            f"device: expected auto, cpu, cuda or cuda:N, got {name!r}: {_first_line(error)}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            f"device: {name!r} was asked for, but torch sees no CUDA device here: use cpu or auto"
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidInput(f"dtype: expected auto, float32, bfloat16 or float16, got {name!r}")
    return dtype


def _config(model: str) -> Any:
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or path.exists()
    if looks_local and not path.is_dir():
        raise InvalidInput(f"model: expected a directory, {model!r} is not one")
    if looks_local and not (path / "config.json").is_file():
        raise InvalidInput(
            f"model: {model!r} has no config.json: expected what save_pretrained wrote"
        )
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"model: expected a directory or the name of a model on the hub, "
            f"got {model!r}: {_first_line(error)}"
        ) from error
    return config.get_text_config()


def _tokenizer(model: str, chat_template: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"model: {model!r} has no usable tokenizer ({_first_line(error)}): "
            "save one beside the weights with tokenizer.save_pretrained"
        ) from error
    if not len(tokenizer):
        raise InvalidInput(
            f"model: {model!r} has no tokenizer files: "
            "save a tokenizer beside the weights with tokenizer.save_pretrained"
        )
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if not tokenizer.chat_template:
        raise InvalidInput(
            f"model: the tokenizer of {model!r} has no chat template: put a chat_template.jinja "
            "beside it, or name one with the engine option chat_template=PATH"
        )
    return tokenizer


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"engine option 'chat_template': cannot read {path!r}: {error}"
        ) from error


def _model(name: str, dtype: torch.dtype) -> Any:
    try:
        model, report = _from_pretrained(name, dtype)
    except _UNREADABLE as error:
        raise InvalidInput(
            f"model: {name!r} cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise InvalidInput(
            f"model: {name!r} is not a causal language model: its weights lack {names}"
        )
    return model


def _from_pretrained(name: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(name, dtype=dtype, output_loading_info=True)
    return model, report


def _check_forward(name: str, model: Any) -> None:
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise InvalidInput(
            f"model: {name!r} ({type(model).__name__}) takes no position_ids, which batches of "
            "different lengths need: choose another model or engine"
        )
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise InvalidInput(
            f"model: {name!r} asks for the attention {model.config._attn_implementation!r}: "
            "expected sdpa or eager, remove attn_implementation from its config.json"
        )


def _context_tokens(config: Any, tokenizer: Any) -> int:
    sizes = [
        getattr(config, key, None)
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length")
    ]
    known = [size for size in (*sizes, tokenizer.model_max_length) if isinstance(size, int)]
    return min(known)


def _eos_ids(model: str, config: Any, tokenizer: Any) -> frozenset[int]:
    try:
        generation = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # the file is optional: config.json then says the same
        generation = config.eos_token_id
    listed = generation if isinstance(generation, list) else [generation]
    ids = frozenset(i for i in (*listed, tokenizer.eos_token_id) if i is not None)
    if not ids:
        _LOG.warning("no end-of-turn token is known for %r: answers end at max_tokens", model)
    return ids


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
