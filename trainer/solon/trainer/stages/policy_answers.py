"""The responses of RL by the policy service, on any engine: prompts in, tokens and log-probs out.

A thread of its own has the connection, so that a batch can be sampled while the trainer computes.
Each reply is checked: the weights that were asked for, the prompt's tokens as the trainer has them,
an end that the trainer knows. Knows nothing of tensors, rewards or the run directory's layout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.chat import Conversation
from solon.client import Completion, FinishReason, Generated, Sampling
from solon.client.errors import SolonError
from solon.constitution import Constitution, derive_seed
from solon.trainer.config import RunConfig
from solon.trainer.errors import ServiceError
from solon.trainer.failures import explain
from solon.trainer.fleet import Fleet, Weights, open_fleet
from solon.trainer.ppo.served import Response
from solon.trainer.roster import placed
from solon.trainer.stages.work import AT_FIRST, Crowd, work_through

_KEY = "services.policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt that is answered once or several times."""

    conversation: Conversation
    prompt_tokens: int
    """As the trainer has it."""
    answers: int
    seed: int
    """In [0, 2**64)."""


class PolicyAnswers:
    """The policy service, whose calls run in a thread. Use ``open_policy``."""

    def __init__(
        self, thread: ThreadPoolExecutor, runner: asyncio.Runner, fleet: Fleet, config: RunConfig
    ) -> None:
        """See ``open_policy``. ``runner`` and ``fleet`` belong to ``thread``."""
        self._thread, self._runner, self._fleet = thread, runner, fleet
        self._max_tokens = config.rl.max_response_tokens
        self._in_flight = config.services.in_flight or AT_FIRST
        self._work: Future[list[Response]] | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(
        self, questions: Sequence[Question], weights: Weights, *, stop_ids: Sequence[int]
    ) -> None:
        """Have the questions answered with these weights; returns at once.

        Args:
            questions: The batch.
            weights: Loaded first.
            stop_ids: The tokens that end a response.
        """
        assert self._work is None, "one batch at a time"
        asked = _Asked(
            fleet=self._fleet,
            weights=weights,
            max_tokens=self._max_tokens,
            stop_ids=frozenset(stop_ids),
        )
        self._work = self._thread.submit(self._answered, asked, questions)

    def finish(self) -> list[Response]:
        """The answers to all questions, in their order, each question's side by side.

        Raises:
            ServiceError: The service failed for longer than ``services.retry_for``, refused, or
                gave what cannot be learned from.
        """
        assert self._work is not None, "a batch is begun before it is finished"
        work, self._work = self._work, None
        return work.result()

    def cancel(self) -> None:
        """Leave what was begun, which nobody will finish."""
        if self._work is not None and not self._work.cancel() and self._task is not None:
            self._runner.get_loop().call_soon_threadsafe(self._task.cancel)

    def _answered(self, asked: _Asked, questions: Sequence[Question]) -> list[Response]:
        found: list[list[Response]] = [[] for _ in questions]

        async def work(place: int) -> None:
            found[place] = await asked.answers(questions[place])

        async def all_of_them() -> None:
            self._task = asyncio.current_task()
            await asked.fleet.policy.load(asked.weights)
            await work_through(range(len(questions)), work, Crowd(self._in_flight))

        try:
            self._runner.run(self._fleet.guard(all_of_them()))
        except SolonError as error:
            raise ServiceError(f"{_KEY}: {explain(error)}") from error
        return [response for responses in found for response in responses]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """How a batch is sampled."""

    fleet: Fleet
    weights: Weights
    max_tokens: int
    stop_ids: frozenset[int]

    async def answers(self, question: Question) -> list[Response]:
        while True:
            sampling = Sampling(
                temperature=1.0, top_p=1.0, top_k=0, max_tokens=self.max_tokens, seed=question.seed
            )
            made = await self.fleet.policy.generate(
                question.conversation,
                weights=self.weights,
                sampling=sampling,
                n=question.answers,
                return_tokens=True,
            )
            # somebody has paused the service at once: what was cut is asked for again
            if all(one.finish_reason != FinishReason.ABORT for one in made.completions):
                self._check_prompt(question, made)
                return [self._response(one) for one in made.completions]

    def _check_prompt(self, question: Question, made: Generated) -> None:
        read, expected = made.usage.prompt_tokens, question.prompt_tokens * question.answers
        if read != expected:
            raise ServiceError(
                f"{_KEY}: expected {expected} prompt tokens, as the SL model's tokenizer and chat "
                f"template make them, but the service read {read}: start it with a model that has "
                "the same of both, or set rl.rollouts.source to in_process. The prompt: "
                f"{question.conversation.messages[-1].content[:80]!r}"
            )

    def _response(self, made: Completion) -> Response:
        ids = [token.id for token in made.tokens]
        ended = made.finish_reason == FinishReason.STOP
        if not ids or (ended and ids[-1] not in self.stop_ids):
            raise ServiceError(
                f"{_KEY}: expected a response's tokens, the last one of {sorted(self.stop_ids)}, "
                f"which end a turn of the SL model, got {ids[-3:]} at the end; start the service "
                "with a model that ends its turns as the SL model does"
            )
        return Response(ids=ids, logprobs=[token.logprob for token in made.tokens], ended=ended)


