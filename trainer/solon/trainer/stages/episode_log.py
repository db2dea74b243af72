"""Episodes of RL as records, in the order in which they are made, written while training goes on.

A part is named for the batch that it ends with and the process that sampled it, and none spans a
checkpoint: after a kill the parts of batches that will be made again are removed, and come again as
they were. Knows nothing of rewards or networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from solon.client import FinishReason
from solon.constitution import derive_seed
from solon.trainer.ppo.episodes import Episodes, Outcomes
from solon.trainer.ppo.loop import PPO
from solon.trainer.stages.judge_scores import Judge, Judged
from solon.trainer.stages.scoring import response_texts
from solon.trainer.steps import marked
from solon.trainer.store import Parts, Record

_PART_RECORDS = 2_000
"""Records in memory from which on a part is written."""


class EpisodeLog:
    """The episodes of one process of the stage."""

    def __init__(
        self,
        parts: Parts,
        *,
        prompt_ids: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        judge: Judge | None,
        share: float,
        seed: int,
        iteration: int,
    ) -> None:
        """Write nothing yet.

        Args:
            parts: Where records of ``schemas.EPISODES`` go.
            prompt_ids: Of all prompts of RL, in their order.
            tokenizer: The policy's.
            judge: Whose words on a batch are kept with its episodes, if one rewards them.
            share: Part of the episodes to keep, in [0, 1].
            seed: Of the draw of those that are kept.
            iteration: Of the run, from 1.
        """
        self._parts, self._prompt_ids, self._tokenizer = parts, prompt_ids, tokenizer
        self._judge, self._share, self._seed = judge, share, seed
        self._iteration = iteration
        self._process = 0
        self._ready: list[Record] = []
        self._batch = 0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def start(self, ppo: PPO) -> None:
        """Training starts or goes on: remove what any process has of batches yet to be made.

        Called by every process; returns when that is done.

        Raises:
            StoreError: A part cannot be removed.
        """
        self._process = ppo.accelerator.process_index
        if ppo.accelerator.is_main_process:
            for name in self._parts.names():
                if int(name.split("-")[1]) > ppo.batches_done:
                    self._parts.remove(name)
        ppo.accelerator.wait_for_everyone()

    def add(self, episodes: Episodes) -> None:
        """Take a batch.

        Raises:
            StoreError: The part before could not be written.
        """
        self._ready += self._records(episodes)
        self._batch = episodes.batch
        if len(self._ready) >= _PART_RECORDS:
            self._write()

    def settle(self) -> None:
        """Have all that was taken on the disk.

        Raises:
            StoreError: A part could not be written.
        """
        self._write()
        self._wait()

    def _write(self) -> None:
        # one at a time, so that no more than two parts are ever in memory
        self._wait()
        if self._ready:
            name = f"part-{self._batch:06d}-{self._process:04d}"
            self._writing = self._thread.submit(self._parts.write, name, self._ready)
            self._ready = []

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _records(self, episodes: Episodes) -> list[Record]:
        texts = response_texts(episodes.samples, self._tokenizer)
        said = self._judge.last if self._judge else [Judged()] * len(texts)
        figures = _figures(episodes)
        records: list[Record] = []
        for place, row in enumerate(episodes.prompt_rows):
            if not self._is_kept(episodes.batch, row):
                continue
            number, prompt_id = episodes.first + place, self._prompt_ids[row]
            head = {
                "id": marked(f"{prompt_id}:e{number}", self._iteration),
                "prompt_id": prompt_id,
                "episode": number,
                "batch": episodes.batch,
                "seed": episodes.seed,
                "place": episodes.place + place,
                "response": texts[place],
                "no_score_reason": said[place].no_score_reason,
                "judgements": said[place].judgements,
            }
            records.append(head | figures[place])
        return records

    def _is_kept(self, batch: int, prompt_row: int) -> bool:
        """Responses to one prompt in one batch stay together: they are compared."""
        return derive_seed(self._seed, "episodes", batch, prompt_row) < self._share * 2**64


def _figures(episodes: Episodes) -> list[dict[str, Any]]:
    """Of each episode, all that is a number."""
    samples, outcomes = episodes.samples, episodes.outcomes
    weights = outcomes.scores.weights
    scores = {name: _numbers(found_B) for name, found_B in outcomes.scores.by_source.items()}
    totals = _numbers(outcomes.scores.total_B)
    learned = _learned(outcomes)
    found = []
    for place, (tokens, ended) in enumerate(
        zip(samples.response_lengths_B.tolist(), samples.ended_B.tolist(), strict=True)
    ):
        one: dict[str, Any] = {
            "finish_reason": (FinishReason.STOP if ended else FinishReason.LENGTH).value,
            "tokens": tokens,
            "scores": [
                {"source": name, "weight": weights.get(name), "score": values[place]}
                for name, values in scores.items()
            ],
            "score": totals[place],
            "kl_coefficient": episodes.kl_coefficient,
        }
        counted = totals[place] is not None
        one |= {name: values[place] if counted else None for name, values in learned.items()}
        found.append(one)
    return found


def _learned(outcomes: Outcomes) -> dict[str, list[Any]]:
    """Column -> what means nothing for an episode without a score."""
    penalties = {name: _numbers(taken_B) for name, taken_B in outcomes.penalties.items()}
    return {
        "penalties": [
            [{"guard": n, "penalty": p} for n, p in zip(penalties, taken, strict=True)]
            for taken in zip(*penalties.values(), strict=True)
        ],
        "logprob": _numbers(outcomes.logprobs_B),
        "reference_logprob": _numbers(outcomes.reference_B),
        "kl": _numbers(outcomes.logprobs_B - outcomes.reference_B),
        "reward": _numbers(outcomes.rewards_B),
        "advantage": _numbers(outcomes.advantages_B),
    }


def _numbers(values_B: Tensor) -> list[float | None]:
    found: list[float] = values_B.tolist()
    return [value if math.isfinite(value) else None for value in found]
