"""LoRA adapters on a model, and the number formats that a stage trains and publishes in.

peft does the work. Knows nothing of losses, of tokenizers or of the run directory's layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from solon.trainer.errors import ConfigError
from solon.trainer.ranks import rank
from solon.trainer.sharding import whole
from solon.trainer.training import LoraSettings, WeightSettings

ADAPTER_FOLDER = "adapter"
"""In a published model's directory; ``PeftModel.from_pretrained`` reads it."""
Task: TypeAlias = Literal["CAUSAL_LM", "SEQ_CLS"]
"""What peft calls a language model, and a classifier, whose new head learns whole."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a stage taught, apart from the model that it started from."""

    config: PeftConfig
    weights: Mapping[str, Tensor]
    """As peft names them, on the CPU."""

    def save(self, directory: Path) -> None:
        """Write what ``PeftModel.from_pretrained`` reads. The directory is made."""
        self.config.save_pretrained(str(directory))
        path = directory / "adapter_model.safetensors"
        save_file(dict(self.weights), path, metadata={"format": "pt"})


def frozen_dtype(settings: WeightSettings) -> torch.dtype:
    """The number format of weights that do not learn, and of the model that is published."""
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def loaded_dtype(settings: WeightSettings) -> torch.dtype:
    """The number format to load a model in that is going to learn."""
    return torch.float32 if settings.lora is None else frozen_dtype(settings)


def attach(model: PreTrainedModel, lora: LoraSettings, *, task: Task | None, key: str) -> PeftModel:
    """Freeze ``model`` and put adapters into it that start by adding nothing.

    They are drawn from torch's global generator, and are float32 whatever the model is. ``model``
    is changed in place: it goes on to work by itself, adapters included.

    Args:
        model: On any device.
        lora: All that can be set.
        task: ``SEQ_CLS``: its head learns too. None: it is neither, but the trunk of one.
        key: The settings' key, for messages.

    Raises:
        ConfigError: ``target_modules`` names no layer, or the output head.
    """
    targets = lora.target_modules
    _refuse_output_head(model, targets, key)
    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides it
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
    )
    try:
        made = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"{key}.target_modules: expected all-linear or the names of layers of "
            f"{type(model).__name__}, got {targets!r}: {error}"
        ) from error
    for parameter in made.parameters():
        if parameter.requires_grad:
            # a classifier's head, which peft leaves as the model is
            parameter.data = parameter.data.float()
    assert isinstance(made, PeftModel)
    return made


def _refuse_output_head(model: PreTrainedModel, targets: str | Sequence[str], key: str) -> None:
    """The head's weights are read directly, so that an adapter on it would learn nothing."""
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    heads = [model.get_output_embeddings(), model.get_input_embeddings() if tied else None]
    names = [name for name, module in model.named_modules() if any(module is h for h in heads)]
    found = [
        target
        for target in ([] if isinstance(targets, str) else targets)
        if any(name == target or name.endswith(f".{target}") for name in names)
    ]
    if found:
        raise ConfigError(
            f"{key}.target_modules: expected layers between the embeddings and the output head, "
            f"got {found[0]!r}; remove it"
        )


def prepared(
    model: PreTrainedModel, settings: WeightSettings, *, task: Task, key: str
) -> PreTrainedModel | PeftModel:
    """What a trainer is to be given: ``model`` itself, or with adapters, as the settings say.

    Raises:
        ConfigError: As ``attach``; ``key`` is the stage's.
    """
    if settings.lora is None:
        return model
    return attach(model, settings.lora, task=task, key=f"{key}.lora")


def write_weights(
    directory: Path, model: PreTrainedModel | PeftModel, settings: WeightSettings
) -> None:
    """Leave a learning model as a service reads it: the adapter alone, where there is one.

    ``model`` is what ``prepared`` gave, and goes on learning. Called by every process; the first
    one writes. The directory is made.
    """
    if isinstance(model, PeftModel):
        if rank() == 0:
            _adapter_of(model).save(directory)
        return
    found = whole(model, frozen_dtype(settings))
    if rank() == 0:
        found.save_pretrained(directory)


def _adapter_of(model: PeftModel) -> Adapter:
    weights = get_peft_model_state_dict(model)
    return Adapter(
        config=model.peft_config["default"],
        weights={name: tensor.cpu().contiguous() for name, tensor in weights.items()},
    )


def finished(
    model: PreTrainedModel | PeftModel, settings: WeightSettings
) -> tuple[PreTrainedModel, Adapter | None]:
    """What to publish: a plain model with what was learned merged into it, and its adapter.

    ``model`` is what ``prepared`` gave, and is used up; but if it is sharded it stays as it is, and
    this is called by every process, of which the first is given its weights.
    """
    if isinstance(model, PeftModel):
        adapter = _adapter_of(model)
        merged: PreTrainedModel = model.merge_and_unload()
    else:
        adapter, merged = None, whole(model, frozen_dtype(settings))
    merged.to(dtype=frozen_dtype(settings))  # type: ignore[call-arg]  # transformers' wrapper
    return merged, adapter
