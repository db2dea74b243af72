"""RL-CAI: from the SL model, against what rewards it (Bai et al. 2022, section 4).

Puts the pieces of ``ppo`` together. Knows nothing of the run directory's layout or of how the
reward model was trained. Imports no trl, which alone takes seconds.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast
from uuid import uuid4

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solon.chat import Conversation
from solon.constitution import derive_seed
from solon.trainer.errors import ConfigError
from solon.trainer.fleet import Weights
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.loop import PPO
from solon.trainer.ppo.networks import Policy, ValueNetwork, WithoutAdapter
from solon.trainer.ppo.rewards import WeightedReward
from solon.trainer.ppo.watch import Watch
from solon.trainer.ranks import from_first, rank
from solon.trainer.sharding import shard
from solon.trainer.snapshots import snapshot_folder
from solon.trainer.stages.adapters import (
    attach,
    finished,
    frozen_dtype,
    loaded_dtype,
    prepared,
    write_weights,
)
from solon.trainer.stages.episode_log import EpisodeLog
from solon.trainer.stages.modeling import (
    ChatEncoder,
    Messages,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    read_columns,
    save_model,
    stop_ids,
)
from solon.trainer.stages.policy_answers import PolicyAnswers, Served
from solon.trainer.stages.rewards import RewardModel, Sources, reward_of
from solon.trainer.stages.scoring import SharedTrunkScorer
from solon.trainer.store import Parts
from solon.trainer.training import Report

_CHECKPOINT = "batch-"


def train_rl(
    config: PPOConfig,
    *,
    base_model: str,
    sources: Sources,
    data: Path,
    output: Path,
    checkpoints: Path,
    episodes: Parts,
    seed: int,
    report: Report,
    iteration: int = 1,
    answers: PolicyAnswers | None = None,
) -> dict[str, float]:
    """Train ``base_model`` (the SL model) by RL and publish the result at ``output``.

    Args:
        config: All that can be set.
        base_model: What the policy starts from, and is kept close to.
        sources: What scores its responses.
        data: Parquet with ``id``, and ``prompt``: ``{"role", "content"}``s that end with the user.
        output: Where the model's directory appears.
        checkpoints: A directory of this stage alone; the last checkpoint in it is gone on from.
        episodes: Gets a record of each episode (``schemas.EPISODES``).
        seed: In [0, 2**64); same seed, same model.
        report: Told of every batch.
        iteration: Of the run, which the episodes' ids name.
        answers: The policy service, where it samples: on the first process.

    Returns:
        The last batch's metrics; empty if a checkpoint held all batches.

    Raises:
        ConfigError: A model cannot be loaded or used, or prompts exceed its context.
        RunDirectoryError: There are no prompts, or the reward model's scale is missing.
        StoreError: The episodes cannot be written.
    """
    tokenizer = load_tokenizer(base_model)
    columns = read_columns(data, ["id", "prompt"])
    messages = cast("list[Messages]", columns["prompt"])
    lm = load_causal_lm(base_model, dtype=loaded_dtype(config))
    torch.manual_seed(derive_seed(seed, "rl-networks") >> 1)
    learner = prepared(lm, config, task="CAUSAL_LM", key="rl")
    publish = _publisher(learner, config, checkpoints / "weights", base_model)
    served = partial(_served, config, answers, publish, messages)
    ppo = _build(config, lm, base_model, sources, tokenizer, messages, seed, served)
    watch = Watch(config.guards.watch_batches)
    ppo.accelerator.register_for_checkpointing(watch)
    _resume(ppo, checkpoints)
    report.start(ppo.batches_done)
    log = EpisodeLog(
        episodes,
        prompt_ids=cast("list[str]", columns["id"]),
        tokenizer=tokenizer,
        judge=sources.judge,
        share=config.kept_episodes,
        seed=seed,
        iteration=iteration,
    )
    log.start(ppo)
    metrics: dict[str, float] = {}
    while not ppo.is_over:
        metrics = ppo.step()
        log.add(ppo.episodes)
        warning = watch.add(metrics)
        report.progress(ppo.batches_done, config.batches, metrics)
        _tell(report, [warning] if warning else [])
        if config.snapshots_every and ppo.batches_done % config.snapshots_every == 0:
            folder = snapshot_folder(output, ppo.batches_done)
            sharded = config.sharding == "full"
            _publish(folder, learner if sharded else copy.deepcopy(learner), config, tokenizer)
        if ppo.batches_done % config.checkpoint_every == 0:
            log.settle()
            _checkpoint(ppo, checkpoints)
    log.settle()
    # once there is a model nothing is made again: so the episodes of all processes come first
    ppo.accelerator.wait_for_everyone()
    _tell(report, [*_ending(ppo), *watch.summary()])
    _publish(output, learner, config, tokenizer)
    return metrics


def _publish(
    directory: Path,
    learner: PreTrainedModel | PeftModel,
    config: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Leave the policy as a model; ``learner`` is used up. Called by every process."""
    published, adapter = finished(learner, config)
    if rank() == 0:
        save_model(directory, published, tokenizer, adapter=adapter)


