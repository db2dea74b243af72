"""The judge's Score as a training stage sees it: many responses in, one number each out.

Direct RLAIF (Lee et al. 2023, 2309.00267, section 2.4): no reward model between judge and policy.
Each principle's question has answers with values; its score is taken from their range to [-1, 1],
as in that paper, so that yes/no questions and 1-10 scales weigh alike, and the principles' weighted
mean is the response's score. A response that the judge has no score for has None: never a default.

The service is reached, retried and checked as everywhere in a run (``fleet``). Knows nothing of
tokens, tensors or policies; imports no torch.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from solon.chat import Conversation
from solon.client import Score
from solon.client.errors import ContextExceeded, EngineFailed, SolonError
from solon.constitution import Constitution
from solon.trainer.config import RunConfig
from solon.trainer.errors import ServiceError
from solon.trainer.failures import explain
from solon.trainer.fleet import Fleet, open_fleet
from solon.trainer.stages.work import work_through


class Judge:
    """A judge whose calls run while ``scores`` does. Use ``open_judge``."""

    def __init__(
        self,
        fleet: Fleet,
        runner: asyncio.Runner,
        constitution: Constitution,
        *,
        min_option_mass: float,
        in_flight: int,
    ) -> None:
        """``in_flight``: calls at the same time; it changes no score."""
        self._fleet, self._runner = fleet, runner
        self._ranges = {
            principle.id: (min(question.answers.values()), max(question.answers.values()))
            for principle in constitution.for_scoring
            if (question := principle.absolute_question) is not None
        }
        self._min_option_mass, self._in_flight = min_option_mass, in_flight
        self.outcomes: Counter[str] = Counter()
        """``made``, or why there is no score -> responses so far."""

    def scores(self, asked: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        """Of each conversation's response, in their order: [-1, 1], or None.

        Raises:
            ServiceError: The judge failed for longer than ``services.retry_for``, or refused.
        """
        found: list[float | None] = [None] * len(asked)

        async def work(row: int) -> None:
            outcome, found[row] = await self._score(*asked[row])
            self.outcomes[outcome] += 1

        try:
            self._runner.run(work_through(range(len(asked)), work, in_flight=self._in_flight))
        except SolonError as error:
            raise ServiceError(f"services.judge: {explain(error)}") from error
        return found

    async def _score(self, conversation: Conversation, response: str) -> tuple[str, float | None]:
        if not response:
            return "empty", None
        try:
            score = await self._fleet.judge().score(
                conversation,
                response,
                constitution=self._fleet.constitution("judge"),
                min_option_mass=self._min_option_mass,
            )
        except (ContextExceeded, EngineFailed) as error:
            # of this response alone; whatever else fails concerns all of them
            return error.reason.lower(), None
        if score.no_verdict_reason is not None:
            return str(score.no_verdict_reason), None
        return "made", self._normalised(score)

    def _normalised(self, score: Score) -> float:
        scored = [p for p in score.principles if p.score is not None]
        total = 0.0
        for principle in scored:
            least, most = self._ranges[principle.principle_id]
            assert principle.score is not None
            total += principle.weight * (2 * (principle.score - least) / (most - least) - 1)
        return total / sum(principle.weight for principle in scored)


@contextmanager
def open_judge(
    config: RunConfig, constitution: Constitution, *, address: str | None, log_dir: Path
) -> Iterator[Judge]:
    """Connect to the judge for as long as the block runs.

    Args:
        config: The run's: TLS, the token's environment variable, patience.
        constitution: The run's.
        address: Of a judge that the run has started; None: as configured.
        log_dir: Gets the log of a judge that is started here, for want of any address.

    Raises:
        LaunchError, ServiceError: As ``open_fleet``.
    """
    services = config.services
    if address is not None:
        judge = services.judge.model_copy(update={"address": address})
        services = services.model_copy(update={"judge": judge})
    here = config.model_copy(update={"services": services})
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opening = open_fleet(here, constitution, {"judge"}, log_dir=log_dir)
        fleet = runner.run(stack.enter_async_context(opening))
        try:
            yield Judge(
                fleet,
                runner,
                constitution,
                min_option_mass=config.rl.reward.min_option_mass,
                in_flight=services.in_flight,
            )
        finally:
            runner.run(stack.aclose())
