"""What scores episodes, and how scores of several sources become one.

Shapes: B episodes of this process. Knows nothing of reward models, judges or conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from solon.trainer.ppo.samples import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The scores of a batch. Not a number where an episode has none."""

    total_B: Tensor
    """What is learned from, before any penalty."""
    by_source: Mapping[str, Tensor]
    """Source -> its own scores [B], for the metrics ``objective/SOURCE_scores``."""
    weights: Mapping[str, float]
    """Source -> its weight in the total. A source without one is only watched."""


class RewardFunction(Protocol):
    """What scores whole episodes."""

    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        """One score an episode, [B], before any penalty; not a number where there is none.

        Args:
            prompt_rows: Of each episode, the place of its prompt among all prompts.
            samples: The B episodes.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedReward:
    """Reward functions, of which some are weighed and the others only watched."""

    functions: Mapping[str, RewardFunction]
    """Source -> what scores."""
    weights: Mapping[str, float]
    """Source -> its weight, > 0. A source without one changes nothing that is learned."""

    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Scores:
        """The weighted sum. An episode has a total if every weighed source has a score of it."""
        found = {
            name: function(prompt_rows, samples).to(samples.logprobs_BR)
            for name, function in self.functions.items()
        }
        terms = [weight * found[name] for name, weight in self.weights.items()]
        total_B = torch.stack(terms).sum(dim=0)
        return Scores(total_B=total_B, by_source=found, weights=self.weights)
