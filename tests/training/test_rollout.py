"""What is sampled, and what the networks say of it, against transformers' own results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GraniteConfig,
    MistralConfig,
    PreTrainedModel,
)

from solon.trainer.ppo.networks import (
    Policy,
    ValueNetwork,
    response_logprobs,
    response_values,
)
from solon.trainer.ppo.rollout import sample
from solon.trainer.ppo.samples import Samples, micro_batches
from solon.trainer.stages.scoring import RewardModelScorer, RewardStatistics, SharedTrunkScorer

PROMPTS = [[2, 7, 9, 3], [2, 5, 3], [2, 8, 8, 12, 20, 3], [2, 6, 3], [2, 11, 4, 3]] * 4
MakeLm = Callable[..., PreTrainedModel]


def take(lm: PreTrainedModel, prompts: list[list[int]] = PROMPTS, **changes: Any) -> Samples:
    settings: dict[str, Any] = {
        "max_tokens": 12,
        "temperature": 1.0,
        "stop_ids": [1, 5],
        "pad_id": 0,
        "generator": torch.Generator().manual_seed(4),
    }
    return sample(lm, prompts, **(settings | changes))


def responses(samples: Samples) -> list[list[int]]:
    return [
        row[start:end].tolist()
        for row, start, end in zip(
            samples.ids_BT,
            samples.prompt_lengths_B.tolist(),
            samples.lengths_B.tolist(),
            strict=True,
        )
    ]


def full_logprobs(lm: PreTrainedModel, samples: Samples, temperature: float) -> list[Tensor]:
    """One plain forward pass an episode, without padding or cache."""
    found = []
    for row, start, end in zip(
        samples.ids_BT, samples.prompt_lengths_B.tolist(), samples.lengths_B.tolist(), strict=True
    ):
        with torch.no_grad():
            logits = lm(input_ids=row[:end].unsqueeze(0)).logits[0]
        logprobs = (logits / temperature).log_softmax(dim=-1)
        found.append(logprobs[start - 1 : end - 1].gather(1, row[start:end, None]).squeeze(1))
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_a_full_forward_pass(
    make_lm: MakeLm, temperature: float
) -> None:
    lm = make_lm()
    samples = take(lm, temperature=temperature)
    assert len(set(samples.response_lengths_B.tolist())) > 3, "lengths should differ"
    for row, expected in enumerate(full_logprobs(lm, samples, temperature)):
        found = samples.logprobs_BR[row]
        torch.testing.assert_close(found[: len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert not found[len(expected) :].any()


@pytest.mark.parametrize("logits_at_once", [2**24, 90])
def test_policy_logprobs_are_those_of_a_full_forward_pass(
    make_lm: MakeLm, logits_at_once: int
) -> None:
    lm = make_lm()
    samples = take(lm)
    policy = Policy(lm, logits_at_once=logits_at_once)
    found = response_logprobs(policy, samples, temperature=0.7, micro_batch_size=3)
    for row, expected in enumerate(full_logprobs(lm, samples, 0.7)):
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_logits_in_blocks_give_the_same_gradients(make_lm: MakeLm) -> None:
    gradients = []
    for logits_at_once in (2**24, 90):
        lm = make_lm()
        samples = take(lm)
        policy = Policy(lm, logits_at_once=logits_at_once)
        policy(samples.batch(torch.arange(len(PROMPTS))), 1.0)[0].sum().backward()
        gradients.append([p.grad for p in lm.parameters()])
    for whole, blocks in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, blocks, atol=1e-5, rtol=1e-4)


def test_greedy_sampling_is_what_generate_gives(make_lm: MakeLm) -> None:
    lm = make_lm(seed=1)
    # spread the logits, so that no tie decides
    lm.get_input_embeddings().weight.data.mul_(20)  # type: ignore[operator]
    found = responses(take(lm, temperature=0.0))
    for prompt, response in zip(PROMPTS, found, strict=True):
        expected = lm.generate(  # type: ignore[operator]
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=[1, 5],
            attention_mask=torch.ones(1, len(prompt)),
        )  # fmt: skip
        assert response == expected[0, len(prompt) :].tolist()


def test_a_response_ends_with_a_stop_token_or_was_cut(make_lm: MakeLm) -> None:
    samples = take(make_lm(), max_tokens=9)
    ended = samples.ended_B.tolist()
    assert True in ended
    assert False in ended
    for response, has_ended in zip(responses(samples), ended, strict=True):
        assert not {1, 5} & set(response[:-1])
        assert (response[-1] in {1, 5}) is has_ended
        assert has_ended or len(response) == 9


def test_longer_prompts_in_the_batch_change_no_response_and_no_logprob(make_lm: MakeLm) -> None:
    lm = make_lm()
    alone = take(lm)
    padded = take(lm, [*PROMPTS, [2] + [9] * 40 + [3]])
    assert responses(padded)[:-1] == responses(alone)
    width = alone.logprobs_BR.shape[1]
    torch.testing.assert_close(
        padded.logprobs_BR[:-1, :width], alone.logprobs_BR, atol=1e-6, rtol=1e-5
    )


def test_a_prompt_that_comes_several_times_is_read_once_and_without_padding(
    make_lm: MakeLm,
) -> None:
    lm = make_lm()
    read: list[int] = []
    lm.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    long = [2] + [9] * 60 + [3]
    samples = take(lm, [*PROMPTS, long], max_tokens=1)
    assert sum(read) < 2 * sum(map(len, PROMPTS[:5])) + len(long)
    expected = full_logprobs(lm, samples, 1.0)
    found = samples.logprobs_BR[:, :1]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_a_model_that_forgets_what_is_far_away_is_sampled_as_it_is() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    lm = AutoModelForCausalLM.from_config(config).eval()
    samples = take(lm, [*PROMPTS, [2] + [9] * 9 + [3]])
    for row, expected in enumerate(full_logprobs(lm, samples, 1.0)):
        found = samples.logprobs_BR[row, : len(expected)]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_sampling_follows_the_models_distribution(make_lm: MakeLm) -> None:
    lm = make_lm()
    count = 6000
    samples = take(lm, [PROMPTS[0]] * count, max_tokens=1)
    drawn = torch.bincount(samples.ids_BT[:, len(PROMPTS[0])], minlength=lm.config.vocab_size)
    with torch.no_grad():
        expected = lm(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(dim=-1)
    # five standard deviations of a share
    bound = 5 * (expected * (1 - expected) / count).sqrt()
    assert ((drawn / count - expected).abs() < bound).all()


def test_a_policy_whose_logits_are_scaled_is_refused() -> None:
    config = GraniteConfig(
        vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, logits_scaling=4.0,
    )  # fmt: skip
    granite = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="GraniteForCausalLM"):
        Policy(granite)


@pytest.mark.parametrize("train_trunk", [True, False])
def test_values_start_as_the_normalised_score_of_the_unfinished_response(
    make_lm: MakeLm, train_trunk: bool
) -> None:
    config = make_lm().config
    config.num_labels = 1
    torch.manual_seed(2)
    reward = AutoModelForSequenceClassification.from_config(config).eval()
    samples = take(make_lm())
    # computed first: the network takes the reward model over
    with torch.no_grad():
        expected = [
            reward.score(reward.model(input_ids=row[None, :end]).last_hidden_state)[0, :, 0]
            for row, end in zip(samples.ids_BT, samples.lengths_B.tolist(), strict=True)
        ]
    network = ValueNetwork(reward, mean=0.3, std=2.0, train_trunk=train_trunk)
    values, features = response_values(network, samples, micro_batch_size=4)
    assert (features is None) is train_trunk
    for row, scores in enumerate(expected):
        start, end = int(samples.prompt_lengths_B[row]), int(samples.lengths_B[row])
        torch.testing.assert_close(
            values[row, : end - start],
            (scores[start - 1 : end - 1] - 0.3) / 2,
            atol=1e-5,
            rtol=1e-4,
        )
        assert not values[row, end - start :].any()


def test_a_reward_model_that_values_stand_on_reads_each_episode_once(make_lm: MakeLm) -> None:
    config = make_lm().config
    config.num_labels = 1
    torch.manual_seed(2)
    reward = AutoModelForSequenceClassification.from_config(config).eval()
    samples = take(make_lm())
    statistics = RewardStatistics(mean=0.3, std=2.0, responses=2)
    alone = RewardModelScorer(reward, statistics, micro_batch_size=4)([], samples)
    shared = SharedTrunkScorer(reward, statistics, micro_batch_size=4)
    values = ValueNetwork(reward, mean=0.3, std=2.0, train_trunk=False, known=shared.features)
    expected = response_values(values, samples, micro_batch_size=4)
    torch.testing.assert_close(shared([], samples), alone, atol=1e-6, rtol=1e-5)
    read: list[int] = []
    reward.model.register_forward_hook(lambda *_: read.append(1))
    torch.testing.assert_close(response_values(values, samples, micro_batch_size=3), expected)
    assert not read
    response_values(values, take(make_lm(), max_tokens=3), micro_batch_size=4)
    assert read, "of others it knows nothing"


def test_a_model_that_gives_no_numbers_is_not_sampled_from(make_lm: MakeLm) -> None:
    lm = make_lm()
    lm.get_input_embeddings().weight.data.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        take(lm)


def test_micro_batches_hold_every_row_once_and_are_cut_where_rows_are_longer() -> None:
    lengths = torch.tensor([8, 900, 9] * 4 + [10, 2000])
    groups = micro_batches(lengths, 8)
    assert [len(group) for group in groups] == [4, 5, 4, 1]
    assert torch.equal(lengths[torch.cat(groups)], lengths.sort().values)
    more = micro_batches(lengths, 8, least=6)
    assert len(more) == 6
    assert sorted(torch.cat(more).tolist()) == list(range(14))
    assert all(len(group) == 1 for group in micro_batches(lengths, 1))
