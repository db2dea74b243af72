"""The judge's Score as a training stage sees it: many responses in, one number each out.

Direct RLAIF (Lee et al. 2023, 2309.00267, section 2.4): no reward model between judge and policy.
Each principle's question has answers with values; its score is taken from their range to [-1, 1],
as in that paper, so that yes/no questions and 1-10 scales weigh alike, and the principles' weighted
mean is the response's score. Judges of a panel are asked the same, and theirs is the mean of those
that have a score, if they are a quorum. A response without a score has None: never a default.

The service is reached, retried and checked as everywhere in a run (``fleet``). Knows nothing of
tokens, tensors or policies; imports no torch.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.chat import Conversation
from solon.client import PanelScore, Score
from solon.client.errors import ContextExceeded, EngineFailed, SolonError
from solon.constitution import Constitution
from solon.trainer.config import RunConfig
from solon.trainer.errors import ServiceError
from solon.trainer.failures import explain
from solon.trainer.fleet import Fleet, open_fleet
from solon.trainer.roster import placed
from solon.trainer.stages import rows
from solon.trainer.stages.work import AT_FIRST, Crowd, shares_of_judges, work_through

_MADE = "made"
_UNSCORED = "rl: responses that {} did not score"


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
    """A judge, or a panel, whose calls run while ``scores`` does. Use ``open_judge``."""

    def __init__(
        self,
        fleet: Fleet,
        runner: asyncio.Runner,
        constitution: Constitution,
        config: RunConfig,
    ) -> None:
        """Ask nothing yet.

        Args:
            fleet: Has the judge, or the judges of the panel.
            runner: Runs the calls.
            constitution: The run's.
            config: The run's.
        """
        self._fleet, self._runner = fleet, runner
        self._panel = config.preferences.panel
        self._ranges = {
            principle.id: (min(question.answers.values()), max(question.answers.values()))
            for principle in constitution.for_scoring
            if (question := principle.absolute_question) is not None
        }
        self._min_option_mass = config.rl.reward.min_option_mass
        # its share of what several processes may ask at once, and of what they make
        self._in_flight = max(1, (config.services.in_flight or AT_FIRST) // config.rl.processes)
        episodes = config.rl.batches * config.rl.batch_size // config.rl.processes
        self._votes = (
            {} if self._panel is None else shares_of_judges(self._panel, _UNSCORED, episodes)
        )
        self._silent: Counter[tuple[str, str]] = Counter()
        self.outcomes: Counter[str] = Counter()
        """``made``, or why there is no score -> responses so far."""
        self.last: Sequence[Judged] = ()
        """Of the last call of ``scores``: what was said of each response, in their order."""

    def scores(self, asked: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        """Of each conversation's response, in their order: [-1, 1], or None.

        Raises:
            ServiceError: The only judge failed for longer than ``services.retry_for``, or refused.
            StageFailed: One of a panel failed too often.
        """
        found = [Judged()] * len(asked)

        async def work(row: int) -> None:
            found[row] = one = await self._judged(*asked[row])
            self.outcomes[one.no_score_reason or _MADE] += 1

        try:
            self._runner.run(work_through(range(len(asked)), work, Crowd(self._in_flight)))
        except SolonError as error:
            raise ServiceError(f"services.judge: {explain(error)}") from error
        self.last = found
        return [one.score for one in found]

    def gather(self, from_all: Callable[[Any], list[Any]]) -> None:
        """Count what was said to all processes from here on. Called by each of them.

        Args:
            from_all: Gives each process the values of all.
        """
        votes = {name: share.counts for name, share in self._votes.items()}
        counts = from_all((self.outcomes, self._silent, votes))
        self.outcomes = sum((outcomes for outcomes, _, _ in counts), Counter())
        self._silent = sum((silent for _, silent, _ in counts), Counter())
        for name, share in self._votes.items():
            share.counts = sum((one[name] for _, _, one in counts), Counter())

    def told(self) -> Iterator[str]:
        """Sentences: how many responses have a score so far, and why the others have none."""
        missing = _listed({name: n for name, n in self.outcomes.items() if name != _MADE})
        yield f"the judge scored {self.outcomes[_MADE]} responses; without a score: {missing}"
        for name, share in self._votes.items():
            silent = {what: n for (judge, what), n in self._silent.items() if judge == name}
            yield f"the judge {name!r} of the panel had no score for: {_listed(silent | share.bad)}"

    async def _judged(self, conversation: Conversation, response: str) -> Judged:
        if not response:
            return Judged(no_score_reason="empty")
        asked: dict[str, Any] = {
            "constitution": self._fleet.constitution("judge"),
            "min_option_mass": self._min_option_mass,
        }
        if self._panel is None:
            return await self._judged_alone(conversation, response, asked)
        panel = self._fleet.panel(self._panel)
        return self._together(await panel.score(conversation, response, **asked))

    async def _judged_alone(
        self, conversation: Conversation, response: str, asked: dict[str, Any]
    ) -> Judged:
        try:
            score = await self._fleet.judge().score(conversation, response, **asked)
        except (ContextExceeded, EngineFailed) as error:
            # of this response alone; whatever else fails concerns all of them
            said = rows.judgement("judge", self._fleet.judge_model, error)
            return Judged(no_score_reason=error.reason.lower(), judgements=[said])
        normalised = self._normalised(score)
        said = rows.judgement("judge", self._fleet.judge_model, score, normalised)
        reason = score.no_verdict_reason and score.no_verdict_reason.value
        return Judged(score=normalised, no_score_reason=reason, judgements=[said])

    def _together(self, made: PanelScore) -> Judged:
        scores: list[float] = []
        judgements = []
        models = {name: one.info.model for name, one in self._fleet.judges().items()}
        for vote in made.votes:
            name = vote.judge
            self._votes[name].add([_MADE if vote.error is None else "failed"])
            said = vote.made or vote.error
            assert said is not None, name
            score = None if vote.made is None else self._normalised(vote.made)
            judgements.append(rows.judgement(name, models[name], said, score))
            if score is not None:
                scores.append(score)
            elif vote.made is not None:
                self._silent[name, str(vote.made.no_verdict_reason)] += 1
        reason = made.no_verdict_reason
        return Judged(
            score=sum(scores) / len(scores) if reason is None else None,
            no_score_reason=None if reason is None else reason.value,
            judgements=judgements,
        )

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
    config: RunConfig, constitution: Constitution, *, addresses: Mapping[str, str], log_dir: Path
) -> Iterator[Judge]:
    """Connect to the judge, or to those of the panel, for as long as the block runs.

    Args:
        config: The run's: TLS, the token's environment variable, patience.
        constitution: The run's.
        addresses: Of judges that the run has started, by their names in the roster; the others are
            where the configuration says.
        log_dir: Gets the log of a judge that is started here, for want of any address.

    Raises:
        LaunchError, ServiceError: As ``open_fleet``.
    """
    here = placed(config, addresses)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opening = open_fleet(here, constitution, {"judge"}, log_dir=log_dir)
        fleet = runner.run(stack.enter_async_context(opening))
        try:
            yield Judge(fleet, runner, constitution, here)
        finally:
            runner.run(stack.aclose())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "none"
