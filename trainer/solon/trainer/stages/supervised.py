"""What the stages on TRL share: arguments, order, progress, checkpoints that no kill can spoil.

Knows nothing of losses or of the run directory's layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from solon.trainer.sharding import plugin_arguments, shard_anywhere
from solon.trainer.stages.modeling import batch_order
from solon.trainer.training import Report, TrainingSettings

Arguments = TypeVar("Arguments", bound=TrainingArguments)
_COMPLETE = "complete"
"""A file that a checkpoint gets last."""
_LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "reward",
    "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward",
}
"""TRL's name -> ours."""


def trainer_arguments(
    kind: type[Arguments], settings: TrainingSettings, *, checkpoints: Path, seed: int, **more: Any
) -> Arguments:
    """The arguments of one of TRL's trainers.

    Args:
        kind: Their class.
        settings: Of the stage.
        checkpoints: A directory of this stage alone.
        seed: In [0, 2**64).
        more: What only this class has.
    """
    made = kind(**_shared(settings, checkpoints, seed), **more)
    if made.n_gpu > 1:
        # every device has its process: transformers would drive all of them from this one
        made._n_gpu = 1
    if settings.sharding == "full":
        made.fsdp_plugin_args = plugin_arguments(settings)
    return made


def _shared(settings: TrainingSettings, checkpoints: Path, seed: int) -> dict[str, Any]:
    steps = settings.batch_size // (settings.micro_batch_size * settings.processes)
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": 1,  # `in_order` lays all epochs end to end
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": _SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": settings.precision == "bfloat16",
        # transformers takes bfloat16 and several processes on a CPU for a mistake unless asked for
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "seed": seed % 2**32,  # numpy's generator takes no more
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "logging_steps": settings.log_every,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "max_length": None,  # too long records are gone already
        "dataset_num_proc": None,
        # else each process would keep the gradients of all weights from pass to pass
        "accelerator_config": {
            "gradient_accumulation_kwargs": {"sync_each_batch": settings.sharding == "full"}
        },
    }


_SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
}


def in_order(
    records: Dataset, lengths: Sequence[int], settings: TrainingSettings, seed: int
) -> Dataset:
    """The records as they are to be trained on, all epochs end to end (see ``batch_order``).

    ``lengths``: tokens of each record.
    """
    order = batch_order(lengths, epochs=settings.epochs, batch_size=settings.batch_size, seed=seed)
    return records.select(order)


class WholeCheckpoints(Trainer):
    """Mixed into a TRL trainer: marks whole checkpoints, writes no cards, and phones nobody."""

    _metrics: dict[str, Any]
    """TRL's: mode -> name -> values since the last row."""

    def create_accelerator_and_postprocess(self) -> None:
        """Learn that the network is sharded, also where accelerate would not do it."""
        Trainer.create_accelerator_and_postprocess(self)
        asked = self.args.fsdp_plugin_args
        if asked is not None and not self.is_fsdp_enabled:
            shard_anywhere(self.accelerator, FullyShardedDataParallelPlugin(**asked))
            self.is_fsdp_enabled = True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)
        # each process has a part of its own in it
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            path = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            (path / _COMPLETE).touch()

    def note(self, **values: Tensor) -> None:
        """Add the mean of each over a micro-batch, of all processes, to what is logged next."""
        means = torch.stack([found.detach().float().mean() for found in values.values()])
        over_all = self.accelerator.gather(means).view(-1, len(values)).mean(dim=0)
        for name, mean in zip(values, over_all.tolist(), strict=True):
            self._metrics["train"][name].append(mean)

    def _send_telemetry(self) -> None:
        """Nobody is told what is trained here."""


def train(trainer: Trainer, report: Report) -> None:
    """Train to the end, from the last whole checkpoint if there is one."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(report))
    checkpoint = _last_whole_checkpoint(Path(str(trainer.args.output_dir)))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _last_whole_checkpoint(directory: Path) -> Path | None:
    whole = [path.parent for path in directory.glob(f"checkpoint-*/{_COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class _Progress(TrainerCallback):
    """Passes what the trainer logs on to a report."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say where training starts."""
        self._report.start(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last step is always told of."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Pass metrics on; the closing summary, which has no loss of its own, is left out."""
        if logs and "loss" in logs and state.is_world_process_zero:
            metrics = {ours: float(logs[key]) for key, ours in _LOGGED.items() if key in logs}
            self._report.progress(state.global_step, state.max_steps, metrics)