def _ending(ppo: PPO) -> list[str]:
    if not ppo.is_too_far:
        return []
    return [
        f"rl: training ends at batch {ppo.batches_done} of {ppo.config.batches}, which was not "
        f"learned from: the policy is further from the SL model than rl.guards.kl_limit = "
        f"{ppo.config.guards.kl_limit!r} nats a response allows"
    ]


def _tell(report: Report, lines: Sequence[str]) -> None:
    for line in lines:
        report.message(line)


def _build(
    config: PPOConfig,
    lm: PreTrainedModel,
    base_model: str,
    sources: Sources,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Messages],
    seed: int,
    served: Callable[[Sequence[Sequence[int]], Sequence[int]], Served | None],
) -> PPO:
    stops = stop_ids(lm, tokenizer)
    prompts = ChatEncoder(tokenizer, stops).prompts(messages)
    _check_context(lm, prompts, config)
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bfloat16" else "no",
        # accelerate knows several processes on a CPU only if it is told to stay there
        cpu=not torch.cuda.is_available(),
    )
    if config.gradient_checkpointing:
        lm.gradient_checkpointing_enable()
    try:
        policy = Policy(lm)
        if config.sharding == "full":
            # at once: as long as it is whole each process has all of it in the machine's memory
            shard(policy, lm, config)
        device = torch.device(sources.reward_device or accelerator.device)
        model = _reward_model(config, sources.reward_model, device)
        test_model = _reward_model(config, sources.test_model, device)
        reward = reward_of(config, sources, model, test_model, tokenizer, messages)
        value = None
        if config.has_value_network:
            value = _value_network(config, base_model, tokenizer, model, reward)
        reference = WithoutAdapter(policy) if config.lora else _reference(base_model, config)
        return PPO(
            config,
            policy=policy,
            reference=reference,
            value=value,
            reward=reward,
            prompts=prompts,
            stop_ids=stops,
            pad_id=tokenizer.pad_token_id,
            seed=seed,
            accelerator=accelerator,
            answering=served(prompts, stops),
        )
    except ValueError as error:
        # an architecture or a batch size that does not fit: the sentence says which and why
        raise ConfigError(f"rl: {error}") from error


def _served(
    config: PPOConfig,
    answers: PolicyAnswers | None,
    publish: Callable[[int], Weights],
    messages: Sequence[Messages],
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
) -> Served | None:
    """What samples, if it is not the trainer; ``prompts`` are the messages' tokens."""
    if not config.is_served:
        return None
    return Served(
        answers,
        publish=publish,
        share=from_first,
        prompts=[Conversation.from_dicts(prompt) for prompt in messages],
        prompt_tokens=[len(prompt) for prompt in prompts],
        each=config.responses_per_prompt,
        stop_ids=stops,
    )


