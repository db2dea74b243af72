"""What became of responses, pairs and votes, and when it is too much to go on.

Knows nothing of how they were made, or of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any

from solon.client.panel import cohen_kappa, kappa_of_votes
from solon.trainer.stages import candidates, rows
from solon.trainer.stages.filters import Dropped, prefers_position
from solon.trainer.stages.preference_settings import PanelConfig, PreferencesConfig
from solon.trainer.stages.work import Share, shares_of_judges
from solon.trainer.store import Record

_FOLLOWS = "follow the position"
_FAILED = "failed"


class Counts:
    """Over this and earlier attempts at the stage."""

    def __init__(self, config: PreferencesConfig, *, sampled: int, revised: int) -> None:
        """Count from zero.

        Args:
            config: Has the limits.
            sampled: Prompts that the SL model answers.
            revised: Prompts of which a revision is compared.
        """
        pairs = sampled * config.pairs + revised
        self._responses = Share(
            what="preferences: unusable responses of the SL model",
            key="preferences.max_unusable_share",
            limit=config.max_unusable_share,
            total=sampled * config.responses,
        )
        self._pairs = Share(
            what="preferences: pairs without a verdict",
            key="preferences.max_no_verdict_share",
            limit=config.max_no_verdict_share,
            total=pairs,
        )
        self._positions = Share(
            what="preferences: verdicts in both orders",
            key="preferences.max_position_bias",
            limit=config.max_position_bias,
            total=pairs,
        )
        self._drops = Share(
            what="preferences: pairs that the filters leave out",
            key="preferences.max_dropped_share",
            limit=config.max_dropped_share,
            # another pair takes the place of one that is left out
            total=sampled * comb(config.responses, 2) + revised,
        )
        self._panel = _Panel(config.panel, pairs) if config.panel else None
        self._identical = 0

    def add(self, record: Record) -> None:
        """Count one record.

        Raises:
            StageFailed: Too many unusable responses, calls of a judge that failed, or pairs without
                a verdict, or with one that follows the position, or left out.
        """
        self._identical += record["identical"]
        self._responses.add(
            rows.outcome(response).value
            for response in record["responses"]
            if candidates.is_sample(response)
        )
        for pair in record["comparisons"]:
            self._drops.add([pair["dropped"] or "made"])
            if not rows.was_judged(pair):
                continue
            if self._panel:
                self._panel.add(pair)
            self._pairs.add([_reason(pair) or "made"])
            if (follows := prefers_position(pair)) is not None:
                self._positions.add([_FOLLOWS if follows else "made"])

    def end(self, copies: int) -> None:
        """All records are counted; so many of their pairs are copies of others.

        Raises:
            StageFailed: As ``add``, of the pairs that there were, perhaps fewer than thought.
        """
        self._drops.counts["made"] -= copies
        self._drops.counts[Dropped.COPY.value] += copies
        for share in (self._pairs, self._positions, self._drops):
            share.end()
        if self._panel:
            self._panel.end()

    def figures(self) -> dict[str, Any]:
        """For the summary; ``panel`` only with one."""
        both = self._positions.counts
        return {
            "pairs": self._drops.counts.total(),
            "verdicts": self._pairs.counts["made"],
            "no_verdict": self._pairs.bad,
            "dropped": self._drops.bad,
            "identical_responses": self._identical,
            "unusable_responses": self._responses.bad,
            "position_bias": both[_FOLLOWS] / both.total() if both.total() else None,
            **({"panel": self._panel.figures()} if self._panel else {}),
        }


class _Panel:
    """What its judges said."""

    def __init__(self, config: PanelConfig, pairs: int) -> None:
        self._votes: list[list[float | None]] = []
        self._agreements: list[float] = []
        self._outcomes: dict[str, Counter[str]] = {name: Counter() for name in config.judges}
        self._failed = shares_of_judges(
            config, "preferences: comparisons that {} did not answer", pairs
        )

    def add(self, pair: Record) -> None:
        self._votes.append([vote["probability_a"] for vote in pair["votes"]])
        if pair["agreement"] is not None:
            self._agreements.append(pair["agreement"])
        for vote in pair["votes"]:
            outcome = _outcome(vote)
            self._outcomes[vote["judge"]][outcome] += 1
            self._failed[vote["judge"]].add([_FAILED if outcome == _FAILED else "made"])

    def end(self) -> None:
        for share in self._failed.values():
            share.end()

    def figures(self) -> dict[str, Any]:
        """``kappa``: of all (Fleiss). ``kappas``: of every two (Cohen)."""
        agreements = self._agreements
        names = list(self._outcomes)
        return {
            "judges": {name: dict(sorted(n.items())) for name, n in self._outcomes.items()},
            "agreement": sum(agreements) / len(agreements) if agreements else None,
            "kappa": kappa_of_votes(self._votes),
            "kappas": {
                f"{names[a]} {names[b]}": cohen_kappa([(v[a], v[b]) for v in self._votes])
                for a, b in combinations(range(len(names)), 2)
            },
        }


def _outcome(vote: Record) -> str:
    if vote["error"] is not None:
        return _FAILED
    return _most_frequent(vote["principles"]) if vote["no_verdict_reason"] else "made"


def _reason(pair: Record) -> str | None:
    """Why there is no verdict, in the words that say most."""
    if pair["no_verdict_reason"] is None:
        return None
    if pair["votes"]:
        found = Counter(map(_outcome, pair["votes"]))
        found.pop("made", None)
        return found.most_common(1)[0][0]
    return _most_frequent(pair["principles"])


def _most_frequent(principles: Sequence[Record]) -> str:
    """The principles' most frequent reason says more than that none of them has a verdict."""
    found = Counter(verdict["no_verdict_reason"] for verdict in principles)
    found.pop(None, None)
    return str(found.most_common(1)[0][0])
