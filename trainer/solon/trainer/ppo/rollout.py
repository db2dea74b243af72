"""Episodes: how they are sampled, and what policy, reference and value network say of them.

Shapes: B episodes, b of them in a micro-batch, P tokens of the longest prompt, R of the longest
response, T of the longest sequence, N real response tokens of a micro-batch row by row, H hidden,
V vocabulary. Sequences are prompt, response, padding on the right: under causal attention no real
token sees any padding, and every tensor [N] has none.

Knows nothing of rewards, advantages, optimisers, files or conversations.
"""

# ruff: noqa: N802 - a tensor's name ends with its shape
from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from solon.trainer.ppo.memory import without_adapters

_COMPACT_BELOW = 0.85
"""Finished rows leave the sampling batch once the share of running ones is below this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Some episodes as a network reads them, and where their response tokens are predicted."""

    ids_bT: Tensor
    row_N: Tensor
    column_N: Tensor
    """The position *before* each response token."""
    target_N: Tensor
    mask_bR: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Sampled responses, the token that ends the turn included."""

    ids_BT: Tensor
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    """Tokens, each >= 1 when it was sampled; 0 takes an episode out of whatever is learned."""
    logprobs_BR: Tensor
    """Under the sampling policy, at its temperature; 0 on padding."""
    ended_B: Tensor
    """False where the response was cut."""

    @property
    def mask_BR(self) -> Tensor:
        """True on real response tokens."""
        return _mask(self.response_lengths_B, self.logprobs_BR.shape[1])

    @property
    def lengths_B(self) -> Tensor:
        """Tokens of prompt and response together."""
        return self.prompt_lengths_B + self.response_lengths_B

    def responses(self) -> list[list[int]]:
        """The tokens of each response."""
        return [
            row[start:end].tolist()
            for row, start, end in zip(
                self.ids_BT,
                self.prompt_lengths_B.tolist(),
                self.lengths_B.tolist(),
                strict=True,
            )
        ]

    def batch(self, rows_b: Tensor) -> TokenBatch:
        """Those episodes, without the columns that are padding for all of them."""
        prompts_b, responses_b = self.prompt_lengths_B[rows_b], self.response_lengths_B[rows_b]
        ids_bT = self.ids_BT[rows_b, : int((prompts_b + responses_b).max())]
        mask_bR = _mask(responses_b, self.logprobs_BR.shape[1])
        row_N, offset_N = mask_bR.nonzero(as_tuple=True)
        column_N = prompts_b[row_N] + offset_N - 1
        return TokenBatch(
            ids_bT=ids_bT,
            row_N=row_N,
            column_N=column_N,
            target_N=ids_bT[row_N, column_N + 1],
            mask_bR=mask_bR,
        )


def _mask(lengths_B: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(1)


def micro_batches(lengths_B: Tensor, size: int) -> list[Tensor]:
    """The rows in groups of at most ``size``, of like length, so that little is padding."""
    return list(torch.split(lengths_B.argsort(stable=True), size))


class Policy(nn.Module):
    """A causal language model, read as log-probabilities of response tokens.

    The head is applied to response positions alone, so logits [B, T, V] never exist.
    """

    def __init__(self, lm: PreTrainedModel, *, logits_at_once: int = 2**24) -> None:
        """Wrap ``lm``.

        ``logits_at_once``: elements of the largest block of logits in memory. If there are more,
        they are computed block by block, and once more for the gradients.

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
        if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3):
            raise ValueError(
                "expected a model whose logits are a linear map of its hidden states, got "
                f"{type(lm).__name__!r}, which changes them afterwards; use another architecture"
            )

    def _hidden(self, ids_bT: Tensor) -> Tensor:
        hidden: Tensor = self.lm.base_model(input_ids=ids_bT, use_cache=False).last_hidden_state
        return hidden

    def _head(self) -> nn.Module:
        head: nn.Module = self.lm.get_output_embeddings()
        return head

    def forward(self, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token, and entropy before it: [N] each, in nats.

        The entropy carries no gradient.
        """
        hidden_NH = self._hidden(batch.ids_bT)[batch.row_N, batch.column_N]
        head = self._head()
        step = max(1, self._logits_at_once // self.lm.config.get_text_config().vocab_size)
        if len(hidden_NH) <= step:
            return _logprobs(hidden_NH, batch.target_N, head, temperature)
        chunks = [
            checkpoint(_logprobs, hidden, target, head, temperature, use_reentrant=False)
            for hidden, target in zip(
                torch.split(hidden_NH, step), torch.split(batch.target_N, step), strict=True
            )
        ]
        logprobs, entropies = zip(*chunks, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)


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


def _logprobs(
    hidden_NH: Tensor, target_N: Tensor, head: nn.Module, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_NV = head(hidden_NH).float() / temperature
    normaliser_N = logits_NV.logsumexp(dim=-1)
    logprobs_N = logits_NV.gather(-1, target_N.unsqueeze(-1)).squeeze(-1) - normaliser_N
    with torch.no_grad():
        mean_logit_N = (logits_NV.softmax(dim=-1) * logits_NV).sum(dim=-1)
    return logprobs_N, normaliser_N.detach() - mean_logit_N


class ValueNetwork(nn.Module):
    """The expected score of an episode, read before each of its response tokens.

    Starts as the reward model: its score of an unfinished response is already a fair guess, which
    makes the first advantages worth something (Stiennon et al. 2020, section 3.4).
    """

    def __init__(
        self, reward_model: PreTrainedModel, *, mean: float, std: float, train_trunk: bool
    ) -> None:
        """Take over ``reward_model``, so that values start as (score - ``mean``) / ``std``.

        ``train_trunk`` false freezes all but the head, which is given a hidden layer instead; what
        the trunk says of an episode is then computed once and not in every epoch.

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
        self.trains_trunk = train_trunk
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
    out_BR = torch.zeros_like(samples.logprobs_BR)
    for rows_b in micro_batches(samples.lengths_B, micro_batch_size):
        batch = samples.batch(rows_b)
        _put(out_BR, rows_b, batch, policy(batch, temperature)[0])
    return out_BR


@torch.no_grad()
def response_values(
    network: ValueNetwork, samples: Samples, *, micro_batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """What ``network`` expects before each token of ``samples``, 0 on padding.

    Returns:
        Values [B, R]; and the features [B, R, H] behind them if the network's trunk is frozen.
    """
    values_BR, features_BRH = torch.zeros_like(samples.logprobs_BR), None
    for rows_b in micro_batches(samples.lengths_B, micro_batch_size):
        batch = samples.batch(rows_b)
        features_NH = network.features(batch)
        _put(values_BR, rows_b, batch, network(batch, features_NH))
        if not network.trains_trunk:
            if features_BRH is None:
                features_BRH = features_NH.new_zeros(*values_BR.shape, features_NH.shape[1])
            _put(features_BRH, rows_b, batch, features_NH)
    return values_BR, features_BRH


def _put(out_BR: Tensor, rows_b: Tensor, batch: TokenBatch, values_N: Tensor) -> None:
    """Lay values of real tokens out, by row; both may have further dimensions."""
    block_bR = out_BR.new_zeros(*batch.mask_bR.shape, *values_N.shape[1:])
    block_bR[batch.mask_bR] = values_N.to(out_BR.dtype)
    out_BR[rows_b] = block_bR


@torch.no_grad()
def sample(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    stop_ids: Collection[int],
    pad_id: int,
    generator: torch.Generator,
    first: int = 0,
) -> Samples:
    """Sample one response to each prompt, in one pass with a KV cache.

    Prompts are padded on the left; rows that finish leave the batch. A row's randomness depends on
    its place in the batch alone. Log-probabilities come from the forward pass that sampled.

    Args:
        lm: Called in evaluation mode.
        prompts: B token sequences, each at least one token.
        max_tokens: Tokens after which a response is cut, >= 1.
        temperature: >= 0; 0 takes the likeliest token (log-probabilities then at 1).
        stop_ids: Tokens that end a response, and are part of it.
        pad_id: What fills the rows up.
        generator: Of the CPU.
        first: The first prompt's place in the batch, where others sample what is before.

    Raises:
        FloatingPointError: The model's logits are not numbers.
    """
    uniform_BR = torch.rand(first + len(prompts), max_tokens, generator=generator)[first:]
    run = _Sampling(lm, prompts, uniform_BR, temperature, stop_ids, pad_id)
    while run.advance():
        pass
    return run.samples()


class _Sampling:
    """The rows that still run, and what was sampled so far."""

    def __init__(
        self,
        lm: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        uniform_BR: Tensor,
        temperature: float,
        stop_ids: Collection[int],
        pad_id: int,
    ) -> None:
        self._lm, self._prompts, self._pad_id = lm, prompts, pad_id
        count, max_tokens = uniform_BR.shape
        self._temperature, self._max_tokens = temperature, max_tokens
        device = lm.device
        self._stop = torch.tensor(sorted(stop_ids), device=device)
        self._uniform_BR = uniform_BR.to(device)
        self._responses_BR = torch.full((count, max_tokens), pad_id, device=device)
        self._logprobs_BR = torch.zeros(count, max_tokens, device=device)
        self._lengths_B = torch.full((count,), max_tokens, device=device)
        self._ended_B = torch.zeros(count, dtype=torch.bool, device=device)
        self._input_bt, self._seen_bt = _left_padded(prompts, pad_id, device)
        self._position_bt = (self._seen_bt.cumsum(dim=1) - 1).clamp(min=0)
        self._row_b = torch.arange(count, device=device)
        self._cache = DynamicCache(config=lm.config)
        self._step = 0

    def advance(self) -> bool:
        """Sample one token in every running row; false when there is nothing more to do."""
        logits_bV = self._lm(
            input_ids=self._input_bt,
            attention_mask=self._seen_bt,
            position_ids=self._position_bt,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        token_b, logprob_b = self._draw(logits_bV.float())
        running_b = ~self._ended_B[self._row_b]
        row_b = self._row_b[running_b]
        self._responses_BR[row_b, self._step] = token_b[running_b]
        self._logprobs_BR[row_b, self._step] = logprob_b[running_b]
        ended_b = row_b[torch.isin(token_b[running_b], self._stop)]
        self._ended_B[ended_b] = True
        self._lengths_B[ended_b] = self._step + 1
        self._step += 1
        if self._step == self._max_tokens or len(ended_b) == len(row_b):
            return False
        self._prepare(token_b, ~self._ended_B[self._row_b])
        return True

    def _draw(self, logits_bV: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_bV = (logits_bV / (self._temperature or 1.0)).log_softmax(dim=-1)
        if logprobs_bV.isnan().any():
            raise FloatingPointError(
                "the policy gives no probabilities any more, only not-a-number: training diverged; "
                "lower the learning rate"
            )
        if self._temperature == 0:
            token_b = logprobs_bV.argmax(dim=-1)
        else:
            mass_bV = logprobs_bV.exp().cumsum(dim=-1)
            uniform_b = self._uniform_BR[self._row_b, self._step]
            # strictly below the whole mass, so that no token of probability 0 is ever drawn
            goal_b = uniform_b * mass_bV[:, -1] * (1 - torch.finfo(torch.float32).eps)
            token_b = torch.searchsorted(mass_bV, goal_b.unsqueeze(1), right=True).squeeze(1)
        return token_b, logprobs_bV.gather(1, token_b.unsqueeze(1)).squeeze(1)

    def _prepare(self, token_b: Tensor, running_b: Tensor) -> None:
        seen_bt, position_b = self._seen_bt, self._position_bt[:, -1] + 1
        if int(running_b.sum()) < _COMPACT_BELOW * len(running_b):
            kept = running_b.nonzero().squeeze(1)
            self._cache.batch_select_indices(kept)
            self._row_b = self._row_b[kept]
            token_b, seen_bt, position_b = token_b[kept], seen_bt[kept], position_b[kept]
        self._input_bt, self._position_bt = token_b.unsqueeze(1), position_b.unsqueeze(1)
        self._seen_bt = torch.cat([seen_bt, torch.ones_like(seen_bt[:, :1])], dim=1)

    def samples(self) -> Samples:
        """What was sampled, prompts and responses side by side."""
        longest = int(self._lengths_B.max()) if self._step else 0
        lengths = self._lengths_B.tolist()
        rows = [
            torch.cat([torch.tensor(prompt, device=self._lm.device), response[:length]])
            for prompt, response, length in zip(
                self._prompts, self._responses_BR, lengths, strict=True
            )
        ]
        return Samples(
            ids_BT=nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad_id),
            prompt_lengths_B=torch.tensor([len(p) for p in self._prompts], device=self._lm.device),
            response_lengths_B=self._lengths_B,
            logprobs_BR=self._logprobs_BR[:, :longest],
            ended_B=self._ended_B,
        )


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)