def _publisher(
    learner: PreTrainedModel | PeftModel, config: PPOConfig, folder: Path, base_model: str
) -> Callable[[int], Weights]:
    """Leaves the policy, before so many updates, where a service can read it.

    Called by every process. The weights have a name of their own in every attempt at the stage, so
    that a service never takes those of another for them.
    """
    attempt = uuid4().hex[:12]
    full = Weights(version=f"sl-{attempt}", path=str(Path(base_model).resolve()))

    def publish(batch: int) -> Weights:
        here = folder.resolve() / f"batch-{batch}"
        if rank() == 0:
            # those of the batch before have sampled it
            shutil.rmtree(folder, ignore_errors=True)
        write_weights(here, learner, config)
        onto = full if config.lora is not None else None
        return Weights(version=f"rl-{attempt}-{batch}", path=str(here), onto=onto)

    return publish


def _reference(base_model: str, config: PPOConfig) -> Policy:
    found = Policy(load_causal_lm(base_model, dtype=frozen_dtype(config)))
    if config.sharding == "full":
        shard(found, found.lm, config)
    return found


def _check_context(
    lm: PreTrainedModel, prompts: Sequence[Sequence[int]], config: PPOConfig
) -> None:
    context = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(prompt) for prompt in prompts)
    if context is not None and longest + config.max_response_tokens > context:
        raise ConfigError(
            f"rl.max_response_tokens: expected at most {context - longest}, the model's context of "
            f"{context} tokens less the longest prompt's {longest}, got "
            f"{config.max_response_tokens!r}"
        )


def _reward_model(config: PPOConfig, path: str | None, device: torch.device) -> RewardModel | None:
    if path is None:
        return None
    return RewardModel.load(
        path,
        normalise=config.normalise_reward,
        dtype=frozen_dtype(config),
        device=device,
    )


def _value_network(
    config: PPOConfig,
    base_model: str,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: RewardModel | None,
    reward: WeightedReward,
) -> ValueNetwork:
    """It needs the policy's tokens: it starts as a reward model that has them, else as the SL.

    The reward model itself is used where its trunk stays as it is, and a copy where it learns.
    """
    full = config.value_network == "full"
    mean, std = 0.0, 1.0
    if reward_model is None or not reward_model.reads(tokenizer):
        start = load_reward_model(
            base_model, pad_id=tokenizer.pad_token_id, dtype=frozen_dtype(config)
        )
    else:
        start = copy.deepcopy(reward_model.model) if full else reward_model.model
        if reward_model.statistics is not None:
            mean, std = reward_model.statistics.mean, reward_model.statistics.std
    if full and config.lora is None:
        start = start.float()
    scorer = reward.functions.get("model")
    shared = {"known": scorer.features} if isinstance(scorer, SharedTrunkScorer) else {}
    value = ValueNetwork(start, mean=mean, std=std, train_trunk=full, **shared)
    if full and config.lora is not None:
        attach(value.trunk, config.lora, task=None, key="rl.lora")
    if full and config.gradient_checkpointing:
        value.trunk.gradient_checkpointing_enable()
    if full and config.sharding == "full":
        # a frozen trunk is the reward model's, which stays whole on every process
        shard(value, value.trunk, config, exact=value.head)
        register_fsdp_forward_method(value, "features")
    return value


def _resume(ppo: PPO, checkpoints: Path) -> None:
    whole = [path for path in checkpoints.glob(f"{_CHECKPOINT}*") if path.suffix == ""]
    if whole:
        ppo.load(max(whole, key=lambda path: int(path.name.removeprefix(_CHECKPOINT))))


def _checkpoint(ppo: PPO, checkpoints: Path) -> None:
    """Save, in one piece; then drop the one before. Called by every process."""
    newest = checkpoints / f"{_CHECKPOINT}{ppo.batches_done}"
    temporary = newest.with_suffix(".tmp")
    if ppo.accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    ppo.accelerator.wait_for_everyone()
    ppo.save(temporary)
    ppo.accelerator.wait_for_everyone()
    if ppo.accelerator.is_main_process:
        # there may be one from a run that was not killed but started anew
        shutil.rmtree(newest, ignore_errors=True)
        temporary.replace(newest)
        for path in checkpoints.glob(f"{_CHECKPOINT}*"):
            if path != newest:
                shutil.rmtree(path)
