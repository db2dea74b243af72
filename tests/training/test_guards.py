"""What a response pays for, and when train and held-out reward have parted."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from pydantic import ValidationError
from torch import tensor

from solon.trainer.ppo import guards
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.samples import Samples
from solon.trainer.ppo.watch import Watch


def samples(*responses: list[int]) -> Samples:
    """Each after a prompt of two tokens, which must not count."""
    longest = max(map(len, responses))
    return Samples(
        ids_BT=tensor([[7, 7, *row, *[7] * (longest - len(row))] for row in responses]),
        prompt_lengths_B=torch.full((len(responses),), 2),
        response_lengths_B=tensor([len(row) for row in responses]),
        logprobs_BR=torch.zeros(len(responses), longest),
        ended_B=torch.ones(len(responses), dtype=torch.bool),
    )


def test_repetition_is_the_share_of_trigrams_that_were_there_before() -> None:
    # 1 2 3 1 2 3 1: trigrams 123 231 312 123 231, of which two were there; 5 x 7: 4 of 5
    found = guards.repetition_shares(
        samples([1, 2, 3, 1, 2, 3, 1], [5] * 7, [1, 2, 3, 4, 5, 6, 8], [7, 7])
    )
    torch.testing.assert_close(found, tensor([0.4, 0.8, 0.0, 0.0]))
    above = guards.excess_repetition(found, tolerance=0.5)
    torch.testing.assert_close(above, tensor([0.0, 0.3, 0.0, 0.0]))


def test_length_costs_alike_in_both_directions_and_nothing_within_the_tolerance() -> None:
    lengths = tensor([10.0, 20.0, 5.0, 40.0, 2.5, 0.0])
    found = guards.length_excess(lengths, usual=10.0, tolerance=1.0)
    torch.testing.assert_close(found[:3], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[3:5], tensor([math.log(2), math.log(2)]))
    assert found.isfinite().all()


def row(batch: int, train: float, test: float | None) -> dict[str, float]:
    made = {"objective/sqrt_kl": batch / 10, "objective/scores": train}
    return made if test is None else made | {"objective/test_scores": test}


def told(watch: Watch, slope: float | None, batches: range) -> list[int]:
    """The batches at which it warns; the train score rises, the held-out one has the slope."""
    noise = random.Random(3)
    found = []
    for batch in batches:
        test = None if slope is None else slope * batch + noise.gauss(0, 0.1)
        if watch.add(row(batch, 0.1 * batch + noise.gauss(0, 0.1), test)):
            found.append(batch)
    return found


@pytest.mark.parametrize("slope", [0.05, 0.0, None])
def test_scores_that_do_not_part_are_no_warning(slope: float | None) -> None:
    assert told(Watch(10), slope, range(60)) == []


def test_a_held_out_score_that_falls_while_the_reward_rises_is_told_once_a_window() -> None:
    watch = Watch(5)
    assert told(watch, 0.1, range(10)) == []
    kept = Watch(5)
    kept.load_state_dict(watch.state_dict())
    found = told(watch, -0.1, range(10, 40))
    assert found
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(found))
    assert told(kept, -0.1, range(10, 40)) == found, "a resumed run should warn at the same batches"


def test_the_summary_holds_reward_against_distance_from_first_to_last() -> None:
    watch = Watch(5)
    for batch in range(21):
        watch.add(row(batch, 2.0 * batch, 1.0))
    head, *lines = watch.summary()
    assert head.split() == ["rl:", "sqrt(KL)", "reward", "held-out"]
    found = [[float(part) for part in line.split()[1:]] for line in lines]
    assert found[0] == [0.0, 0.0, 1.0]
    assert found[-1] == [2.0, 40.0, 1.0]
    assert len(found) == 6


def test_more_snapshots_than_a_disk_should_hold_are_refused() -> None:
    def every(batches: int) -> PPOConfig:
        return PPOConfig(episodes=640, batch_size=8, minibatches=1, snapshots_every=batches)

    assert every(3).snapshots_every == 3
    with pytest.raises(ValidationError, match="snapshots_every: expected at least 3"):
        every(2)
