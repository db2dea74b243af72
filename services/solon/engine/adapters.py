"""LoRA adapters, merged by peft into the weights that they were trained on.

peft multiplies an adapter's two matrices in float32 and rounds once, when it adds the product to
the base weights in their own type. Knows nothing of the model that runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from solon.engine.fetching import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from solon.engine.pretrained import first_line

_NAME = "default"
_PEFTS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)
"""What peft raises for configurations that it cannot follow."""


def merged(folder: Path, base: Any) -> Any:
    """The base model, changed in place: with the adapter that lies in ``folder`` in its weights.

    Raises:
        ValueError: It is no LoRA adapter of this model; the text says why.
    """
    from peft import PeftModel  # noqa: PLC0415 - takes seconds to import

    config = _config(folder)
    try:
        model = PeftModel(base, config, adapter_name=_NAME)
        report = model.load_adapter(str(folder), _NAME, torch_device="cpu")
        if names := report.missing_keys or report.unexpected_keys:
            kind = "missing" if report.missing_keys else "unexpected"
            raise ValueError(f"{len(names)} {kind} tensors, such as {names[0]}")
        return model.merge_and_unload()
    except SafetensorError as error:
        raise ValueError(f"{ADAPTER_WEIGHTS} is damaged: {error}") from error
    except _PEFTS as error:
        # torch has a headline and then a line a tensor
        problem = str(error).splitlines()[:2][-1].strip()
        raise _misfit(config, problem) from error


def check_adapter(folder: Path, model: Any) -> None:
    """Check that an adapter fits a model and is finite.

    Args:
        folder: Where it lies.
        model: One of the kind, without memory (on the device ``meta``); it is changed.

    Raises:
        ValueError: It is no LoRA adapter of this model; the text says why.
    """
    from peft import PeftModel, get_peft_model_state_dict  # noqa: PLC0415 - as above

    config = _config(folder)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{ADAPTER_WEIGHTS} is damaged: {error}") from error
    try:
        expected = get_peft_model_state_dict(PeftModel(model, config, adapter_name=_NAME))
    except _PEFTS as error:
        raise _misfit(config, first_line(error)) from error
    if names := sorted(tensors.keys() ^ expected.keys()):
        raise _misfit(config, f"{len(names)} missing or unexpected tensors, such as {names[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise _misfit(
                config,
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}",
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity")


def _misfit(config: Any, problem: str) -> ValueError:
    return ValueError(
        "expected an adapter of the full weights that were loaded last, but this one, trained "
        f"on {config.base_model_name_or_path!r}, does not fit them: {problem}"
    )


def _config(folder: Path) -> Any:
    from peft import LoraConfig, PeftConfig  # noqa: PLC0415 - as above

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(
            f"the adapter has no {ADAPTER_WEIGHTS}: save it with peft's save_pretrained; pickles "
            "(adapter_model.bin) are not loaded"
        )
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except _PEFTS as error:
        raise ValueError(
            f"{ADAPTER_CONFIG} is none that peft can read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"expected an adapter of type LORA, got {config.peft_type!r}")
    # peft would import whatever module it names
    if config.megatron_config is not None:
        raise ValueError("the adapter's megatron_config is not supported: train it without one")
    config.inference_mode = True
    return config
