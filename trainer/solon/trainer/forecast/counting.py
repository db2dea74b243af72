"""Counts what a run asks of its models: calls as the stages make them, prompts as long as they are.

Knows nothing of memory, time or hardware, nor of how the figures are told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from solon.chat import Conversation, Message
from solon.constitution import Constitution, Principle
from solon.constitution.prompts import (
    comparison_prompt,
    critique_prompt,
    reasoning_prompt,
    revision_prompt,
    score_prompt,
)
from solon.trainer.config import RunConfig
from solon.trainer.forecast.lengths import Length, Tokens, spread
from solon.trainer.forecast.workload import EXPECTED_SHARE, Calls, Training, Workload
from solon.trainer.labelled import load_labelled
from solon.trainer.launch.local import Role
from solon.trainer.plan import EVALUATION_KEYS
from solon.trainer.prompts import PromptSet
from solon.trainer.stage_names import Stage
from solon.trainer.stages.preflight_settings import asked_by
from solon.trainer.steps import Step
from solon.trainer.training import TrainingSettings

_NOTHING = Conversation.from_user("")


def workload(
    config: RunConfig,
    constitution: Constitution,
    prompts: Mapping[str, PromptSet],
    steps: Collection[Step],
    tokens: Tokens,
) -> Workload:
    """Count what the stages are going to ask, each over all of its iterations.

    Args:
        config: The run's.
        constitution: The run's.
        prompts: Of the stages, by key.
        steps: Those that are counted.
        tokens: Counts those of the policy; all models are taken to share its vocabulary.
    """
    counter = _Counter(config, constitution, prompts, steps, tokens)
    stages = {step.stage for step in steps}
    calls: list[Calls] = []
    trainings: list[Training] = []
    if "preflight" in stages:
        calls.append(counter.preflight())
    if "revisions" in stages:
        calls += counter.revisions()
    if "sft" in stages and "red_team" in prompts:
        trainings.append(counter.sft())
    if "preferences" in stages:
        calls += counter.preferences()
    if "reward" in stages and "preferences" in prompts:
        trainings.append(counter.reward())
    if "rl" in stages and config.rl.algorithm != "dpo":
        calls += counter.rl_responses()
        calls += counter.rl_scores()
        trainings.append(counter.rl())
    elif "rl" in stages and "preferences" in prompts:
        trainings.append(counter.dpo())
    if "evaluate" in stages:
        calls += counter.evaluate()
    return Workload(
        calls=tuple(calls),
        trainings=tuple(trainings),
        prompts={key: len(found.prompts) for key, found in prompts.items()},
        iterations=len({step.iteration for step in steps}),
        compared=sum(map(sum, counter.compared())) if "preferences" in stages else 0,
        left_out=tuple(_left_out(prompts)),
    )


def _left_out(prompts: Mapping[str, PromptSet]) -> Iterable[str]:
    held = sum(found.divided for key, found in prompts.items() if key not in EVALUATION_KEYS)
    trained = sum(found.divided for key, found in prompts.items() if key in EVALUATION_KEYS)
    said = {
        "duplicate prompts are left out": sum(found.duplicates for found in prompts.values()),
        "rows without a prompt are left out": sum(found.unusable for found in prompts.values()),
        "prompts for training are held out, since evaluation has them": held,
        "prompts for evaluation are left out, since training has them": trained,
    }
    return (f"{count:,} {what}" for what, count in said.items() if count)


class _Counter:
    """Counts the calls of each stage."""

    def __init__(
        self,
        config: RunConfig,
        constitution: Constitution,
        prompts: Mapping[str, PromptSet],
        steps: Collection[Step],
        tokens: Tokens,
    ) -> None:
        self._config, self._constitution = config, constitution
        self._prompts, self._tokens = prompts, tokens
        self._steps = steps
        self._lengths = {
            key: tokens.of_conversations([p.conversation for p in spread(found.prompts)])
            for key, found in prompts.items()
        }

    def preflight(self) -> Calls:
        """Each known response by each principle: a prompt like a critique's, whose end is read."""
        config = self._config.preflight
        known = load_labelled(config.source, count=config.count, seed=self._config.seed)
        said = [one.conversation.then(Message("assistant", one.response)) for one in spread(known)]
        length = self._tokens.of_conversations(said)
        calls = len(known) * len(asked_by(self._constitution, config))
        asked, _ = self._critic_prompts()
        return Calls(
            stage="preflight",
            role="critic",
            calls=calls,
            generations=0,
            prompt_tokens=round(calls * (asked.mean + length.mean)),
            completion_tokens=0,
            most_completion_tokens=0,
            longest=asked.longest + length.longest,
        )

    def revisions(self) -> Iterable[Calls]:
        config = self._config.revisions
        count = {key: len(self._prompts[key].prompts) for key in ("red_team", "helpfulness")}
        answers = {
            "red_team": count["red_team"],
            "helpfulness": count["helpfulness"] * config.helpful_samples,
        }
        yield self._calls(
            "revisions",
            "policy",
            calls=sum(answers.values()),
            prompt_tokens=sum(n * self._lengths[key].mean for key, n in answers.items()),
            max_tokens=config.response.max_tokens,
            longest=self._longest(answers),
        )
        yield self._critic(count["red_team"])

    def _critic(self, prompts: int) -> Calls:
        """The chain: a critique sees conversation and response, a revision the critique as well."""
        config, length = self._config.revisions, self._lengths["red_team"]
        first = _expected(config.response.max_tokens)
        later = _expected(config.critic.max_tokens)
        asked, revised = self._critic_prompts()
        responses = first + (config.rounds - 1) * later
        prompt_tokens = config.rounds * (revised.mean + length.mean) + responses
        if not config.skip_critique:
            prompt_tokens += config.rounds * (asked.mean + length.mean + later) + responses
        steps, most_steps = self._questions()
        # a question sees the answers before it, critique and revision see all of them
        prompt_tokens += config.rounds * steps * (asked.mean + length.mean + later)
        prompt_tokens += config.rounds * steps * later * ((steps - 1) / 2 + 2)
        most = max(config.response.max_tokens, config.critic.max_tokens)
        critique = 0 if config.skip_critique else config.critic.max_tokens
        texts = 1 if config.skip_critique else 2 + steps
        generations = round(prompts * config.rounds * texts)
        asks = prompts * config.rounds if config.not_needed_below is not None else 0
        return Calls(
            stage="revisions",
            role="critic",
            calls=generations + asks,
            generations=generations,
            # whether a round is needed is asked of about what its critique is
            prompt_tokens=round(
                prompts * prompt_tokens + asks * (asked.mean + length.mean) + asks * later
            ),
            completion_tokens=round(generations * later),
            most_completion_tokens=generations * config.critic.max_tokens,
            longest=revised.longest
            + length.longest
            + most
            + critique
            + (1 + most_steps) * config.critic.max_tokens,
        )

    def _questions(self) -> tuple[float, int]:
        """Answers before a critique: on average over principles, and at most."""
        config = self._config.revisions
        if config.skip_critique or config.skip_questions:
            return 0, 0
        asked = [len(principle.questions) for principle in self._constitution.for_revision]
        return sum(asked) / len(asked), max(asked)

    def _critic_prompts(self) -> tuple[Length, Length]:
        """Of a critique and of a revision, without conversation, response and critique."""
        skip = self._config.revisions.skip_critique
        principles = self._constitution.for_revision
        return (
            self._fixed(
                (p, critique_prompt(self._constitution, p, _NOTHING, "")) for p in principles
            ),
            self._fixed(
                (p, revision_prompt(self._constitution, p, _NOTHING, "", None if skip else ""))
                for p in principles
            ),
        )

    def preferences(self) -> Iterable[Calls]:
        config = self._config.preferences
        sampled, revised = (sum(counts) for counts in zip(*self.compared(), strict=True))
        # without the revisions stage only its records know how long its prompts are
        key = "preferences" if sampled or "red_team" not in self._lengths else "red_team"
        length = self._lengths[key]
        yield self._calls(
            "preferences",
            "policy",
            calls=sampled * config.responses,
            prompt_tokens=sampled * config.responses * length.mean,
            max_tokens=config.sampling.max_tokens,
            longest=length.longest,
        )
        usable = len(self._constitution.for_comparison)
        principles = usable if config.principles == "all" else min(usable, config.principles)
        every = config.responses * (config.responses - 1) // 2
        # a ranking compares all pairs at most, and then the chosen ones anew
        most = min(config.pairs, every) + every * (config.selection == "best_worst")
        yield self._judge(
            "preferences",
            pairs=sampled * most + revised,
            prompts=principles * (2 if config.both_orders else 1),
            length=length,
            max_tokens=config.sampling.max_tokens,
        )

    def compared(self) -> list[tuple[int, int]]:
        """Of each iteration: prompts of which samples are compared, and revisions, at most."""
        return [self._compared(iteration) for iteration in self._iterations("preferences")]

    def _iterations(self, stage: Stage) -> list[int]:
        """Those of a stage that are counted."""
        return [step.iteration for step in self._steps if step.stage == stage]

    def _compared(self, iteration: int) -> tuple[int, int]:
        source = self._config.preferences.source
        sampled = 0 if source == "revisions" else len(self._prompts["preferences"].prompts)
        # how many revisions there are is known once they are made
        there = "red_team" in self._prompts and source != "samples" and iteration == 1
        return sampled, len(self._prompts["red_team"].prompts) if there else 0

    def evaluate(self) -> Iterable[Calls]:
        config = self._config.evaluate
        # the helpful one, the SL model, and one of RL of each iteration
        models = 2 + self._config.iterations
        held = {key: found for key, found in self._prompts.items() if key.startswith("evaluation.")}
        counts = {key: len(found.prompts) for key, found in held.items()}
        count = sum(counts.values())
        tokens = sum(counts[key] * self._lengths[key].mean for key in held)
        yield self._calls(
            "evaluate",
            "policy",
            calls=count * models,
            prompt_tokens=tokens * models,
            max_tokens=config.sampling.max_tokens,
            longest=self._longest(counts),
        )
        longest = max((self._lengths[key].longest for key in held), default=0)
        yield self._judge(
            "evaluate",
            pairs=min(config.judge_pairs, count * models),
            # here always by all principles and in both orders
            prompts=2 * len(self._constitution.for_comparison),
            length=Length(mean=tokens / max(1, count), longest=longest),
            max_tokens=config.sampling.max_tokens,
        )

    def _judge(
        self,
        stage: Stage,
        *,
        pairs: int,
        prompts: int,
        length: Length,
        max_tokens: int,
    ) -> Calls:
        """A comparison is a prompt whose answer is read; with chains, each is written before."""
        chains = self._config.preferences.chain_of_thought
        written = 0 if chains is None else chains.sampling.max_tokens
        fixed = self._fixed(
            (p, self._comparison(p, chains is not None)) for p in self._constitution.for_comparison
        )
        panel = self._config.preferences.panel
        judges = len(panel.judges) if panel else 1
        read = judges * pairs * prompts * (1 if chains is None else chains.chains)
        shown = fixed.mean + length.mean + 2 * _expected(max_tokens)
        return Calls(
            stage=stage,
            role="judge",
            calls=read if chains is None else 2 * read,
            generations=0 if chains is None else read,
            prompt_tokens=round(
                read * (shown if chains is None else 2 * shown + _expected(written))
            ),
            completion_tokens=round(read * _expected(written)),
            most_completion_tokens=read * written,
            longest=fixed.longest + length.longest + 2 * max_tokens + written,
        )

    def _comparison(self, principle: Principle, reasons: bool) -> Conversation:
        if reasons:
            return reasoning_prompt(principle, _NOTHING, "", "")
        return comparison_prompt(self._constitution, principle, _NOTHING, "", "")

    def rl_responses(self) -> Iterable[Calls]:
        """Each episode by the policy service, if it samples."""
        config, length = self._config.rl, self._lengths["rl"]
        if not config.is_served:
            return
        episodes = config.batches * config.batch_size * len(self._iterations("rl"))
        yield self._calls(
            "rl",
            "policy",
            calls=episodes,
            prompt_tokens=episodes * length.mean,
            max_tokens=config.max_response_tokens,
            longest=length.longest,
        )

    def rl_scores(self) -> Iterable[Calls]:
        """Direct RLAIF: each episode by each judge and principle with an absolute question."""
        config, length = self._config.rl, self._lengths["rl"]
        panel = self._config.preferences.panel
        if not config.reward.judge:
            return
        principles = self._constitution.for_scoring
        fixed = self._fixed((p, score_prompt(p, _NOTHING, "")) for p in principles)
        episodes = config.batches * config.batch_size * len(self._iterations("rl"))
        calls = episodes * len(principles) * (len(panel.judges) if panel else 1)
        response = _expected(config.max_response_tokens)
        yield Calls(
            stage="rl",
            role="judge",
            calls=calls,
            generations=0,
            prompt_tokens=round(calls * (fixed.mean + length.mean + response)),
            completion_tokens=0,
            most_completion_tokens=0,
            longest=fixed.longest + length.longest + config.max_response_tokens,
        )

    def sft(self) -> Training:
        config, revisions = self._config.sft, self._config.revisions
        trained = revisions.train_rounds or revisions.rounds
        rounds = trained if revisions.train_on == "all" else 1
        revised = len(self._prompts["red_team"].prompts) * rounds
        helpful = len(self._prompts["helpfulness"].prompts) * revisions.helpful_samples
        tokens = revised * (
            self._lengths["red_team"].mean + _expected(revisions.critic.max_tokens)
        ) + helpful * (self._lengths["helpfulness"].mean + _expected(revisions.response.max_tokens))
        return Training(
            stage="sft",
            records=(revised + helpful) * config.epochs,
            steps=-(-(revised + helpful) * config.epochs // config.batch_size),
            tokens=round(tokens * config.epochs),
            longest=min(
                config.max_length,
                self._longest(("red_team", "helpfulness"))
                + max(revisions.response.max_tokens, revisions.critic.max_tokens),
            ),
        )

    def reward(self) -> Training:
        """On the pairs of all iterations so far."""
        read = [one for last in self._iterations("reward") for one in range(1, last + 1)]
        return self._on_pairs("reward", self._config.reward, read)

    def dpo(self) -> Training:
        return self._on_pairs("rl", self._config.dpo, self._iterations("rl"))

    def _on_pairs(
        self, stage: Stage, config: TrainingSettings, iterations: Iterable[int]
    ) -> Training:
        """``iterations``: whose pairs are read, as often as they are."""
        preferences = self._config.preferences
        counts = [self._compared(iteration) for iteration in iterations]
        judged = sum(sampled * preferences.pairs + revised for sampled, revised in counts)
        pairs = round(judged * (1 - preferences.test_share) / (1 - preferences.given.share))
        response = _expected(preferences.sampling.max_tokens)
        tokens = 2 * pairs * (self._lengths["preferences"].mean + response)
        return Training(
            stage=stage,
            records=pairs * config.epochs,
            steps=-(-pairs * config.epochs // config.batch_size),
            tokens=round(tokens * config.epochs),
            longest=min(
                config.max_length,
                self._longest(["preferences"]) + preferences.sampling.max_tokens,
            ),
        )

    def rl(self) -> Training:
        config, length = self._config.rl, self._lengths["rl"]
        response = _expected(config.max_response_tokens)
        times = len(self._iterations("rl"))
        episodes = times * config.batches * config.batch_size
        return Training(
            stage="rl",
            records=times * config.episodes,
            steps=times * config.batches * config.epochs * config.minibatches,
            tokens=round(episodes * (length.mean + response) * config.epochs),
            sampled_tokens=round(episodes * response),
            longest=length.longest + config.max_response_tokens,
        )

    def _calls(
        self,
        stage: Stage,
        role: Role,
        *,
        calls: int,
        prompt_tokens: float,
        max_tokens: int,
        longest: int,
    ) -> Calls:
        return Calls(
            stage=stage,
            role=role,
            calls=calls,
            generations=calls,
            prompt_tokens=round(prompt_tokens),
            completion_tokens=round(calls * _expected(max_tokens)),
            most_completion_tokens=calls * max_tokens,
            longest=longest + (max_tokens if role == "policy" else 0),
        )

    def _longest(self, keys: Iterable[str]) -> int:
        return max((self._lengths[key].longest for key in keys), default=0)

    def _fixed(self, shown: Iterable[tuple[Principle, Conversation]]) -> Length:
        """Mean over principles as they are drawn, by weight; and the longest."""
        measured = [(p.weight, self._tokens.of_conversations([c]).mean) for p, c in shown]
        if not measured:
            return Length(mean=0.0, longest=0)
        total = sum(weight for weight, _ in measured)
        mean = sum(weight * tokens for weight, tokens in measured) / total
        return Length(mean=mean, longest=round(max(tokens for _, tokens in measured)))


def _expected(max_tokens: int) -> float:
    return EXPECTED_SHARE * max_tokens
