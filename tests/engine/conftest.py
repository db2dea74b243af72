"""A tiny random Llama with a tokenizer of its own, and engines that run it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from solon.engine import Engine, EngineOptions, create

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SENTENCES = [
    "How do I bake bread at home? Mix flour, water, salt and yeast, then wait.",
    "Which response is better? Answer only (A) or (B).",
    "The quick brown fox jumps over the lazy dog, and naïve façades cost 20 € each. 日本語 😀",
    "Critique request: say what is harmful. Revision request: write it again without harm.",
]


def make_model(
    path: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    context: int = 256,
    tied: bool = False,
    shard: str = "1GB",
) -> Path:
    """Save a small random Llama and its tokenizer; answers end now and then."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.4,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(path, max_shard_size=shard)
    tokenizer.save_pretrained(path)
    return path


def make_adapter(path: Path, base: Path, *, seed: int = 2, **changed: Any) -> Path:
    """Save a random LoRA adapter of a saved model. ``changed``: fields of its configuration."""
    torch.manual_seed(seed)
    fields = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    config = LoraConfig(task_type="CAUSAL_LM", **{**fields, **changed})
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    if config.modules_to_save:
        for name, tensor in model.named_parameters():
            if "modules_to_save" in name:
                tensor.data.mul_(1.5)
    model.save_pretrained(str(path))
    return path


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer, trained on a few sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Reference:
    """The same model through transformers alone."""

    path: Path
    model: Any
    tokenizer: Any


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same architecture."""
    return make_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def reference(model_path: Path) -> Reference:
    """The tiny model, loaded by transformers."""
    model = LlamaForCausalLM.from_pretrained(model_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path)
    return Reference(model_path, model.eval(), tokenizer)


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The tiny model as a Mistral whose layers see the last 16 tokens."""
    path = make_model(tmp_path_factory.mktemp("windowed"))
    config = json.loads((path / "config.json").read_text("utf-8"))
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (path / "config.json").write_text(json.dumps(config | {"sliding_window": 16}), "utf-8")
    model = AutoModelForCausalLM.from_pretrained(path)
    return Reference(path, model.eval(), make_tokenizer())


@asynccontextmanager
async def running(path: Path | str, **options: Any) -> AsyncIterator[Engine]:
    """A started transformers engine on one CPU thread."""
    engine = create("transformers", EngineOptions(model=str(path), **{"threads": 1, **options}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def started(model_path: Path) -> AsyncIterator[Callable[[str], Awaitable[Engine]]]:
    """Start an engine by name; it is closed after the test."""
    engines: list[Engine] = []

    async def start(name: str, **extra: str) -> Engine:
        engine = create(name, EngineOptions(model=str(model_path), threads=1, extra=extra))
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.close()
