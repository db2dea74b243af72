"""A model from disk or the hub, with errors that say what to do.

Knows nothing of requests.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from solon.engine.base import InvalidInput
from solon.engine.devices import device_of, dtype_of
from solon.engine.hf.masks import Masks
from solon.engine.options import EngineOptions
from solon.engine.pretrained import (
    UNREADABLE,
    context_tokens,
    eos_ids,
    first_line,
    from_pretrained,
    read_config,
    read_tokenizer,
)


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
    device = device_of(options.device)
    dtype = dtype_of(options.dtype, device)
    config = read_config(options.model)
    masks = Masks.of(config, options.model)
    tokenizer = read_tokenizer(options.model, chat_template)
    model = _model(options.model, dtype).to(device).eval()
    if device.type == "cpu":
        # they are mapped from the file, and would change with it when another model is saved there
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    _check_forward(options.model, model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        masks=masks,
        device=device,
        dtype=dtype,
        context_tokens=context_tokens(config, tokenizer),
        eos_ids=eos_ids(options.model, config, tokenizer),
    )


def _model(name: str, dtype: torch.dtype) -> Any:
    try:
        model, report = from_pretrained(name, dtype, safetensors_only=False)
    except UNREADABLE as error:
        raise InvalidInput(
            f"model: {name!r} cannot be loaded as a causal language model: {first_line(error)}"
        ) from error
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise InvalidInput(
            f"model: {name!r} is not a causal language model: its weights lack {names}"
        )
    return model


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
