"""Which process takes how much memory on which device, stage by stage, and how long each stage is.

Follows what the coordinator starts and when. Knows nothing of files or of running services.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from solon.trainer.config import RunConfig
from solon.trainer.course import learns_by, roles, together
from solon.trainer.forecast import memory
from solon.trainer.forecast.hardware import (
    USABLE,
    Accelerator,
    generation_seconds,
    training_seconds,
)
from solon.trainer.forecast.memory import Learning, Parts
from solon.trainer.forecast.models import Model
from solon.trainer.forecast.workload import Calls, Training, Workload
from solon.trainer.launch.local import Role
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.roster import Place, roster
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.stages.settings import ServiceConfig
from solon.trainer.steps import Step
from solon.trainer.training import TrainingSettings, WeightSettings

_ROUNDING = 1.25
"""By how much the engine's cache is larger than what lies in it: it grows in steps."""
_SCORE_KEYS = 65_536
"""Tokens that the transformers engine has in its cache while it scores, unless told otherwise."""
_REWARD_MODEL = "reward model"
_VLLM_SHARE = 0.9
"""Of a device's memory that vLLM takes, unless told otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What one process takes of one device during a stage."""

    stage: Stage
    process: str
    device: int
    """Index of the accelerator; 0 also where there is none, and the machine's memory is meant."""
    parts: Parts

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Memory and time of a run."""

    uses: tuple[Use, ...]
    seconds: Mapping[Stage, float]
    """Stage -> how long; without those that no figure is known for."""
    unknown: tuple[str, ...]
    """What could not be estimated, and why: a sentence each."""

    def total(self, stage: Stage, device: int) -> int:
        """Bytes that all processes take on a device during a stage."""
        return sum(u.total for u in self.uses if (u.stage, u.device) == (stage, device))

    def most(self, device: int) -> tuple[Stage, int]:
        """The stage that takes most of a device, and its bytes."""
        stages = [stage for stage in STAGES if any(u.stage == stage for u in self.uses)]
        return max(
            ((stage, self.total(stage, device)) for stage in stages), key=lambda pair: pair[1]
        )

    @property
    def devices(self) -> tuple[int, ...]:
        """Those that are used."""
        return tuple(sorted({use.device for use in self.uses}))


def budget(
    config: RunConfig,
    work: Workload,
    models: Mapping[str, Model],
    gpus: Sequence[Accelerator],
) -> Budget:
    """Memory and time of the stages that ``work`` counts.

    Args:
        config: The run's.
        work: Of the stages.
        models: Key of ``models`` -> measures, for the models that are known.
        gpus: The devices; none: everything runs on the CPU, whose time is not estimated.
    """
    planner = _Planner(config, work, models, gpus)
    return Budget(
        uses=tuple(planner.uses()),
        seconds=dict(planner.seconds()) if gpus else {},
        unknown=tuple(dict.fromkeys(planner.unknown)),
    )


class _Planner:
    """Goes through the stages as the coordinator does."""

    def __init__(
        self,
        config: RunConfig,
        work: Workload,
        models: Mapping[str, Model],
        gpus: Sequence[Accelerator],
    ) -> None:
        self._config, self._work, self._models, self._gpus = config, work, models, gpus
        self._calls = {(one.stage, one.role): one for one in work.calls}
        self._trainings = {one.stage: one for one in work.trainings}
        self.unknown: list[str] = []

    def uses(self) -> Iterator[Use]:
        known = {stage for stage, _ in self._calls} | set(self._trainings)
        # every iteration takes the same
        steps = [Step(stage) for stage in STAGES if stage in known]
        running: Sequence[Place] = ()
        sharing: Sequence[Step] = ()
        for number, step in enumerate(steps):
            if step not in sharing:
                running, sharing = (), together(self._config, steps[number:])
            if roles(self._config, step.stage) and not running:
                left = [one for one in steps[number:] if one in sharing]
                wanted = {role for one in left for role in roles(self._config, one.stage)}
                running = tuple(roster(self._config, wanted))
            for place in running:
                yield from self._service_use(step.stage, place)
            if step.stage in self._trainings:
                yield from self._training_uses(self._trainings[step.stage])

    def seconds(self) -> Iterator[tuple[Stage, float]]:
        for stage in STAGES:
            of_stage = [one for (name, _), one in self._calls.items() if name == stage]
            spent = [self._call_seconds(one) for one in of_stage]
            if stage in self._trainings:
                spent.append(self._training_time(self._trainings[stage]))
            known = [seconds for seconds in spent if seconds is not None]
            if known:
                yield stage, sum(known)

    def _service_use(self, stage: Stage, place: Place) -> Iterator[Use]:
        service = place.service
        model = self._models.get(place.name)
        if not service.loads_model:
            return
        if model is None:
            self._not_here(place.model_key, place.model)
            return
        if service.engine not in ("transformers", "vllm"):
            self.unknown.append(
                f"{place.key}.engine: nothing is known of the memory of {service.engine!r}"
            )
            return
        device = self._index(service.device)
        if service.engine == "vllm" and self._gpus:
            share = float(service.engine_options.get("gpu_memory_utilization", _VLLM_SHARE))
            parts: Parts = {"vLLM's share": round(share * self._gpus[device].memory)}
        else:
            parts = self._serving(place.role, service, model)
        yield Use(stage=stage, process=place.name, device=device, parts=parts)

    def _serving(self, role: Role, service: ServiceConfig, model: Model) -> Parts:
        longest = max(
            (one.longest for (_, name), one in self._calls.items() if name == role), default=0
        )
        rows = service.max_batch
        cached = rows * longest
        if role == "judge":
            cached = int(service.engine_options.get("score_keys", _SCORE_KEYS))
        return memory.serving(
            model,
            element=self._element(service),
            cached_tokens=round(cached * _ROUNDING),
            rows=rows,
        )

    def _index(self, device: str) -> int:
        """Of cuda:1 it is 1; of what is not there, the last."""
        index = int(device.partition(":")[2] or 0)
        if index >= len(self._gpus) and index:
            self.unknown.append(f"device {device!r}: there are {len(self._gpus)} accelerators")
        return min(index, max(0, len(self._gpus) - 1))

    def _element(self, service: ServiceConfig) -> int:
        is_half = service.dtype == "bfloat16" or (service.dtype == "auto" and bool(self._gpus))
        return 2 if is_half else 4

    def _not_here(self, key: str, name: str) -> None:
        self.unknown.append(f"{key}: memory and time of {name!r}, which is not on this machine")

    def _training_uses(self, training: Training) -> Iterator[Use]:
        parts: dict[str, int] = {
            "sft": self._sft_parts,
            "reward": self._reward_parts,
            "rl": self._dpo_parts if self._config.rl.algorithm == "dpo" else self._rl_parts,
        }[training.stage](training)
        if not parts:
            self._not_here("models.base_for_sft", self._config.models.base_for_sft)
            return
        runtime = {"runtime": memory.RUNTIME} if self._gpus else {}
        processes = learns_by(self._config, training.stage)[1].processes
        apart = self._config.services.reward_device if training.stage == "rl" else None
        if apart is not None and _REWARD_MODEL in parts:
            elsewhere = {_REWARD_MODEL: parts.pop(_REWARD_MODEL)}
            device = self._index(apart)
            yield Use(stage="rl", process="reward model", device=device, parts=elsewhere | runtime)
        for number in range(processes):
            name = "training" if processes == 1 else f"training, rank {number}"
            device = min(number, max(0, len(self._gpus) - 1))
            yield Use(stage=training.stage, process=name, device=device, parts=parts | runtime)

    def _sft_parts(self, training: Training) -> dict[str, int]:
        model = self._models.get("base_for_sft")
        if model is None:
            return {}
        config = self._config.sft
        how = learning(model, config)
        tokens = config.micro_batch_size * training.longest
        return {
            **memory.learning_weights(how),
            "gathered": memory.gathered(model, how),
            "activations": memory.activations(model, tokens, how),
            "logits": memory.logits(model, tokens, how),
        }

    def _reward_parts(self, training: Training) -> dict[str, int]:
        return self._pairs_parts(training, self._config.reward)

    def _pairs_parts(self, training: Training, config: TrainingSettings) -> dict[str, int]:
        model = self._models.get("base_for_sft")
        if model is None:
            return {}
        how = learning(model, config)
        tokens = 2 * config.micro_batch_size * training.longest
        return {
            **memory.learning_weights(how),
            "gathered": memory.gathered(model, how),
            "activations": memory.activations(model, tokens, how),
        }

    def _dpo_parts(self, training: Training) -> dict[str, int]:
        """As of a reward model, and a frozen reference unless it is the policy without adapter."""
        config, model = self._config.dpo, self._models.get("base_for_sft")
        parts = self._pairs_parts(training, config)
        if model is None:
            return parts
        how = learning(model, config)
        if config.lora is None:
            parts["reference"] = model.parameters * how.compute
        tokens = 2 * config.micro_batch_size * training.longest
        return parts | {"logits": memory.logits(model, tokens, how)}

    def _rl_parts(self, training: Training) -> dict[str, int]:
        """The policy learns, perhaps the values too; reference and reward model do not.

        With adapters the reference is the policy without them; a head for the values stands on the
        reward model itself.
        """
        model = self._models.get("base_for_sft")
        if model is None:
            return {}
        config = self._config.rl
        how = learning(model, config)
        weights = memory.learning_weights(how)
        frozen = model.parameters * how.compute
        parts = {f"policy's {name}": size for name, size in weights.items()}
        if config.reward.model:
            parts[_REWARD_MODEL] = frozen
        if config.lora is None:
            parts["reference"] = frozen // how.processes if how.sharded else frozen
        tokens = config.micro_batch_size * training.longest
        activations = memory.activations(model, tokens, how) + memory.gathered(model, how)
        activations += min(memory.LOGITS_AT_ONCE, tokens * model.vocabulary) * 12
        if _has_value_trunk(config):
            parts["value network"] = sum(weights.values())
            activations += memory.activations(model, tokens, how)
        rows = config.batch_size // how.processes
        sampled = memory.sampling(model, rows=rows, tokens=training.longest, element=how.compute)
        if how.sharded:
            # for as long as it samples every process has the whole policy
            sampled += frozen
        if config.is_served:
            return parts | {"activations": activations}
        # a batch is sampled before it is learned from, so the two never stand side by side
        return parts | {"sampling or activations": max(sampled, activations)}

    def _call_seconds(self, one: Calls) -> float | None:
        places = list(roster(self._config, [one.role]))
        spent = [self._place_seconds(one, place, len(places)) for place in places]
        known = [seconds for seconds in spent if seconds is not None]
        return sum(known) if known else None

    def _place_seconds(self, one: Calls, place: Place, places: int) -> float | None:
        """Of a service that gets its part of the calls, as each judge of a panel does."""
        service = place.service
        model = self._models.get(place.name)
        if service.address is not None:
            self.unknown.append(
                f"{place.key}.address: how fast the service at {service.address!r} is; its part "
                "of the time is left out"
            )
            return None
        if service.is_endpoint:
            self.unknown.append(
                f"{place.key}.engine: how fast the endpoint is; its part of the time is left out"
            )
        if model is None:
            return None
        element = self._element(service)
        rows = min(service.max_batch, max(1, one.calls))
        return generation_seconds(
            self._gpus[self._index(service.device)],
            weight_bytes=model.parameters * element,
            cache_bytes=memory.key_value_bytes(model, rows * one.longest, element),
            parameters=model.parameters,
            prompt_tokens=one.prompt_tokens // places,
            completion_tokens=one.completion_tokens // places,
            together=rows,
        )

    def _training_time(self, one: Training) -> float | None:
        model = self._models.get("base_for_sft")
        if model is None:
            return None
        gpu, size = self._gpus[0], model.parameters
        processes = learns_by(self._config, one.stage)[1].processes
        one = replace(
            one, tokens=one.tokens // processes, sampled_tokens=one.sampled_tokens // processes
        )
        if one.stage == "rl" and self._config.rl.algorithm != "dpo":
            return self._rl_time(one, gpu, model)
        passes = {
            "sft": _passes(self._config.sft),
            "reward": _passes(self._config.reward),
            # and the reference's pass
            "rl": _passes(self._config.dpo) + 1.0,
        }[one.stage]
        return training_seconds(gpu, parameters=size, tokens=one.tokens, passes=passes)

    def _rl_time(self, one: Training, gpu: Accelerator, model: Model) -> float:
        config = self._config.rl
        how = learning(model, config)
        once = one.tokens // config.epochs
        rows = config.batch_size // how.processes
        sampling = generation_seconds(
            gpu,
            weight_bytes=model.parameters * how.compute,
            cache_bytes=memory.key_value_bytes(model, rows * one.longest, how.compute),
            parameters=model.parameters,
            prompt_tokens=max(0, once - one.sampled_tokens),
            completion_tokens=one.sampled_tokens,
            together=rows,
        )
        # the reference's, the reward model's and the values' passes over each episode; and the
        # policy's, if it has not sampled it
        passes = 4 if config.is_served else 3
        scoring = training_seconds(gpu, parameters=model.parameters, tokens=once, passes=passes)
        learners = 2 if _has_value_trunk(config) else 1
        updates = training_seconds(
            gpu,
            parameters=model.parameters,
            tokens=one.tokens,
            passes=learners * _passes(config),
        )
        return (0.0 if config.is_served else sampling) + scoring + updates


def _has_value_trunk(config: PPOConfig) -> bool:
    return config.has_value_network and config.value_network == "full"


def _passes(settings: WeightSettings) -> float:
    """Forward and backward passes of a step, in forward passes.

    Frozen weights need no gradients of their own, a third of the whole; what is not kept is
    computed once more.
    """
    return (2.0 if settings.lora else 3.0) + (1.0 if settings.gradient_checkpointing else 0.0)


def learning(model: Model, settings: WeightSettings) -> Learning:
    """How a stage with these settings holds a network that it trains."""
    trainable, frozen = model.parameters, 0
    if settings.lora is not None:
        targets = settings.lora.target_modules
        trainable = model.adapted(settings.lora.rank, None if targets == "all-linear" else targets)
        frozen = model.parameters
    return Learning(
        trainable=trainable,
        frozen=frozen,
        compute=2 if settings.precision == "bfloat16" else 4,
        checkpointing=settings.gradient_checkpointing,
        processes=settings.processes,
        sharded=settings.sharding == "full",
    )


def lacking(config: RunConfig, work: Workload, gpus: Sequence[Accelerator]) -> list[str]:
    """A sentence for each training stage that has more processes than there are devices."""
    asked = [learns_by(config, training.stage) for training in work.trainings]
    return [
        f"{key}.processes: expected at most {len(gpus)}, one for each device, got "
        f"{settings.processes!r}; lower it, or give more devices"
        for key, settings in asked
        if 0 < len(gpus) < settings.processes
    ]


def loading(
    config: RunConfig, work: Workload, models: Mapping[str, Model], gpus: Sequence[Accelerator]
) -> list[str]:
    """A sentence on the machine's own memory, where several processes read a model into it."""
    model = models.get("base_for_sft")
    asked = [(one.stage, learns_by(config, one.stage)[1]) for one in work.trainings]
    sizes = {
        stage: settings.processes * model.parameters * (4 if settings.lora is None else 2)
        for stage, settings in asked
        if model is not None and settings.processes > 1
    }
    if not sizes or not gpus:
        return []
    stage, size = max(sizes.items(), key=lambda pair: pair[1])
    return [
        "each process of a training stage reads the model into the machine's memory before it "
        f"goes to its device: about {size / 2**30:.0f} GiB together in {stage}"
    ]


def overfull(found: Budget, gpus: Sequence[Accelerator]) -> list[str]:
    """A sentence for each device that some stage asks too much of."""
    problems = []
    for device in found.devices if gpus else ():
        stage, needed = found.most(device)
        has = gpus[device].memory
        if needed > USABLE * has:
            parts = [
                f"{use.process} {use.total / 2**30:.1f}"
                for use in found.uses
                if (use.stage, use.device) == (stage, device)
            ]
            problems.append(
                f"memory: {stage} needs about {needed / 2**30:.1f} GiB of device {device} "
                f"({gpus[device].name}), which has {has / 2**30:.0f}: {', '.join(parts)}; lower "
                f"{stage}.micro_batch_size or services.*.max_batch, set "
                "services.release_for_training, or use more or larger devices"
            )
    return problems
