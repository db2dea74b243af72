"""The preference model: a scalar score, trained on the judge's soft labels (Bai et al. 2022, 4.1).

TRL's RewardTrainer does the work, with a loss of ours. Knows nothing of judges, of the run
directory's layout, or of what the scores are used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, set_seed
from trl.trainer.reward_config import RewardConfig as TrlRewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from solon.trainer.errors import RunDirectoryError
from solon.trainer.stages.adapters import finished, loaded_dtype, prepared
from solon.trainer.stages.calibration import calibration_error
from solon.trainer.stages.modeling import (
    ChatEncoder,
    Messages,
    batch_order,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    read_columns,
    save_model,
    stop_ids,
)
from solon.trainer.stages.scoring import RewardStatistics, pad_ids, score_sequences
from solon.trainer.stages.supervised import WholeCheckpoints, train, trainer_arguments
from solon.trainer.training import Report, RewardConfig


def soft_preference_loss(
    chosen_B: Tensor, rejected_B: Tensor, probability_B: Tensor, *, centering: float = 0.0
) -> Tensor:
    """-[p log s(d) + (1 - p) log s(-d)] with d = r_chosen - r_rejected, averaged over B pairs.

    The cross-entropy of the Bradley-Terry model with the judge's probability as its target (Bai et
    al. 2022, section 4.1); p = 1 is the usual hard loss. ``centering`` times the mean of
    (r_chosen + r_rejected)^2 is added (Eisenstein et al. 2023, section 2).
    """
    difference_B = chosen_B - rejected_B
    losses_B = -probability_B * logsigmoid(difference_B) - (1 - probability_B) * logsigmoid(
        -difference_B
    )
    return losses_B.mean() + centering * ((chosen_B + rejected_B) ** 2).mean()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    chosen_ids: list[int]
    rejected_ids: list[int]
    probability: float

    @property
    def length(self) -> int:
        return max(len(self.chosen_ids), len(self.rejected_ids))


class _Trainer(WholeCheckpoints, RewardTrainer):
    """TRL's trainer with soft targets."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", "probability"]  # type: ignore[assignment]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        scores = outputs.logits.squeeze(-1)
        chosen_B, rejected_B = scores.chunk(2)
        loss = soft_preference_loss(
            chosen_B,
            rejected_B,
            inputs["probability"],
            centering=cast("TrlRewardConfig", self.args).center_rewards_coefficient or 0.0,
        )
        with torch.no_grad():
            metrics = self._metrics["train"]
            metrics["accuracy"].append((chosen_B > rejected_B).float().mean().item())
            metrics["margin"].append((chosen_B - rejected_B).mean().item())
            metrics["mean_reward"].append(scores.mean().item())
        return (loss, outputs) if return_outputs else loss


def train_reward(
    config: RewardConfig,
    *,
    base_model: str,
    data: Path,
    test_data: Path,
    output: Path,
    checkpoints: Path,
    seed: int,
    report: Report,
) -> dict[str, float]:
    """Train a reward model from ``base_model`` (the SL model) and publish it at ``output``.

    Args:
        config: All that can be set.
        base_model: A causal language model's directory or name on the hub.
        data: Parquet with ``prompt``, ``chosen``, ``rejected`` (lists of ``{"role", "content"}``)
            and ``probability``, that ``chosen`` is better.
        test_data: The same, for the figures; may not exist.
        output: Where the model's directory appears, ``reward_statistics.json`` in it,
            and the adapter's directory if there is one.
        checkpoints: A directory of this stage alone; a whole checkpoint in it is gone on from.
        seed: In [0, 2**64); same seed, same model.
        report: Told of every step.

    Returns:
        ``pairs``, ``too_long``, ``steps``, ``mean`` and ``std`` of the training scores; if there
        are test pairs ``test_accuracy`` (near ties left out), ``test_loss`` and
        ``test_calibration_error`` against the labels, ``test_pairs``.

    Raises:
        ConfigError: The model cannot be loaded, its chat template cannot be trained on, or
            ``lora.target_modules`` does not fit it.
        RunDirectoryError: There are no training pairs, or all are too long.
    """
    tokenizer = load_tokenizer(base_model)
    encoder = ChatEncoder(tokenizer, stop_ids(load_causal_lm(base_model), tokenizer))
    set_seed(seed % 2**32)  # of the new head and of the adapters
    model = load_reward_model(base_model, pad_id=tokenizer.pad_token_id, dtype=loaded_dtype(config))
    learner = prepared(model, config, task="SEQ_CLS", key="reward")
    read = _read(data, encoder)
    pairs = [pair for pair in read if pair.length <= config.max_length]
    if not pairs:
        raise RunDirectoryError(
            f"{data}: expected pairs of at most reward.max_length={config.max_length} tokens, all "
            f"{len(read)} are longer; raise reward.max_length"
        )
    if len(pairs) < len(read):
        report.message(f"{len(read) - len(pairs)} of {len(read)} pairs exceed reward.max_length")
    trainer = _Trainer(
        model=learner,
        args=TrlRewardConfig(
            **trainer_arguments(config, checkpoints=checkpoints, seed=seed),
            center_rewards_coefficient=config.centering,
        ),
        data_collator=_Collator(tokenizer.pad_token_id),
        train_dataset=_dataset(pairs, config, seed),
        processing_class=tokenizer,
    )
    train(trainer, report)
    model, adapter = finished(learner, config)
    model.eval()
    metrics = {
        "pairs": float(len(pairs)),
        "too_long": float(len(read) - len(pairs)),
        "steps": float(trainer.state.global_step),
    }
    statistics = _statistics(model, pairs, config)
    metrics |= {"mean": statistics.mean, "std": statistics.std}
    if test_data.exists() and pq.read_metadata(test_data).num_rows:
        metrics |= _test(model, _read(test_data, encoder), config)
    if trainer.is_world_process_zero():
        files = {RewardStatistics.FILE: statistics.to_json()}
        save_model(output, model, tokenizer, files, adapter=adapter)
    return metrics


