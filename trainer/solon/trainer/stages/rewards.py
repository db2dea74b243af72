"""The reward of the RL stage, put together from its sources: reward model, judge, held-out model.

Shapes: B episodes. Knows nothing of policies, updates or the run directory's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solon.chat import Conversation
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.rewards import RewardFunction, WeightedReward
from solon.trainer.ppo.samples import Samples
from solon.trainer.stages.judge_scores import Judge
from solon.trainer.stages.modeling import (
    ChatEncoder,
    Messages,
    load_reward_model,
    load_tokenizer,
    stop_ids,
)
from solon.trainer.stages.scoring import (
    RewardModelScorer,
    RewardStatistics,
    SharedTrunkScorer,
    TextRewardScorer,
    response_texts,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """What there is to score responses with."""

    reward_model: str | None
    """The reward stage's directory; its tokenizer may be another than the policy's."""
    reward_device: str | None = None
    """Where the reward model is; None: beside the policy."""
    judge: Judge | None = None
    """For direct RLAIF."""
    test_model: str | None = None
    """A reward model trained on other comparisons: watched, never learned from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModel:
    """A reward model in memory, with its tokens and the scale of its scores."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    statistics: RewardStatistics | None
    """None: its scores are taken as they are."""

    @classmethod
    def load(
        cls, path: str, *, normalise: bool, dtype: torch.dtype, device: torch.device
    ) -> RewardModel:
        """Read it from the reward stage's directory.

        Raises:
            ConfigError: It cannot be loaded.
            RunDirectoryError: Its scale is wanted, and missing.
        """
        statistics = RewardStatistics.load(Path(path)) if normalise else None
        tokenizer = load_tokenizer(path)
        model = load_reward_model(path, pad_id=tokenizer.pad_token_id, dtype=dtype)
        model.to(device)  # type: ignore[arg-type]
        return cls(model=model, tokenizer=tokenizer, statistics=statistics)

    def reads(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the tokens of ``tokenizer`` are its own."""
        return bool(self.tokenizer.get_vocab() == tokenizer.get_vocab())

    def scorer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Messages],
        *,
        micro_batch_size: int,
        has_values: bool = False,
    ) -> RewardFunction:
        """It as a reward function of a policy with that tokenizer; ``prompts`` are all of RL's.

        ``has_values``: the value network stands on it, if it can.
        """
        if self.reads(tokenizer):
            scorer = SharedTrunkScorer if has_values else RewardModelScorer
            return scorer(self.model, self.statistics, micro_batch_size=micro_batch_size)
        return TextRewardScorer(
            self.model,
            self.statistics,
            micro_batch_size=micro_batch_size,
            encoder=ChatEncoder(self.tokenizer, stop_ids(self.model, self.tokenizer)),
            policy_tokenizer=tokenizer,
            prompts=prompts,
        )


class JudgeScorer:
    """The judge as a reward function."""

    def __init__(
        self, judge: Judge, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]
    ) -> None:
        """``tokenizer`` is the policy's; ``prompts`` are all of RL's."""
        self._judge, self._tokenizer = judge, tokenizer
        self._prompts = [Conversation.from_dicts(prompt) for prompt in prompts]

    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        """One score an episode, [B], not a number where the judge has none."""
        asked = [self._prompts[row] for row in prompt_rows]
        texts = response_texts(samples, self._tokenizer)
        found = self._judge.scores(list(zip(asked, texts, strict=True)))
        return torch.tensor([float("nan") if score is None else score for score in found])


def reward_of(
    config: PPOConfig,
    sources: Sources,
    model: RewardModel | None,
    test_model: RewardModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
) -> WeightedReward:
    """The reward that ``config.reward`` describes.

    Args:
        config: All that can be set.
        sources: What there is.
        model: The reward model, where there is one.
        test_model: One that is only watched, where there is one.
        tokenizer: The policy's.
        prompts: All of RL's.
    """
    functions: dict[str, RewardFunction] = {}
    weights: dict[str, float] = {}
    size = config.micro_batch_size
    if model is not None:
        functions["model"] = model.scorer(
            tokenizer,
            prompts,
            micro_batch_size=size,
            has_values=config.has_value_network and config.value_network == "head",
        )
        weights["model"] = config.reward.model
    if sources.judge is not None:
        functions["judge"] = JudgeScorer(sources.judge, tokenizer, prompts)
        weights["judge"] = config.reward.judge
    if test_model is not None:
        functions["test"] = test_model.scorer(tokenizer, prompts, micro_batch_size=size)
    return WeightedReward(functions=functions, weights=weights)
