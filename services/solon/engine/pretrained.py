"""What transformers reads of a model: its configuration, tokenizer, end-of-turn tokens and weights.

Says what is wrong with one in a sentence. Knows nothing of devices and requests.
"""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from solon.engine.base import InvalidInput
from solon.engine.fetching import ADAPTER_CONFIG

_LOG = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError)
"""What transformers raises for weights that are missing, cut short or of another kind."""


def read_config(model: str) -> Any:
    """What config.json says of the language model in a directory or on the hub.

    Raises:
        InvalidInput: There is none, or it is of no known model.
    """
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or path.exists()
    if looks_local and not path.is_dir():
        raise InvalidInput(f"model: expected a directory, {model!r} is not one")
    if (path / ADAPTER_CONFIG).is_file():
        raise InvalidInput(
            f"model: {model!r} is an adapter: start with the model that it was trained on, and "
            "load the adapter with UpdateWeights"
        )
    if looks_local and not (path / "config.json").is_file():
        raise InvalidInput(
            f"model: {model!r} has no config.json: expected what save_pretrained wrote"
        )
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"model: expected a directory or the name of a model on the hub, "
            f"got {model!r}: {first_line(error)}"
        ) from error
    except StrictDataclassError as error:  # its first line says in which field, its cause what
        raise InvalidInput(
            f"model: the config.json of {model!r} is not valid: "
            f"{first_line(error.__cause__ or error)}"
        ) from error
    return config.get_text_config()


def read_tokenizer(model: str, chat_template: str | None) -> Any:
    """The tokenizer in a directory or on the hub, with a chat template.

    Args:
        model: Directory or name.
        chat_template: Path of a Jinja template to use instead of the tokenizer's.

    Raises:
        InvalidInput: There is no tokenizer, or no template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"model: {model!r} has no usable tokenizer ({first_line(error)}): "
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


def from_pretrained(
    name: str, dtype: torch.dtype, *, safetensors_only: bool = True
) -> tuple[Any, dict[str, Any]]:
    """A model on the CPU, and transformers' report of tensors that it missed or did not expect.

    Code that comes with a model is never run.

    Args:
        name: A directory, or a name on the hub.
        dtype: Of its numbers.
        safetensors_only: Load no pickle either. Else torch's reader for tensors alone takes those
            of old models that have nothing else.

    Raises:
        One of ``UNREADABLE``.
    """
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(
        name,
        dtype=dtype,
        output_loading_info=True,
        use_safetensors=True if safetensors_only else None,
        trust_remote_code=False,
    )
    return model, report


def context_tokens(config: Any, tokenizer: Any) -> int:
    """Most tokens of prompt and answer together."""
    sizes = [
        getattr(config, key, None)
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length")
    ]
    known = [size for size in (*sizes, tokenizer.model_max_length) if isinstance(size, int)]
    return min(known)


def eos_ids(model: str, config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    try:
        generation = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # the file is optional: config.json then says the same
        generation = config.eos_token_id
    listed = generation if isinstance(generation, list) else [generation]
    ids = frozenset(i for i in (*listed, tokenizer.eos_token_id) if i is not None)
    if not ids:
        _LOG.warning("no end-of-turn token is known for %r: answers end at max_tokens", model)
    return ids


def first_line(error: BaseException) -> str:
    """What an error says, as far as the end of the line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
