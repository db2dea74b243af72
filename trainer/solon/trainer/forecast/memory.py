"""Bytes that a network takes: to be served, to be trained. Upper estimates, part by part.

Knows nothing of stages, of configurations or of which device is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from solon.trainer.forecast.hardware import GIB
from solon.trainer.forecast.models import Model

Parts = Mapping[str, int]
"""What takes memory -> bytes."""

RUNTIME = GIB
"""Of CUDA, its libraries and their workspaces, in every process on a device."""
PREFILL_TOKENS = 4096
"""That the transformers engine reads in one forward pass, at most."""
LOGITS_AT_ONCE = 2**24
"""Elements of the largest block of logits that RL makes (see ``ppo.networks.Policy``)."""
_FLOAT = 4
_ADAM = 8
"""Bytes of AdamW's two moments, in float32 (Loshchilov and Hutter 2019, 1711.05101)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """How a network is held while it learns."""

    trainable: int
    """Parameters that learn: in float32, with gradients and AdamW's moments in float32."""
    frozen: int
    """Parameters that do not."""
    compute: int
    """Bytes of a number in a forward pass, and of a frozen parameter: 2 or 4."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    processes: int = 1
    """That train together."""
    sharded: bool = False
    """Whether each of them holds a part of what learns."""


def key_value_bytes(model: Model, tokens: int, element: int) -> int:
    """Keys and values of so many tokens: two vectors a layer (Pope et al. 2022, 2211.05102, 2).

    Args:
        model: Whose.
        tokens: Of all sequences together.
        element: Bytes of a number.
    """
    return 2 * model.layers * model.key_value_width * tokens * element


def forward_bytes(model: Model, tokens: int, element: int) -> int:
    """What a forward pass without gradients holds at its widest place, the feed-forward block."""
    return tokens * element * (2 * model.intermediate + 4 * model.hidden)


def serving(model: Model, *, element: int, cached_tokens: int, rows: int) -> Parts:
    """A service's model, its cache, and a forward pass.

    Args:
        model: That is served.
        element: Bytes of a number: 2 in bfloat16, 4 in float32.
        cached_tokens: Tokens of all sequences that are in the cache at once.
        rows: Sequences in a batch.
    """
    return {
        "weights": model.parameters * element,
        "cache": key_value_bytes(model, cached_tokens, element),
        "forward pass": forward_bytes(model, PREFILL_TOKENS, element)
        + 2 * rows * model.vocabulary * _FLOAT,
        "runtime": RUNTIME,
    }


def learning_weights(how: Learning) -> Parts:
    """Weights, gradients and moments that one process holds, with mixed precision's copies.

    Source: Rajbhandari et al. 2020 (1910.02054), section 3.1, for what AdamW needs, and 5.3 for its
    division among processes. Autocast keeps a copy of each weight in the compute format for the
    length of a step; several processes without sharding exchange gradients through copies of them.
    """
    if how.sharded:
        share = -(-how.trainable // how.processes)
        return {
            "weights": share * _FLOAT,
            "gradients": share * _FLOAT,
            "optimiser": share * _ADAM,
        }
    sent = {"gradients on their way": how.trainable * _FLOAT} if how.processes > 1 else {}
    copies = how.trainable * how.compute if how.compute < _FLOAT else 0
    return {
        "weights": how.frozen * how.compute + how.trainable * _FLOAT + copies,
        "gradients": how.trainable * _FLOAT,
        "optimiser": how.trainable * _ADAM,
        **sent,
    }


def gathered(model: Model, how: Learning) -> int:
    """What a network has whole at its widest moment, if it is sharded; else 0.

    The embeddings and the head, which stay from the first layer to the last and back, a layer and
    the one after it; and the gradients of the largest of these, before each process has its part.
    """
    if not how.sharded:
        return 0
    ends = 2 * model.vocabulary * model.hidden
    layer = model.parameters // model.layers
    return (ends + 2 * layer) * how.compute + max(ends, layer) * (how.compute + _FLOAT)


def activations(model: Model, tokens: int, how: Learning) -> int:
    """What one forward pass keeps for its backward pass.

    A layer keeps the inputs of its norms (in float32), of its projections, the attention's inputs
    and output, and four tensors inside of the feed-forward block (the accounting of Korthikanti et
    al. 2022, 2205.05198, section 4.1, for gated blocks); the attention matrix is never kept. With
    checkpointing only each layer's input is, and one layer's activations at a time.

    Args:
        model: Which.
        tokens: In the pass, padding included.
        how: How it learns.
    """
    layer = how.compute * (6 * model.hidden + 2 * model.key_value_width + 4 * model.intermediate)
    layer += 2 * _FLOAT * model.hidden
    if how.checkpointing:
        return tokens * (model.layers * how.compute * model.hidden + layer)
    return tokens * model.layers * layer


def logits(model: Model, tokens: int, how: Learning) -> int:
    """A language model's logits, in the compute format and in float32, and their gradient."""
    return tokens * model.vocabulary * (how.compute + 2 * _FLOAT)


def sampling(model: Model, *, rows: int, tokens: int, element: int) -> int:
    """The cache of a batch that is sampled whole, and the probabilities of its next tokens.

    Args:
        model: That is sampled.
        rows: In the batch.
        tokens: Of the longest row, prompt and response.
        element: Bytes of a number.
    """
    return key_value_bytes(model, rows * tokens, element) + 4 * rows * model.vocabulary * _FLOAT
