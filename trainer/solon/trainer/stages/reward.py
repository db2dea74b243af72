"""The preference model: a scalar score, trained on the judge's soft labels (Bai et al. 2022, 4.1).

TRL's RewardTrainer does the work, with a loss of ours. Knows nothing of judges, of the run
directory's layout, or of what the scores are used for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from trl.trainer.reward_config import RewardConfig as TrlRewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from solon.trainer.errors import RunDirectoryError
from solon.trainer.ranks import divided
from solon.trainer.stages.adapters import finished, loaded_dtype, prepared
from solon.trainer.stages.modeling import (
    ChatEncoder,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    save_model,
    stop_ids,
)
from solon.trainer.stages.pairs import (
    Agreement,
    Pair,
    agreement,
    named,
    read_pairs,
    read_test_pairs,
    soft_cross_entropy,
    target,
    without_long,
)
from solon.trainer.stages.scoring import RewardStatistics, pad_ids, score_sequences
from solon.trainer.stages.supervised import WholeCheckpoints, in_order, train, trainer_arguments
from solon.trainer.training import Report, RewardConfig

FIGURES = "figures.json"
"""In the model's directory: what ``train_reward`` returned, and the bins of its calibration."""


def soft_preference_loss(
    chosen_B: Tensor, rejected_B: Tensor, probability_B: Tensor, *, centering: float = 0.0
) -> Tensor:
    """-[p log s(d) + (1 - p) log s(-d)] with d = r_chosen - r_rejected, averaged over B pairs.

    The cross-entropy of the Bradley-Terry model with the judge's probability as its target (Bai et
    al. 2022, section 4.1); p = 1 is the usual hard loss. ``centering`` times the mean of
    (r_chosen + r_rejected)^2 is added (Eisenstein et al. 2023, section 2).
    """
    losses_B = soft_cross_entropy(chosen_B - rejected_B, probability_B)
    return losses_B.mean() + centering * ((chosen_B + rejected_B) ** 2).mean()


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
        self.note(accuracy=chosen_B > rejected_B, margin=chosen_B - rejected_B, mean_reward=scores)
        return (loss, outputs) if return_outputs else loss


def train_reward(
    config: RewardConfig,
    *,
    base_model: str,
    data: Sequence[Path],
    test_data: Sequence[Path],
    output: Path,
    checkpoints: Path,
    seed: int,
    report: Report,
    half: int | None = None,
) -> dict[str, float]:
    """Train a reward model from ``base_model`` (the SL model) and publish it at ``output``.

    Args:
        config: All that can be set.
        base_model: A causal language model's directory or name on the hub.
        data: Parquet files with ``prompt``, ``chosen``, ``rejected`` (lists of ``{"role",
            "content"}``) and ``probability``, that ``chosen`` is better: all are trained on.
        test_data: The same, for the figures; may not exist.
        output: Where the model's directory appears, ``reward_statistics.json`` and
            ``figures.json`` in it, and the adapter's directory if there is one.
        checkpoints: A directory of this stage alone; a whole checkpoint in it is gone on from.
        seed: In [0, 2**64); same seed, same model.
        report: Told of every step.
        half: 0 or 1: train on that half of the prompts alone; None: on all.

    Returns:
        ``pairs``, ``too_long``, ``steps``, ``mean`` and ``std`` of the training scores; if there
        are test pairs the ``test_`` figures of ``pairs.agreement``. They are in ``figures.json``,
        too, with the reliability of the test pairs.

    Raises:
        ConfigError: The model cannot be loaded, its chat template cannot be trained on, or
            ``lora.target_modules`` does not fit it.
        RunDirectoryError: There are no training pairs, or none in ``half``, or all are too long.
    """
    tokenizer = load_tokenizer(base_model)
    encoder = ChatEncoder(tokenizer, stop_ids(load_causal_lm(base_model), tokenizer))
    set_seed(seed % 2**32)  # of the new head and of the adapters
    model = load_reward_model(base_model, pad_id=tokenizer.pad_token_id, dtype=loaded_dtype(config))
    learner = prepared(model, config, task="SEQ_CLS", key="reward")
    read = _of_half(read_pairs(data, encoder), half, data)
    pairs = without_long(read, config.max_length, key="reward", data=data, report=report)
    trainer = _Trainer(
        model=learner,
        args=trainer_arguments(
            TrlRewardConfig,
            config,
            checkpoints=checkpoints,
            seed=seed,
            center_rewards_coefficient=config.centering,
        ),
        data_collator=_Collator(tokenizer.pad_token_id),
        train_dataset=in_order(
            _dataset(pairs, config), [pair.length for pair in pairs], config, seed
        ),
        processing_class=tokenizer,
    )
    train(trainer, report)
    published, adapter = finished(learner, config)
    # what is sharded answers as a whole only where all processes hold it
    model = (model if config.sharding == "full" else published).eval()
    metrics = {
        "pairs": float(len(pairs)),
        "too_long": float(len(read) - len(pairs)),
        "steps": float(trainer.state.global_step),
    }
    statistics = _statistics(model, pairs, config)
    metrics |= {"mean": statistics.mean, "std": statistics.std}
    tested = None
    if test := read_test_pairs(test_data, encoder):
        tested = _test(model, test, config)
        metrics |= tested.metrics
    if trainer.is_world_process_zero():
        figures = {"metrics": metrics, "reliability": tested.reliability if tested else []}
        files = {RewardStatistics.FILE: statistics.to_json(), FIGURES: json.dumps(figures)}
        save_model(output, published, tokenizer, files, adapter=adapter)
    trainer.accelerator.wait_for_everyone()
    return metrics


