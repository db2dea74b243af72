"""Episodes: how they are sampled.

Shapes: B episodes, b of them still running, P tokens of the longest prompt, R of the longest
response, t tokens seen so far, V vocabulary.

Knows nothing of rewards, advantages, optimisers, files or conversations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from solon.trainer.ppo.cache import is_plain, joined, roomy_cache
from solon.trainer.ppo.samples import Samples, micro_batches

_COMPACT_BELOW = 0.85
"""Finished rows leave the sampling batch once the share of running ones is below this."""


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
        self._row_b = torch.arange(count, device=device)
        self._logits_bV, self._cache = _read(lm, prompts, pad_id)
        _, self._seen_bt = _left_padded(prompts, pad_id, device)
        self._position_b = self._seen_bt.sum(dim=1)
        self._step = 0

    def advance(self) -> bool:
        """Sample one token in every running row; false when there is nothing more to do."""
        token_b, logprob_b = self._draw(self._logits_bV.float())
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
        self._go_on(token_b, ~self._ended_B[self._row_b])
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

    def _go_on(self, token_b: Tensor, running_b: Tensor) -> None:
        """Read the new tokens, without the rows that have finished if they are many."""
        if int(running_b.sum()) < _COMPACT_BELOW * len(running_b):
            kept = running_b.nonzero().squeeze(1)
            self._cache.batch_select_indices(kept)
            self._row_b, token_b = self._row_b[kept], token_b[kept]
            self._seen_bt, self._position_b = self._seen_bt[kept], self._position_b[kept]
        self._seen_bt = torch.cat([self._seen_bt, torch.ones_like(self._seen_bt[:, :1])], dim=1)
        self._logits_bV = _forward(
            self._lm,
            token_b.unsqueeze(1),
            self._seen_bt,
            self._position_b.unsqueeze(1),
            self._cache,
        )
        self._position_b = self._position_b + 1

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


def _read(
    lm: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int
) -> tuple[Tensor, DynamicCache]:
    """The logits [B, V] of the first token of each response, and a cache of the prompts.

    A prompt that comes several times is read once. Where the model's cache allows it prompts of
    like length are read together; then all of them have padding on the left.
    """
    places: dict[tuple[int, ...], int] = {}
    row_B = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    distinct = list(places)
    groups = [torch.arange(len(distinct))]
    if is_plain(roomy_cache(lm)):
        groups = micro_batches(torch.tensor([len(prompt) for prompt in distinct]), len(distinct))
    logits, caches = [], []
    for group in groups:
        ids_bt, seen_bt = _left_padded([distinct[row] for row in group.tolist()], pad_id, lm.device)
        position_bt = (seen_bt.cumsum(dim=1) - 1).clamp(min=0)
        caches.append(roomy_cache(lm))
        logits.append(_forward(lm, ids_bt, seen_bt, position_bt, caches[-1]))
    places_B = torch.cat(groups).argsort()[torch.tensor(row_B)].to(lm.device)
    if len(caches) > 1:
        cache = joined(caches, places_B)
    else:
        (cache,) = caches
        cache.batch_select_indices(places_B)
    return torch.cat(logits)[places_B], cache


def _forward(
    lm: PreTrainedModel, ids_bt: Tensor, seen_bt: Tensor, position_bt: Tensor, cache: DynamicCache
) -> Tensor:
    """The logits [b, V] after the last token; ``cache`` gets the tokens."""
    logits_b1V: Tensor = lm(
        input_ids=ids_bt,
        attention_mask=seen_bt,
        position_ids=position_bt,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits_b1V[:, -1]


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)
