"""What policy, reference and value network say of episodes.

Shapes: B episodes, R tokens of the longest response, b episodes in a micro-batch, T tokens of its
longest sequence, N real response tokens of it, H hidden, V vocabulary.

Knows nothing of how episodes are sampled, of rewards, advantages, optimisers or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from solon.trainer.ppo.logprobs import token_logprobs
from solon.trainer.ppo.memory import without_adapters
from solon.trainer.ppo.samples import RowsOfTokens, Samples, TokenBatch, micro_batches_of_all


class Policy(nn.Module):
    """A causal language model, read as log-probabilities of response tokens.

    The head is applied to response positions alone, so logits [B, T, V] never exist.
    """

    def __init__(self, lm: PreTrainedModel, *, logits_at_once: int = 2**24) -> None:
        """Wrap ``lm``.

        ``logits_at_once``: elements of the largest block of logits in memory.

        Raises:
            ValueError: Its logits are not hidden states times output embeddings (it scales or caps
                them), so its log-probabilities would be wrong.
        """
        super().__init__()
        self.lm, self._logits_at_once = lm, logits_at_once
        ids = torch.zeros(1, 2, dtype=torch.long, device=lm.device)
        with torch.no_grad():
            expected = lm(input_ids=ids, use_cache=False).logits
            found = self._head()(self._hidden(ids))
        is_linear = isinstance(self._head(), nn.Linear)
        if not (is_linear and torch.allclose(expected, found, rtol=1e-3, atol=1e-3)):
            raise ValueError(
                "expected a model whose logits are a linear map of its hidden states, got "
                f"{type(lm).__name__!r}, which changes them afterwards; use another architecture"
            )

    def _hidden(self, ids_bT: Tensor) -> Tensor:
        hidden: Tensor = self.lm.base_model(input_ids=ids_bT, use_cache=False).last_hidden_state
        return hidden

    def _head(self) -> nn.Linear:
        head: nn.Linear = self.lm.get_output_embeddings()
        return head

    def forward(self, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token, and entropy before it: [N] each, in nats.

        The entropy carries no gradient.
        """
        return token_logprobs(
            self._hidden(batch.ids_bT)[batch.row_N, batch.column_N],
            self._head(),
            batch.target_N,
            temperature=temperature,
            at_once=self._logits_at_once,
        )


class WithoutAdapter(nn.Module):
    """A policy with its adapter switched off: what it started from, in no memory of its own."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        # in a tuple: its weights are the policy's, and are not to be frozen with this
        self._policy = (policy,)

    def forward(self, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """As ``Policy``."""
        (policy,) = self._policy
        with without_adapters(policy):
            found: tuple[Tensor, Tensor] = policy(batch, temperature)
        return found


class ValueNetwork(nn.Module):
    """The expected score of an episode, read before each of its response tokens.

    Starts as the reward model: its score of an unfinished response is already a fair guess, which
    makes the first advantages worth something (Stiennon et al. 2020, section 3.4).
    """

    def __init__(
        self,
        reward_model: PreTrainedModel,
        *,
        mean: float,
        std: float,
        train_trunk: bool,
        known: Callable[[Samples], Tensor | None] = lambda _: None,
    ) -> None:
        """Take over ``reward_model``, so that values start as (score - ``mean``) / ``std``.

        ``train_trunk`` false freezes all but the head, which is given a hidden layer instead; what
        the trunk says of an episode is then computed once and not in every epoch. ``known`` gives
        that, [B, R, H], of episodes of which somebody has computed it.

        Raises:
            ValueError: It has no linear ``score`` head with one output.
        """
        super().__init__()
        score = getattr(reward_model, "score", None)
        if not isinstance(score, nn.Linear) or score.out_features != 1:
            raise ValueError(
                "expected a reward model with a linear 'score' head of one output, got "
                f"{type(reward_model).__name__!r} with {score!r}"
            )
        self.trains_trunk, self.known = train_trunk, known
        self.trunk = cast("PreTrainedModel", reward_model.base_model)
        self.trunk.requires_grad_(train_trunk)
        head = _ValueHead(score.in_features, hidden_layer=not train_trunk)
        self.head = head.to(score.weight.device)
        with torch.no_grad():
            self.head.line.weight.copy_(score.weight / std)
            self.head.line.bias.fill_(-mean / std)

    def features(self, batch: TokenBatch) -> Tensor:
        """What the trunk says before each response token, [N, H]."""
        hidden_bTH = self.trunk(input_ids=batch.ids_bT, use_cache=False).last_hidden_state
        features_NH: Tensor = hidden_bTH[batch.row_N, batch.column_N].float()
        return features_NH

    def forward(self, batch: TokenBatch, features_NH: Tensor | None = None) -> Tensor:
        """Values [N], in normalised rewards. ``features_NH``: of ``batch``, if they are known."""
        values_N: Tensor = self.head(self.features(batch) if features_NH is None else features_NH)
        return values_N


class _ValueHead(nn.Module):
    """A linear map, and beside it, if wanted, a hidden layer that starts by adding 0.

    In float32 whatever the trunk computes in.
    """

    def __init__(self, width: int, *, hidden_layer: bool) -> None:
        super().__init__()
        self.line = nn.Linear(width, 1)
        self.hidden: nn.Module | None = None
        if hidden_layer:
            last = nn.Linear(width, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU(), last)

    def forward(self, features_NH: Tensor) -> Tensor:
        with torch.autocast(features_NH.device.type, enabled=False):
            values_N1: Tensor = self.line(features_NH)
            if self.hidden is not None:
                values_N1 = values_N1 + self.hidden(features_NH)
        return values_N1.squeeze(-1)


@torch.no_grad()
def response_logprobs(
    policy: Policy | WithoutAdapter, samples: Samples, *, temperature: float, micro_batch_size: int
) -> Tensor:
    """[B, R]: what ``policy`` gives to the tokens of ``samples``; 0 on padding."""
    found = RowsOfTokens(samples)
    for rows_b in micro_batches_of_all(samples.lengths_B, micro_batch_size):
        batch = samples.batch(rows_b)
        found.put(rows_b, batch, policy(batch, temperature)[0])
    return found.values


@torch.no_grad()
def response_values(
    network: ValueNetwork, samples: Samples, *, micro_batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """What ``network`` expects before each token of ``samples``, 0 on padding.

    Returns:
        Values [B, R]; and the features [B, R, H] behind them if the network's trunk is frozen.
    """
    values, features = RowsOfTokens(samples), RowsOfTokens(samples)
    known_BRH = network.known(samples)
    for rows_b in micro_batches_of_all(samples.lengths_B, micro_batch_size):
        batch = samples.batch(rows_b)
        if known_BRH is None:
            features_NH = network.features(batch)
        else:
            features_NH = known_BRH[rows_b][batch.mask_bR]
        values.put(rows_b, batch, network(batch, features_NH))
        if known_BRH is None and not network.trains_trunk:
            features.put(rows_b, batch, features_NH)
    if network.trains_trunk:
        return values.values, None
    return values.values, features.values if known_BRH is None else known_BRH
