"""Scores of a reward model, and their scale.

Shapes: B episodes. Knows nothing of how the model was trained; imports no trl.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solon.trainer.errors import RunDirectoryError
from solon.trainer.ppo.samples import RowsOfTokens, Samples, micro_batches
from solon.trainer.stages.modeling import ChatEncoder, Messages


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardStatistics:
    """The scale of a reward model's scores, measured on its training responses."""

    FILE: ClassVar[str] = "reward_statistics.json"
    """The name in the model's directory."""

    mean: float
    std: float
    """The population's, > 0."""
    responses: int
    """How many were scored."""

    def to_json(self) -> str:
        """As ``load`` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, model: Path) -> RewardStatistics:
        """Read them from a reward model's directory.

        Raises:
            RunDirectoryError: They are not there, or the scores did not differ at all.
        """
        path = model / cls.FILE
        if not path.exists():
            raise RunDirectoryError(
                f"{path}: expected the scale of the reward model's scores, the file does not "
                "exist; run the reward stage, or set rl.normalise_reward=false"
            )
        found = cls(**json.loads(path.read_text(encoding="utf-8")))
        if not found.std > 0:
            raise RunDirectoryError(
                f"{path}: expected scores that differ, got std {found.std!r}; the reward model "
                "learned nothing: look at its training pairs"
            )
        return found


def pad_ids(ids: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, padded on the right."""
    rows = [torch.tensor(row) for row in ids]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


@torch.no_grad()
def score_sequences(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], *, micro_batch_size: int
) -> Tensor:
    """The raw score of each token sequence, [B] in their order, on the model's device."""
    pad_id = model.config.get_text_config().pad_token_id
    scores = torch.zeros(len(ids), device=model.device)
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    for group in micro_batches(lengths, micro_batch_size):
        rows = group.tolist()
        batch = pad_ids([ids[row] for row in rows], pad_id)
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        scores[rows] = model(**inputs, use_cache=False).logits.squeeze(-1).float()
    return scores


def response_texts(samples: Samples, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each response says."""
    texts: list[str] = tokenizer.batch_decode(samples.responses(), skip_special_tokens=True)
    return texts


class RewardModelScorer:
    """A reward model as PPO's reward function, on the policy's own tokens."""

    def __init__(
        self, model: PreTrainedModel, statistics: RewardStatistics | None, *, micro_batch_size: int
    ) -> None:
        """``statistics``: scores become (score - mean) / std; None leaves them raw."""
        self._model = model.requires_grad_(False)
        self._model.eval()
        self._statistics = statistics
        self._micro_batch_size = micro_batch_size

    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        """One score an episode, [B]."""
        ids = [
            row[:length].tolist()
            for row, length in zip(samples.ids_BT, samples.lengths_B.tolist(), strict=True)
        ]
        return self._scored(ids)

    def _scored(self, ids: Sequence[Sequence[int]]) -> Tensor:
        scores_B = score_sequences(self._model, ids, micro_batch_size=self._micro_batch_size)
        return self._normalised(scores_B)

    def _normalised(self, scores_B: Tensor) -> Tensor:
        if self._statistics is None:
            return scores_B
        return (scores_B - self._statistics.mean) / self._statistics.std


class SharedTrunkScorer(RewardModelScorer):
    """A reward model on whose trunk the value network stands: one pass serves both."""

    def __init__(
        self, model: PreTrainedModel, statistics: RewardStatistics | None, *, micro_batch_size: int
    ) -> None:
        """As ``RewardModelScorer``."""
        super().__init__(model, statistics, micro_batch_size=micro_batch_size)
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        """One score an episode, [B]."""
        scores_B = torch.zeros(len(samples.ids_BT), device=self._model.device)
        features = RowsOfTokens(samples)
        for rows_b in micro_batches(samples.lengths_B, self._micro_batch_size):
            batch = samples.batch(rows_b)
            found = self._model.base_model(input_ids=batch.ids_bT, use_cache=False)
            hidden_bTH = found.last_hidden_state
            last_b = samples.lengths_B[rows_b] - 1
            last_bH = hidden_bTH[torch.arange(len(rows_b), device=last_b.device), last_b]
            scores_B[rows_b] = self._model.get_submodule("score")(last_bH).squeeze(-1).float()
            features.put(rows_b, batch, hidden_bTH[batch.row_N, batch.column_N].float())
        self._last = (samples.ids_BT, features.values)
        return self._normalised(scores_B)

    def features(self, samples: Samples) -> Tensor | None:
        """What the trunk said before each token of the episodes scored last, [B, R, H].

        None of any others.
        """
        if self._last is None or self._last[0] is not samples.ids_BT:
            return None
        return self._last[1]


class TextRewardScorer(RewardModelScorer):
    """A reward model whose tokenizer is not the policy's: episodes go through text.

    A response that was cut gets the end of a turn that it lacks; PPO's truncation penalty is what
    it costs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        statistics: RewardStatistics | None,
        *,
        micro_batch_size: int,
        encoder: ChatEncoder,
        policy_tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Messages],
    ) -> None:
        """``encoder`` is of the reward model; ``prompts`` are all of PPO's."""
        super().__init__(model, statistics, micro_batch_size=micro_batch_size)
        self._encoder, self._policy_tokenizer = encoder, policy_tokenizer
        self._prompts = prompts

    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        """One score an episode, [B]."""
        texts = response_texts(samples, self._policy_tokenizer)
        turns = self._encoder.turns(
            [self._prompts[row] for row in prompt_rows],
            [[{"role": "assistant", "content": text}] for text in texts],
        )
        return self._scored([turn.ids for turn in turns])
