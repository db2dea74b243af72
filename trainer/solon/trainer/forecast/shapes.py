"""The shapes of a model's parameters, from its config.json alone.

``python -m solon.trainer.forecast.shapes DIRECTORY`` prints {name: shape} as JSON. The model is
built on torch's meta device, where a tensor has a shape and no content: size does not matter.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def shapes(folder: str) -> dict[str, list[int]]:
    """Parameter -> shape; those that are tied are there once."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    print(json.dumps(shapes(sys.argv[1])))
