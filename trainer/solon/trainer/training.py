"""How stages that train are configured (``sft``, ``reward``, ``dpo``), and how they report.

Imports no torch: the stages that read this import it themselves, in a process of their own.
Knows nothing of models, tokens or Parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from solon.trainer.settings import Settings

Schedule = Literal["constant", "linear", "cosine"]


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, 2106.09685): all that learns; the model itself is frozen.

    The stage publishes the model with the adapter merged into it, as after full fine-tuning, and
    the adapter by itself in ``adapter/`` beside the weights.
    """

    rank: int = Field(default=16, ge=1, le=4096)
    """Rank of each adapter's two factors, 1 to 4096."""
    alpha: float = Field(default=32.0, gt=0)
    """Adapters count ``alpha / rank`` times, > 0."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is left out of a step, in [0, 1). Not in the stage rl,
    whose ratio of an unchanged policy has to be 1."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers that get an adapter: ``all-linear`` (but for the output head), or the last parts of
    their names, such as ``[q_proj, v_proj]``."""
    rank_stabilised: bool = False
    """Count adapters ``alpha / sqrt(rank)`` times, for high ranks (Kalajdzievski 2023,
    2312.03732)."""
    dora: bool = False
    """Learn each weight's magnitude apart from its direction (Liu et al. 2024, 2402.09353)."""


class WeightSettings(Settings):
    """Which weights learn, on how many devices, in which number format, and what memory holds."""

    processes: int = Field(default=1, ge=1, le=1024)
    """Processes that train side by side, each on an accelerator of its own (cuda:0, cuda:1, ...),
    1 to 1024. Each has its share of every batch, and what they learn is what one alone would, but
    for rounding; where the last batch does not fill all of them, records of the first fill it
    up."""

    sharding: Literal["none", "full"] = "none"
    """``full``: each process holds an equal part of the weights that learn, of their gradients and
    of AdamW's moments (FSDP; ZeRO's third stage, Rajbhandari et al. 2020, 1910.02054), and a layer
    is gathered while it computes. ``none``: each holds all of them."""
    lora: LoraSettings | None = None
    """Train low-rank adapters. null: every weight learns."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: layers compute in bfloat16; weights that are frozen are held in it (2 bytes a
    parameter), those that learn, their gradients and AdamW's two moments in float32 (16 bytes),
    since a small step is lost in bfloat16's 8 bits; the model is published in bfloat16.
    ``float32``: everything is float32."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""

    @model_validator(mode="after")
    def _there_is_something_to_shard(self) -> Self:
        if self.sharding == "none":
            return self
        if self.processes == 1:
            raise ValueError(
                "sharding: expected none with processes=1, which has nothing to divide, got "
                f"{self.sharding!r}; raise processes, or set sharding to none"
            )
        if self.lora is not None:
            raise ValueError(
                "sharding: expected none with lora, whose adapters are small and whose frozen "
                f"weights every process holds, got {self.sharding!r}; set lora to null, or "
                "sharding to none"
            )
        return self


def require_shares(key: str, value: int, batch_size: int, processes: int) -> None:
    """Hold that a part fills each process's share of a batch without a rest.

    Raises:
        ValueError: It does not.
    """
    if batch_size % value:
        raise ValueError(f"{key}: expected a divisor of batch_size {batch_size}, got {value!r}")
    together = value * processes
    if batch_size % together:
        raise ValueError(
            f"batch_size: expected a multiple of {key} times processes, {value} x {processes} = "
            f"{together}, got {batch_size!r}; change one of the three"
        )


class TrainingSettings(WeightSettings):
    """What every supervised stage has: batches, optimiser, checkpoints."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the training records, >= 1."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak step size of AdamW, > 0."""
    schedule: Schedule = "constant"
    """How the learning rate goes on after the warm-up; linear and cosine end at 0."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of all optimiser steps in which the learning rate rises from 0, in [0, 1)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay, >= 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this L2 norm, > 0."""
    batch_size: int = Field(default=64, ge=1)
    """Records in one optimiser step, over all processes, >= 1."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Records in one forward pass of one process; divides ``batch_size``. The gradients of the
    passes are accumulated into one step, so this changes memory only."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of prompt and response together, >= 8. Longer records are left out and counted."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints, >= 1; a killed stage goes on from the last one."""
    log_every: int = Field(default=10, ge=1)
    """Optimiser steps between two rows of metrics, >= 1."""

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainingSettings:
        require_shares("micro_batch_size", self.micro_batch_size, self.batch_size, self.processes)
        return self


class SftConfig(TrainingSettings):
    """SL-CAI: fine-tuning of the base model on revisions (Bai et al. 2022, section 3).

    The paper's setting is the default shape: one epoch at a constant learning rate, half the one of
    pre-training, and a batch of 1024.
    """

    chat_format: Literal["base", "policy"] = "base"
    """Whose chat template and tokens that end a turn are trained, and published with the model:
    those of the ``base`` model, or the ``policy``'s, for a pre-trained model that has none. The two
    have to share their vocabulary."""


class RewardConfig(TrainingSettings):
    """The preference model on the judge's labels (Bai et al. 2022, section 4.1)."""

    soft_labels: bool = True
    """Train on the judge's probabilities; false rounds them to 0 or 1 (the paper's ablation), but
    for exact ties, which stay 1/2."""
    centering: float = Field(default=0.01, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards near 0 (Eisenstein et al. 2023,
    section 2); 0 is off."""
    near_tie: float = Field(default=0.05, ge=0, lt=0.5)
    """Test pairs whose label is within this of 1/2 do not count for accuracy, in [0, 1/2)."""
    test_model: bool = False
    """Train two models, each on the pairs of one half of the prompts: the stage rl learns from the
    one in ``models/reward``, and that in ``models/reward_test`` shows when it only learns to please
    the first (Bai et al. 2022a, 2204.05862, section 4.2: train PM and test PM). False: one model,
    on all."""


class DpoConfig(TrainingSettings):
    """Direct preference optimisation (Rafailov et al. 2023, 2305.18290): ``rl.algorithm: dpo``.

    The SL model, in a later iteration the model of the one before, learns the judge's labels
    without a reward model, kept close to what it was. No response is sampled: all that it learns
    from are the pairs that were judged.
    """

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak step size of AdamW, > 0; the paper's."""
    beta: float = Field(default=0.1, gt=0)
    """How close it stays to what it was: the weight of the KL, in rewards per nat, > 0."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """``sigmoid``: the cross-entropy of the Bradley-Terry model (DPO's own). ``ipo``: a squared
    distance, which a label of 1 does not drive to infinity (Azar et al. 2023, 2310.12036)."""
    soft_labels: bool = True
    """Train on the judge's probabilities; false rounds them to 0 or 1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Chance that a label is the wrong way round, in [0, 1/2): moves every label by that part
    towards the other (conservative DPO, Mitchell 2023)."""
    near_tie: float = Field(default=0.05, ge=0, lt=0.5)
    """Test pairs whose label is within this of 1/2 do not count for accuracy, in [0, 1/2)."""


class Report(Protocol):
    """Where a stage says how far it is. The worker writes it as JSON lines and metrics."""

    def start(self, done: int) -> None:
        """Training starts, or goes on, after ``done`` steps. Rows of later steps are void."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """``done`` of ``total`` steps are made; ``metrics`` may be empty."""

    def message(self, text: str) -> None:
        """One sentence for the user."""
