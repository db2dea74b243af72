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
from dataclasses import dataclass
from pathlib import Path

from solon.chat import Conversation
from solon.client import Score
from solon.client.errors import ContextExceeded, EngineFailed, SolonError
from solon.constitution import Constitution
from solon.trainer.config import RunConfig
from solon.trainer.errors import ServiceError
from solon.trainer.failures import explain
from solon.trainer.fleet import Fleet, open_fleet
from solon.trainer.stages import rows
from solon.trainer.stages.work import work_through


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What was said of one response; nothing, if nobody was asked."""

    score: float | None = None
    """In [-1, 1]."""
    no_score_reason: str | None = None
    """Why there is none."""
    judgements: Sequence[rows.Row] = ()
    """As ``schemas.JUDGEMENT``."""


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
        self.last: Sequence[Judged] = ()
        """Of the last call of ``scores``: what was said of each response, in their order."""

    def scores(self, asked: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        """Of each conversation's response, in their order: [-1, 1], or None.

        Raises:
            ServiceError: The judge failed for longer than ``services.retry_for``, or refused.
        """
        found = [Judged()] * len(asked)

        async def work(row: int) -> None:
            found[row] = one = await self._judged(*asked[row])
            self.outcomes[one.no_score_reason or "made"] += 1

        try:
            self._runner.run(work_through(range(len(asked)), work, in_flight=self._in_flight))
        except SolonError as error:
            raise ServiceError(f"services.judge: {explain(error)}") from error
        self.last = found
        return [one.score for one in found]

    async def _judged(self, conversation: Conversation, response: str) -> Judged:
        if not response:
            return Judged(no_score_reason="empty")
        try:
            score = await self._fleet.judge().score(
                conversation,
                response,
                constitution=self._fleet.constitution("judge"),
                min_option_mass=self._min_option_mass,
            )
        except (ContextExceeded, EngineFailed) as error:
            # of this response alone; whatever else fails concerns all of them
            said = rows.judgement("judge", self._fleet.judge_model, error)
            return Judged(no_score_reason=error.reason.lower(), judgements=[said])
        normalised = self._normalised(score)
        said = rows.judgement("judge", self._fleet.judge_model, score, normalised)
        reason = score.no_verdict_reason and score.no_verdict_reason.value
        return Judged(score=normalised, no_score_reason=reason, judgements=[said])

    def _normalised(self, score: Score) -> float | None:
        scored = [p for p in score.principles if p.score is not None]
        if not scored:
            return None
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