def _of_half(pairs: Sequence[Pair], half: int | None, data: Sequence[Path]) -> list[Pair]:
    found = [pair for pair in pairs if half is None or pair.half == half]
    if not found:
        raise RunDirectoryError(
            f"{named(data)}: expected pairs on enough prompts for two models, got {len(pairs)} "
            "pairs of which one half of the prompts has none; set reward.test_model=false, or give "
            "more prompts"
        )
    return found


def _dataset(pairs: Sequence[Pair], config: RewardConfig) -> Dataset:
    columns = {
        "chosen_ids": [pair.chosen.ids for pair in pairs],
        "rejected_ids": [pair.rejected.ids for pair in pairs],
        "probability": [target(pair.probability, soft=config.soft_labels) for pair in pairs],
    }
    return Dataset.from_dict(columns)


@dataclass(frozen=True, slots=True)
class _Collator:
    """Pairs -> one right-padded batch, the chosen ones first."""

    pad_id: int

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
        probability = torch.tensor([pair["probability"] for pair in pairs])
        return {**pad_ids(ids, self.pad_id), "probability": probability}


def _statistics(
    model: PreTrainedModel, pairs: Sequence[Pair], config: RewardConfig
) -> RewardStatistics:
    scores = _scores(model, pairs, config)
    return RewardStatistics(
        mean=scores.mean().item(), std=scores.std(correction=0).item(), responses=len(scores)
    )


def _scores(model: PreTrainedModel, pairs: Sequence[Pair], config: RewardConfig) -> Tensor:
    """[2 B]: of the chosen ones, then of the rejected ones."""
    ids = [pair.chosen.ids for pair in pairs] + [pair.rejected.ids for pair in pairs]

    def score(share: Sequence[Sequence[int]]) -> Tensor:
        return score_sequences(model, share, micro_batch_size=2 * config.micro_batch_size)

    return divided(ids, score)


def _test(model: PreTrainedModel, pairs: Sequence[Pair], config: RewardConfig) -> Agreement:
    chosen, rejected = _scores(model, pairs, config).chunk(2)
    labels = torch.tensor([pair.probability for pair in pairs])
    return agreement((chosen - rejected).cpu(), labels, near_tie=config.near_tie)
