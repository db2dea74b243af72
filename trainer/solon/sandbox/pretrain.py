"""Pretrains the sandbox model: ``python -m solon.sandbox.pretrain --out DIR``.

A Llama-shaped model of two million parameters and its tokenizer, from nothing, on two CPU cores.
The same seed, steps and thread count give the same weights; ``--minutes`` does not. Knows nothing
of the oracle, of held-out acts or of how the model is used.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from solon.sandbox.corpus import documents
from solon.sandbox.muon import Muon
from solon.sandbox.packing import Batch, batches
from solon.sandbox.tokens import DocumentTokenizer, TokenizedDocument, train_tokenizer

_RECENT = 50
"""Updates over which the loss that is shown is averaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """What the shipped model was made with."""

    seed: int = 0
    """Of the weights and of the corpus."""
    tokenizer_documents: int = 20_000
    """Documents that the tokenizer is made from, >= 1."""
    steps: int = 5000
    """Updates, >= 1."""
    rows: int = 8
    """Rows of a batch."""
    row_tokens: int = 256
    """Tokens of a row; documents that are longer are left out."""
    learning_rate: float = 0.0015
    """Peak root mean square of a matrix's update (see ``muon``)."""
    embedding_learning_rate: float = 3e-3
    """Peak rate of everything else, in AdamW's units."""
    weight_decay: float = 0.05
    warmup_share: float = 0.03
    """Share of the steps in which the rates rise."""
    decay_share: float = 0.6
    """Share of the steps, at the end, in which they fall to zero."""
    unlearnt_weight: float = 0.1
    """Weight of a token of a prompt; one of an answer has 1."""
    answer_weight: float = 3.0
    """Weight of an answer that is one token."""
    threads: int = 2
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    intermediate_size: int = 512
    context: int = 1024
    """Positions that the model is configured for."""


class Pretraining:
    """A model on its way: ``step`` by step."""

    def __init__(self, config: PretrainConfig) -> None:
        """Make the tokenizer, the model with random weights, and the corpus."""
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        self.config = config
        self.tokenizer = train_tokenizer(_texts(config))
        self.model = _model(config, self.tokenizer)
        self._batches = _batches(config, self.tokenizer)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay),
            torch.optim.AdamW(
                others, lr=config.embedding_learning_rate, betas=(0.9, 0.98), weight_decay=0.0
            ),
        )
        self._peaks = (config.learning_rate, config.embedding_learning_rate)

    def step(self, number: int) -> float:
        """Make update ``number`` (from 0) and return its loss."""
        rate = _schedule(number / self.config.steps, self.config)
        for optimizer, peak in zip(self._optimizers, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        loss = _loss(self.model, next(self._batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    def save(self, out: Path) -> None:
        """Write model and tokenizer to a new directory, which appears when complete."""
        unfinished = out.with_name(f"{out.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.model.save_pretrained(unfinished)
        self.tokenizer.save_pretrained(unfinished)
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)


def _texts(config: PretrainConfig) -> Iterator[str]:
    for document in itertools.islice(documents(config.seed), config.tokenizer_documents):
        for sample in document.samples:
            for message in sample.conversation.messages:
                yield message.content


def _model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
    )
    return model


def _batches(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    tokenize = DocumentTokenizer(tokenizer).tokenize
    stream: Iterator[TokenizedDocument] = map(tokenize, documents(config.seed + 1))
    return batches(
        stream,
        rows=config.rows,
        length=config.row_tokens,
        unlearnt_weight=config.unlearnt_weight,
        answer_weight=config.answer_weight,
    )


def _loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    hidden_R_T_H = model.model(
        input_ids=batch.tokens_R_T,
        position_ids=batch.positions_R_T,
        attention_mask=batch.mask_R_1_T_T,
        use_cache=False,
    ).last_hidden_state
    counted_R_T = batch.weights_R_T > 0
    logits_N_V = model.lm_head(hidden_R_T_H[counted_R_T])
    losses_N = functional.cross_entropy(
        logits_N_V, batch.targets_R_T[counted_R_T], reduction="none"
    )
    weights_N = batch.weights_R_T[counted_R_T]
    return (losses_N * weights_N).sum() / weights_N.sum()


def _schedule(progress: float, config: PretrainConfig) -> float:
    """Rise, stay, fall to zero: the factor of the peak rates."""
    if progress < config.warmup_share:
        return (progress + 1 / config.steps) / (config.warmup_share + 1 / config.steps)
    return min(1.0, (1 - progress) / config.decay_share)


def pretrain(pretraining: Pretraining, *, minutes: float, console: Console) -> float:
    """Make the updates, showing progress, and return the mean loss of the last ones.

    Args:
        pretraining: Fresh.
        minutes: Stop after so long, though the rates have not fallen yet.
        console: Where progress is shown.
    """
    deadline = time.monotonic() + 60 * minutes
    recent: deque[float] = deque(maxlen=_RECENT)
    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=pretraining.config.steps, loss=math.nan)
        for number in range(pretraining.config.steps):
            recent.append(pretraining.step(number))
            progress.update(task, advance=1, loss=sum(recent) / len(recent))
            if time.monotonic() > deadline:
                break
    return sum(recent) / len(recent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    defaults = PretrainConfig()
    parser = argparse.ArgumentParser(prog="python -m solon.sandbox.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--tokenizer-documents", type=int, default=defaults.tokenizer_documents)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    given = parser.parse_args(arguments)
    for flag in ("steps", "tokenizer_documents", "threads"):
        if getattr(given, flag) < 1:
            spelt = flag.replace("_", "-")
            parser.error(f"--{spelt}: expected 1 or more, got {getattr(given, flag)!r}")
    console = Console(stderr=True)
    config = PretrainConfig(
        seed=given.seed,
        steps=given.steps,
        tokenizer_documents=given.tokenizer_documents,
        threads=given.threads,
    )
    pretraining = Pretraining(config)
    loss = pretrain(pretraining, minutes=given.minutes, console=console)
    pretraining.save(given.out)
    console.print(f"wrote {given.out}: loss {loss:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