def _read(path: Path, encoder: ChatEncoder) -> list[_Pair]:
    columns = read_columns(path, ["prompt", "chosen", "rejected", "probability"])
    prompts = cast("list[Messages]", columns["prompt"])
    chosen = encoder.turns(prompts, cast("list[Messages]", columns["chosen"]))
    rejected = encoder.turns(prompts, cast("list[Messages]", columns["rejected"]))
    return [
        _Pair(chosen_ids=c.ids, rejected_ids=r.ids, probability=p)
        for c, r, p in zip(
            chosen, rejected, cast("list[float]", columns["probability"]), strict=True
        )
    ]


def _dataset(pairs: Sequence[_Pair], config: RewardConfig, seed: int) -> Dataset:
    order = batch_order(
        [pair.length for pair in pairs],
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
    )
    columns = {
        "chosen_ids": [pair.chosen_ids for pair in pairs],
        "rejected_ids": [pair.rejected_ids for pair in pairs],
        "probability": [_target(pair, config) for pair in pairs],
    }
    return Dataset.from_dict(columns).select(order)


def _target(pair: _Pair, config: RewardConfig) -> float:
    return pair.probability if config.soft_labels else float(pair.probability >= 0.5)


@dataclass(frozen=True, slots=True)
class _Collator:
    """Pairs -> one right-padded batch, the chosen ones first."""

    pad_id: int

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
        probability = torch.tensor([pair["probability"] for pair in pairs])
        return {**pad_ids(ids, self.pad_id), "probability": probability}


def _statistics(
    model: PreTrainedModel, pairs: Sequence[_Pair], config: RewardConfig
) -> RewardStatistics:
    scores = _scores(model, pairs, config)
    return RewardStatistics(
        mean=scores.mean().item(), std=scores.std(correction=0).item(), responses=len(scores)
    )


def _scores(model: PreTrainedModel, pairs: Sequence[_Pair], config: RewardConfig) -> Tensor:
    """[2 B]: of the chosen ones, then of the rejected ones."""
    ids = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    return score_sequences(model, ids, micro_batch_size=2 * config.micro_batch_size)


def _test(model: PreTrainedModel, pairs: Sequence[_Pair], config: RewardConfig) -> dict[str, float]:
    scores = _scores(model, pairs, config)
    chosen, rejected = scores.chunk(2)
    labels = torch.tensor([pair.probability for pair in pairs], device=scores.device)
    clear = (labels - 0.5).abs() >= config.near_tie
    metrics = {
        "test_pairs": float(len(pairs)),
        "test_loss": soft_preference_loss(chosen, rejected, labels).item(),
        "test_calibration_error": calibration_error(
            torch.sigmoid(chosen - rejected).tolist(), labels.tolist()
        ),
    }
    if clear.any():
        right = (chosen > rejected) == (labels >= 0.5)
        metrics["test_accuracy"] = right[clear].float().mean().item()
    return metrics
