"""The episodes of a batch one by one: what each scored, what it paid, what it was worth.

Shapes as in ``samples``: B episodes of this process. Knows nothing of texts, judges or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from solon.trainer.ppo.rewards import Scores
from solon.trainer.ppo.samples import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What became of B episodes. Of one without a score, all but ``scores`` means nothing."""

    scores: Scores
    penalties: Mapping[str, Tensor]
    """Guard -> what it took, [B], in rewards."""
    logprobs_B: Tensor
    """Of whole responses under the policy that sampled them, in nats."""
    reference_B: Tensor
    """The same under the SL model."""
    rewards_B: Tensor
    """What was learned from: the score less the penalties, and less the KL where it is a reward."""
    advantages_B: Tensor
    """The mean over a response's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """A batch's episodes, as sampled, and what became of them."""

    batch: int
    """From 1, as in the metrics; its policy has learned from the ``batch - 1`` before it."""
    first: int
    """The number of the first among all episodes of the training, from 0; the others follow it."""
    seed: int
    """Of the draws in this batch, of which each episode of all processes has a row."""
    place: int
    """The first one's row; the others follow it."""
    kl_coefficient: float
    """Lambda, in rewards per nat."""
    prompt_rows: Sequence[int]
    """Of each episode, the place of its prompt among all prompts."""
    samples: Samples
    outcomes: Outcomes
