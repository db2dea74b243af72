"""DPO: the policy learns the judge's preferences without a reward model (2305.18290).

TRL's DPOTrainer does the work, with a loss of ours that takes the judge's probability as its
target. Knows nothing of judges, of the run directory's layout, or of reward models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import set_seed
from trl.trainer.dpo_config import DPOConfig as TrlDpoConfig
from trl.trainer.dpo_trainer import DPOTrainer

from solon.trainer.stages.adapters import finished, frozen_dtype, loaded_dtype, prepared
from solon.trainer.stages.modeling import (
    ChatEncoder,
    load_causal_lm,
    load_tokenizer,
    save_model,
    stop_ids,
)
from solon.trainer.stages.pairs import (
    Pair,
    agreement,
    read_pairs,
    read_test_pairs,
    soft_cross_entropy,
    target,
    without_long,
)
from solon.trainer.stages.scoring import pad_ids
from solon.trainer.stages.supervised import WholeCheckpoints, in_order, train, trainer_arguments
from solon.trainer.training import DpoConfig, Report

Inputs = Mapping[str, Tensor]


def preference_loss(
    margin_B: Tensor, probability_B: Tensor, *, beta: float, loss: Literal["sigmoid", "ipo"]
) -> Tensor:
    """The mean loss of B pairs, each with the judge's probability as its target.

    Args:
        margin_B: log [pi(chosen) / ref(chosen)] - log [pi(rejected) / ref(rejected)].
        probability_B: That chosen is better; 1 is the usual hard loss, 1 - e the conservative one
            (cDPO, Mitchell 2023).
        beta: How close to the reference.
        loss: ``sigmoid``: -[p log s(beta m) + (1 - p) log s(-beta m)], the cross-entropy of the
            Bradley-Terry model (Rafailov et al. 2023, 2305.18290, eq. 7). ``ipo``:
            [m - (p - 1/2) / beta]^2 (Azar et al. 2023, 2310.12036, eq. 17, whose hard label is
            p = 1; in expectation over labels its gradient is this one's).
    """
    if loss == "ipo":
        return ((margin_B - (probability_B - 0.5) / beta) ** 2).mean()
    return soft_cross_entropy(beta * margin_B, probability_B).mean()


def implied_logit(margin_B: Tensor, *, beta: float, loss: Literal["sigmoid", "ipo"]) -> Tensor:
    """The log-odds [B] of the labels at which the loss of these margins is least."""
    if loss == "ipo":
        return (0.5 + beta * margin_B).logit(eps=1e-6)
    return beta * margin_B


class _Trainer(WholeCheckpoints, DPOTrainer):
    """TRL's trainer with soft targets, on records that are tokens already."""

    def __init__(self, config: DpoConfig, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._config = config
        if isinstance(self.model, PeftModel):
            # TRL's copy of the adapter, which adds nothing yet: switching ours off is the same
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        columns = ["prompt_ids", "chosen_ids", "rejected_ids", "probability"]
        self._signature_columns = columns  # type: ignore[assignment]  # starts as None

    def log_ratios(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Each log [pi / ref] of the chosen and of the rejected responses, [B] each.

        With ``ipo`` they are means over a response's tokens, not sums, as TRL has it, so that
        ``beta`` means the same at every length.
        """
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        with torch.no_grad():
            both = self.compute_ref_log_probs(self.ref_model or self.model, texts)  # type: ignore[no-untyped-call]
        reference_B = torch.cat(both)
        outputs = model(
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
            labels=texts["input_ids"].masked_fill(texts["completion_mask"] == 0, -100),
            fused_lm_head=True,
            use_cache=False,
        )
        ratio_B = outputs.log_probs.sum(dim=1) - reference_B
        if self._config.loss == "ipo":
            ratio_B = ratio_B / texts["completion_mask"].sum(dim=1)
        chosen_B, rejected_B = ratio_B.chunk(2)
        return chosen_B, rejected_B

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        config = self._config
        chosen_B, rejected_B = self.log_ratios(model, inputs)
        loss = preference_loss(
            chosen_B - rejected_B, inputs["probability"], beta=config.beta, loss=config.loss
        )
        self.note(
            accuracy=chosen_B > rejected_B,
            margin=config.beta * (chosen_B - rejected_B),
            chosen_reward=config.beta * chosen_B,
            rejected_reward=config.beta * rejected_B,
        )
        assert not return_outputs, "nothing evaluates through the trainer"
        return loss


def train_dpo(
    config: DpoConfig,
    *,
    base_model: str,
    data: Sequence[Path],
    test_data: Sequence[Path],
    output: Path,
    checkpoints: Path,
    seed: int,
    report: Report,
) -> dict[str, float]:
    """Train ``base_model`` (the SL model, in a later iteration the model that the one before left).

    It is its own reference; the result is published at ``output``.

    With LoRA the reference is the same weights with the adapter switched off; else a frozen copy.

    Args:
        config: All that can be set.
        base_model: A causal language model's directory or name on the hub.
        data: Parquet files with ``prompt``, ``chosen``, ``rejected`` (lists of ``{"role",
            "content"}``) and ``probability``, that ``chosen`` is better.
        test_data: The same, for the figures; may not exist.
        output: Where the model's directory appears, the adapter's in it if there is one.
        checkpoints: A directory of this stage alone; a whole checkpoint in it is gone on from.
        seed: In [0, 2**64); same seed, same model.
        report: Told of every step.

    Returns:
        ``pairs``, ``too_long``, ``steps``; if there are test pairs the ``test_`` figures of
        ``pairs.agreement`` for the preferences that the policy implies.

    Raises:
        ConfigError: The model cannot be loaded, its chat template cannot be trained on, or
            ``lora.target_modules`` does not fit it.
        RunDirectoryError: There are no training pairs, or all are too long.
    """
    tokenizer = load_tokenizer(base_model)
    model = load_causal_lm(base_model, dtype=loaded_dtype(config))
    encoder = ChatEncoder(tokenizer, stop_ids(model, tokenizer))
    read = read_pairs(data, encoder)
    pairs = without_long(read, config.max_length, key="dpo", data=data, report=report)
    set_seed(seed % 2**32)  # of the adapters
    learner = prepared(model, config, task="CAUSAL_LM", key="dpo")
    reference = load_causal_lm(base_model, dtype=frozen_dtype(config)) if not config.lora else None
    collator = _Collator(tokenizer.pad_token_id)
    trainer = _Trainer(
        config,
        model=learner,
        ref_model=reference,
        args=trainer_arguments(TrlDpoConfig, config, checkpoints=checkpoints, seed=seed),
        data_collator=collator,
        train_dataset=in_order(
            Dataset.from_list([_row(pair, config) for pair in pairs]),
            [pair.length for pair in pairs],
            config,
            seed,
        ),
        processing_class=tokenizer,
    )
    train(trainer, report)
    metrics = {
        "pairs": float(len(pairs)),
        "too_long": float(len(read) - len(pairs)),
        "steps": float(trainer.state.global_step),
    }
    if test := read_test_pairs(test_data, encoder):
        metrics |= _test(trainer, test, collator, config)
    published, adapter = finished(learner, config)
    if trainer.is_world_process_zero():
        save_model(output, published, tokenizer, adapter=adapter)
    return metrics


def _row(pair: Pair, config: DpoConfig) -> dict[str, Any]:
    certain = target(pair.probability, soft=config.soft_labels)
    return {
        "prompt_ids": pair.chosen.prompt_ids,
        "chosen_ids": pair.chosen.response_ids,
        "rejected_ids": pair.rejected.response_ids,
        "probability": certain + config.label_smoothing * (1 - 2 * certain),
    }


@dataclass(frozen=True, slots=True)
class _Collator:
    """Pairs -> one right-padded batch, the chosen ones first; 1 in the mask on responses."""

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        turns = [
            (row["prompt_ids"], row[which])
            for which in ("chosen_ids", "rejected_ids")
            for row in rows
        ]
        masks = [[0] * len(prompt) + [1] * len(response) for prompt, response in turns]
        return {
            **pad_ids([prompt + response for prompt, response in turns], self.pad_id),
            "completion_mask": pad_ids(masks, 0)["input_ids"],
            "probability": torch.tensor([row["probability"] for row in rows]),
        }


@torch.no_grad()
def _test(
    trainer: _Trainer, pairs: Sequence[Pair], collator: _Collator, config: DpoConfig
) -> dict[str, float]:
    model = trainer.model
    assert model is not None
    model.eval()
    order = sorted(range(len(pairs)), key=lambda row: pairs[row].length)
    logits = torch.zeros(len(pairs))
    for start in range(0, len(order), config.micro_batch_size):
        rows = order[start : start + config.micro_batch_size]
        batch = collator([_row(pairs[row], config) for row in rows])
        inputs = {name: tensor.to(trainer.args.device) for name, tensor in batch.items()}
        chosen_b, rejected_b = trainer.log_ratios(model, inputs)
        margin_b = (chosen_b - rejected_b).float().cpu()
        logits[rows] = implied_logit(margin_b, beta=config.beta, loss=config.loss)
    labels = torch.tensor([pair.probability for pair in pairs])
    return dict(agreement(logits, labels, near_tie=config.near_tie).metrics)
