"""The base of every configuration class: frozen, closed, validated when it is built.

Knows nothing of YAML files (see ``config``) or of any stage; imports no torch.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen set of fields. An unknown key is an error; so is a value out of its range."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
