"""What the training stages share: models from and to disk, conversations to tokens, batch order.

Knows nothing of losses or of the run directory's layout.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from solon.constitution import derive_seed
from solon.trainer.errors import ConfigError, RunDirectoryError
from solon.trainer.stages.adapters import ADAPTER_FOLDER, Adapter

_TOKENIZED_AT_ONCE = 1024

Messages = Sequence[dict[str, str]]
"""``{"role", "content"}`` dicts, as chat templates, TRL and our Parquet files spell them."""


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token (the end token, if it has no other).

    Raises:
        ConfigError: There is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(_cannot_load("a tokenizer", model, error)) from error
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"expected a tokenizer with a chat template, {model!r} has none; "
            "add a chat_template.jinja to the model's directory"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(model: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model, on the CPU.

    Raises:
        ConfigError: ``model`` is not one.
    """
    try:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        return loaded
    except (OSError, ValueError) as error:
        raise ConfigError(_cannot_load("a causal language model", model, error)) from error


def load_reward_model(
    model: str, *, pad_id: int | None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A sequence classifier with one output, on the CPU.

    From a causal language model it gets a new head, drawn from torch's global generator.

    Raises:
        ConfigError: ``model`` is none of the two.
    """
    try:
        loaded: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=dtype
        )
    except (OSError, ValueError) as error:
        raise ConfigError(_cannot_load("a sequence classifier", model, error)) from error
    # the classifier reads the last token that is not padding
    loaded.config.get_text_config().pad_token_id = pad_id
    return loaded


def _cannot_load(what: str, model: str, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0]
    return (
        f"expected {what} in Hugging Face format, cannot load {model!r}: {first_line}; "
        "give a model's directory or its name on the hub"
    )


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a turn: those of the generation config, and the tokenizer's end token."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    found = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*found, tokenizer.eos_token_id] if i is not None})


def take_chat_format(
    model: PreTrainedModel, name: str, chat_model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Let ``model`` end its turns as ``chat_model`` does.

    Args:
        model: Loaded from ``name``; changed in place.
        name: A directory or a name on the hub.
        chat_model: Likewise.
        tokenizer: Of ``chat_model``.

    Raises:
        ConfigError: The two have different vocabularies.
    """
    own = AutoTokenizer.from_pretrained(name)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"sft.chat_format: expected models with the same vocabulary, but {name!r} has "
            f"{len(own)} tokens and {chat_model!r} {len(tokenizer)} or others; set it to base, and "
            "give the base model a chat template"
        )
    try:
        model.generation_config = GenerationConfig.from_pretrained(chat_model)
    except OSError:
        # it has none: its turns end with the tokenizer's end token
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A prompt and the response to it, in tokens."""

    prompt_ids: list[int]
    """Ends where the assistant begins to speak."""
    response_ids: list[int]
    """Ends with the token that ends a turn."""

    @property
    def ids(self) -> list[int]:
        """The two together."""
        return self.prompt_ids + self.response_ids


class ChatEncoder:
    """Turns conversations into tokens, just as the model meets them when it generates.

    Prompt and response are tokenized apart: in use, too, the response is tokens of its own after
    those of the prompt, so none may span the two.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        """``stop_ids``: the tokens that end a turn."""
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)

    def prompts(self, prompts: Sequence[Messages]) -> list[list[int]]:
        """Each conversation, up to where the assistant begins to speak."""
        return self._tokenize([self._render(prompt, ask=True) for prompt in prompts])

    def turns(self, prompts: Sequence[Messages], responses: Sequence[Messages]) -> list[Turn]:
        """Each conversation with its response, up to the token that ends the turn.

        Raises:
            ConfigError: The chat template renders the prompt differently once it is answered, or
                closes the assistant's turn without a token that ends it.
        """
        asked = [self._render(prompt, ask=True) for prompt in prompts]
        answered = [
            self._render([*prompt, *response], ask=False)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        for before, after in zip(asked, answered, strict=True):
            if not after.startswith(before):
                raise ConfigError(
                    "expected a chat template that renders a prompt the same before and after it "
                    f"is answered, got {before[-60:]!r} in {after!r}; change the model's template"
                )
        tails = [after[len(before) :] for before, after in zip(asked, answered, strict=True)]
        return [
            Turn(prompt_ids=prompt, response_ids=self._up_to_stop(response, tail))
            for prompt, response, tail in zip(
                self._tokenize(asked), self._tokenize(tails), tails, strict=True
            )
        ]

    def _render(self, messages: Messages, *, ask: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
        assert isinstance(text, str)
        return text

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
            part = list(texts[start : start + _TOKENIZED_AT_ONCE])
            # the template has put every special token there is to be
            ids += self._tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def _up_to_stop(self, ids: list[int], text: str) -> list[int]:
        for end in range(len(ids), 0, -1):
            if ids[end - 1] in self._stop_ids:
                return ids[:end]
        names = self._tokenizer.convert_ids_to_tokens(sorted(self._stop_ids))
        raise ConfigError(
            f"expected a chat template that ends the assistant's turn with one of {names!r}, got "
            f"{text!r}; a model trained on it never stops: set eos_token_id in "
            "generation_config.json to the token that ends a turn, or change the template"
        )


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[object]]:
    """Columns of a Parquet file, as lists.

    Raises:
        RunDirectoryError: It does not exist, lacks a column, or has no rows.
    """
    if not path.exists():
        raise RunDirectoryError(
            f"{path}: expected training records, the file does not exist; run the stage before"
        )
    schema = pq.read_schema(path)
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise RunDirectoryError(
            f"{path}: expected the columns {', '.join(columns)}; {', '.join(missing)} missing"
        )
    table = pq.read_table(path, columns=list(columns))
    if not table.num_rows:
        raise RunDirectoryError(f"{path}: expected at least one training record, got none")
    return {name: table.column(name).to_pylist() for name in columns}


def batch_order(lengths: Sequence[int], *, epochs: int, batch_size: int, seed: int) -> list[int]:
    """The rows in the order to train on them, epoch after epoch.

    Every batch is a random draw; inside it rows are sorted by length, so that the micro-batches
    it is cut into hold little padding and the gradient is that of a random batch all the same.
    """
    order: list[int] = []
    for epoch in range(epochs):
        rows = list(range(len(lengths)))
        random.Random(derive_seed(seed, "batches", epoch)).shuffle(rows)
        order += rows
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [row for batch in batches for row in sorted(batch, key=lambda row: lengths[row])]


def publish(directory: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new directory, then let it appear whole in the place of the old."""
    temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    for leftover in directory.parent.glob(f"{directory.name}.tmp-*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    write(temporary)
    if directory.exists():
        shutil.rmtree(directory)
    temporary.replace(directory)


def save_model(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[str, str] | None = None,
    *,
    adapter: Adapter | None = None,
) -> None:
    """Publish a model in Hugging Face format, with ``files`` (name -> text) and its adapter."""

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for name, text in (files or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        if adapter is not None:
            adapter.save(temporary / ADAPTER_FOLDER)

    publish(directory, write)