class Served:
    """What samples the episodes: publishes the policy, and has the service answer.

    Every process has one; the first one alone has the service.
    """

    def __init__(
        self,
        answers: PolicyAnswers | None,
        *,
        publish: Callable[[int], Weights],
        share: Callable[[Any], Any],
        prompts: Sequence[Conversation],
        prompt_tokens: Sequence[int],
        each: int,
        stop_ids: Sequence[int],
    ) -> None:
        """Ask nothing yet.

        Args:
            answers: The service; None on processes after the first.
            publish: Leaves the policy, before so many updates, where the service can read it.
                Called by every process.
            share: Gives each process the first one's value.
            prompts: All of RL's.
            prompt_tokens: Of each prompt.
            each: Responses to each prompt, which stand side by side.
            stop_ids: Tokens that end a response.
        """
        self._answers, self._publish, self._share = answers, publish, share
        self._prompts, self._prompt_tokens, self._each = prompts, prompt_tokens, each
        self._stop_ids = stop_ids

    def begin(self, batch: int, prompt_rows: Sequence[int], seed: int) -> None:
        """As ``ppo.served.Answering``."""
        weights = self._publish(batch)
        if self._answers is None:
            return
        questions = [
            Question(
                conversation=self._prompts[prompt_rows[first]],
                prompt_tokens=self._prompt_tokens[prompt_rows[first]],
                answers=self._each,
                seed=derive_seed(seed, "episode", first),
            )
            for first in range(0, len(prompt_rows), self._each)
        ]
        self._answers.begin(questions, weights, stop_ids=self._stop_ids)

    def finish(self) -> list[Response]:
        """As ``ppo.served.Answering``."""
        found: list[Response] = self._share(self._answers and self._answers.finish())
        return found


@contextmanager
def open_policy(
    config: RunConfig, constitution: Constitution, *, addresses: Mapping[str, str], log_dir: Path
) -> Iterator[PolicyAnswers]:
    """Connect to the policy service for as long as the block runs.

    Args:
        config: The run's: TLS, the token's environment variable, patience.
        constitution: The run's.
        addresses: Of services that the run has started, by their names in the roster.
        log_dir: Gets the log of a service that is started here, for want of an address.

    Raises:
        LaunchError: As ``open_fleet``.
        ServiceError: As ``open_fleet``; or its engine cannot do what RL needs.
    """
    here = placed(config, addresses)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy") as thread:
        runner, stack = asyncio.Runner(), AsyncExitStack()
        opening = stack.enter_async_context(
            open_fleet(here, constitution, {"policy"}, log_dir=log_dir)
        )
        try:
            fleet = thread.submit(runner.run, opening).result()
            _require(fleet)
            answers = PolicyAnswers(thread, runner, fleet, here)
            try:
                yield answers
            finally:
                answers.cancel()
        finally:
            thread.submit(runner.run, stack.aclose()).result()
            thread.submit(runner.close).result()


def _require(fleet: Fleet) -> None:
    info = fleet.info("policy")
    for what, has in (
        ("log-probabilities", info.supports_logprobs),
        ("new weights", info.supports_weight_update),
    ):
        if not has:
            raise ServiceError(
                f"{_KEY}: the engine {info.engine!r} does {what} not, which rl.rollouts.source "
                "policy needs; use another engine, or set it to in_process"
            )
