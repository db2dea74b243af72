"""A tiny Llama with a chat template, and training records in its language."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from solon.trainer.stages.modeling import save_model
from solon.trainer.stages.scoring import RewardStatistics
from solon.trainer.training import TrainingSettings

WORDS = [
    "yes", "no", "please", "tell", "me", "how", "to", "bake", "bread", "steal", "a", "car", "you",
    "mix", "flour", "and", "water", "that", "would", "hurt", "people", "so", "I", "will", "not",
]  # fmt: skip
SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>", "<unknown>"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<assistant> {{ m.content }} <end> "
    "{% else %}<user> {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """accelerate has one state a process, its number format included; a stage has a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_lm(seed: int = 0) -> PreTrainedModel:
    """Random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@pytest.fixture
def make_lm() -> Callable[..., PreTrainedModel]:
    return tiny_lm


@pytest.fixture(scope="session")
def base_model(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a model with random weights."""
    path = tmp_path_factory.mktemp("base")
    tiny_lm(seed=7).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")  # tests of other files look for processes that are left behind
def policy_address(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a policy service on the base model, in a process of its own."""
    folder = tmp_path_factory.mktemp("policy")
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "solon.policy.server", "--model", str(base_model)]
    command += ["--ready-file", str(ready), "--engine-process", "shared", "--threads", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    while not ready.exists():
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.02)
    yield f"127.0.0.1:{json.loads(ready.read_text())['port']}"
    process.terminate()
    process.wait(20)


def _sentence(draw: random.Random, shortest: int, longest: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(shortest, longest)))


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture(scope="session")
def records() -> dict[str, pa.Table]:
    """What the run directory exports: answers are short and say yes or no."""
    draw = random.Random(3)
    prompts = [_turn("user", _sentence(draw, 2, 9)) for _ in range(48)]
    kind = [_turn("assistant", f"no {_sentence(draw, 0, 4)}".strip()) for _ in prompts]
    harsh = [_turn("assistant", f"yes {_sentence(draw, 0, 4)}".strip()) for _ in prompts]
    probabilities = [draw.uniform(0.5, 1.0) for _ in prompts]
    pairs = pa.table(
        {"prompt": prompts, "chosen": kind, "rejected": harsh, "probability": probabilities}
    )
    return {
        "sft/train": pa.table({"prompt": prompts, "completion": kind}),
        "preferences/train": pairs,
        "preferences/test": pairs.slice(0, 12),
        "rl_prompts/train": pa.table(
            {"id": [f"p{n}" for n in range(len(prompts))], "prompt": prompts}
        ),
    }


CONFIG = """
constitution: core
seed: 5
models: {{policy: {model}, critic: {model}, judge: {model}, base_for_sft: {model}}}
sft: {{epochs: 2, batch_size: 8, micro_batch_size: 4, learning_rate: 0.003, log_every: 2,
  checkpoint_every: 5}}
reward: {{epochs: 2, batch_size: 8, micro_batch_size: 4, learning_rate: 0.003, log_every: 2,
  checkpoint_every: 5}}
rl: {{episodes: 48, batch_size: 16, minibatches: 2, max_response_tokens: 8, checkpoint_every: 1,
  learning_rate: 0.001, value_learning_rate: 0.001}}
"""


@pytest.fixture
def run_dir(tmp_path: Path, base_model: Path, records: dict[str, pa.Table]) -> Path:
    """A run directory, ready for every training stage."""
    run = tmp_path / "run"
    for name, table in records.items():
        path = run / "export" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    (run / "config.yaml").write_text(CONFIG.format(model=base_model))
    return run


@pytest.fixture
def run_with_models(run_dir: Path, tokenizer: PreTrainedTokenizerBase, base_model: Path) -> Path:
    """As the sft and reward stages leave it, with random weights."""
    shutil.copytree(base_model, run_dir / "models/sl")
    torch.manual_seed(1)
    reward = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    statistics = RewardStatistics(mean=0.0, std=1.0, responses=2)
    save_model(
        run_dir / "models/reward", reward, tokenizer, {RewardStatistics.FILE: statistics.to_json()}
    )
    return run_dir


class Recorder:
    """A report that keeps what it is told, and can stop the training at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.starts: list[int] = []
        self.steps: list[tuple[int, int, dict[str, float]]] = []
        self.messages: list[str] = []
        self._stop_at = stop_at

    def start(self, done: int) -> None:
        self.starts.append(done)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((done, total, dict(metrics)))
        if done == self._stop_at:
            raise KilledError(f"killed at step {done}")

    def message(self, text: str) -> None:
        self.messages.append(text)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def train_on_pairs(
    base_model: Path, run_dir: Path
) -> Callable[..., tuple[dict[str, float], Recorder]]:
    """``train_reward`` or ``train_dpo`` on the run directory's pairs, into its ``models/NAME``."""

    def run(
        train: Callable[..., dict[str, float]],
        name: str,
        config: TrainingSettings,
        *,
        stop_at: int | None = None,
        **more: Any,
    ) -> tuple[dict[str, float], Recorder]:
        report = Recorder(stop_at)
        metrics = train(
            config,
            base_model=str(base_model),
            data=[run_dir / "export/preferences/train.parquet"],
            test_data=[run_dir / "export/preferences/test.parquet"],
            output=run_dir / "models" / name,
            checkpoints=run_dir / "checkpoints" / name,
            seed=3,
            report=report,
            **more,
        )
        return metrics, report

    return run
