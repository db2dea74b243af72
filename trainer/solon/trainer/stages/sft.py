"""SL-CAI: fine-tune the base model on revisions and helpful answers (Bai et al. 2022, section 3).

TRL's SFTTrainer does the work; the loss is on the response alone. Knows nothing of the run
directory's layout or of how the records were made.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import set_seed
from trl.trainer.sft_config import SFTConfig as TrlSftConfig
from trl.trainer.sft_trainer import SFTTrainer

from solon.trainer.errors import RunDirectoryError
from solon.trainer.stages.adapters import finished, loaded_dtype, prepared
from solon.trainer.stages.modeling import (
    ChatEncoder,
    Messages,
    Turn,
    load_causal_lm,
    load_tokenizer,
    read_columns,
    save_model,
    stop_ids,
    take_chat_format,
)
from solon.trainer.stages.supervised import WholeCheckpoints, in_order, train, trainer_arguments
from solon.trainer.training import Report, SftConfig


class _Trainer(WholeCheckpoints, SFTTrainer):
    """TRL's trainer, on records that are tokens already."""


def train_sft(
    config: SftConfig,
    *,
    base_model: str,
    data: Path,
    output: Path,
    checkpoints: Path,
    seed: int,
    report: Report,
    chat_model: str | None = None,
) -> dict[str, float]:
    """Fine-tune ``base_model`` and publish the result at ``output``.

    Args:
        config: All that can be set.
        base_model: A causal language model's directory or name on the hub.
        data: Parquet with ``prompt`` and ``completion``, lists of ``{"role", "content"}``.
        output: Where the model's directory appears, the adapter's in it if there is one.
        checkpoints: A directory of this stage alone; a whole checkpoint in it is gone on from.
        seed: In [0, 2**64); same seed, same model.
        report: Told of every step.
        chat_model: Whose tokenizer and tokens that end a turn are used. None: ``base_model``'s.

    Returns:
        ``loss`` (mean over all steps made now), ``records``, ``too_long``, ``steps``.

    Raises:
        ConfigError: The model cannot be loaded, its chat template cannot be trained on, or
            ``lora.target_modules`` does not fit it; or ``chat_model`` has another vocabulary.
        RunDirectoryError: There are no records, or all are too long.
    """
    tokenizer = load_tokenizer(chat_model or base_model)
    model = load_causal_lm(base_model, dtype=loaded_dtype(config))
    if chat_model is not None:
        take_chat_format(model, base_model, chat_model, tokenizer)
    columns = read_columns(data, ["prompt", "completion"])
    turns = ChatEncoder(tokenizer, stop_ids(model, tokenizer)).turns(
        cast("list[Messages]", columns["prompt"]), cast("list[Messages]", columns["completion"])
    )
    kept = [turn for turn in turns if len(turn.ids) <= config.max_length]
    if not kept:
        raise RunDirectoryError(
            f"{data}: expected records of at most sft.max_length={config.max_length} tokens, all "
            f"{len(turns)} are longer; raise sft.max_length"
        )
    if len(kept) < len(turns):
        report.message(f"{len(turns) - len(kept)} of {len(turns)} records exceed sft.max_length")
    set_seed(seed % 2**32)  # of the adapters
    learner = prepared(model, config, task="CAUSAL_LM", key="sft")
    trainer = _Trainer(
        model=learner,
        args=trainer_arguments(
            TrlSftConfig, config, checkpoints=checkpoints, seed=seed, packing=False
        ),
        train_dataset=in_order(_dataset(kept), [len(turn.ids) for turn in kept], config, seed),
        processing_class=tokenizer,
    )
    train(trainer, report)
    published, adapter = finished(learner, config)
    if trainer.is_world_process_zero():
        save_model(output, published, tokenizer, adapter=adapter)
    summary = trainer.state.log_history[-1]
    return {
        "loss": float(summary["train_loss"]),
        "records": float(len(kept)),
        "too_long": float(len(turns) - len(kept)),
        "steps": float(trainer.state.global_step),
    }


def _dataset(turns: list[Turn]) -> Dataset:
    columns = {
        "input_ids": [turn.ids for turn in turns],
        "labels": [[-100] * len(turn.prompt_ids) + turn.response_ids for turn in turns],
    }
    return Dataset.from_dict(columns)
