"""A constitution on trial: what a judge makes of pairs whose better response is known.

By principle and overall: how often it is right, whether its probabilities mean what they say, how
far it follows the position, how often it gives no verdict; how far the principles agree with one
another; and what the whole would be without each. Knows nothing of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.client import Comparison, JudgeClient
from solon.client.requests import ConstitutionRef
from solon.trainer.errors import PromptError
from solon.trainer.importers import Importer, LabelledPair, read_pairs
from solon.trainer.stages import rows
from solon.trainer.stages.calibration import calibration_error
from solon.trainer.stages.filters import prefers_position
from solon.trainer.stages.measures import rate
from solon.trainer.stages.work import Crowd, work_through

_LEAST = 1e-6
"""Probabilities nearer to 0 count as this in the log loss: a judge that is sure and wrong once
would else make it infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinion:
    """What the judge says of one pair by one principle, or by all."""

    probability: float | None
    """That the chosen response is better; None: no verdict."""
    follows_position: bool | None
    """Whether the two orders disagree; None unless both have a verdict."""
    weight: float = 1.0

    @property
    def is_right(self) -> bool:
        """Whether it prefers the chosen response. Undecided is not right."""
        return self.probability is not None and self.probability > 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One pair's opinions."""

    overall: Opinion
    by_principle: Mapping[str, Opinion]


def load_pairs(name: str) -> tuple[LabelledPair, ...]:
    """Labelled pairs of a file in any format that has them (``importers.formats``).

    Args:
        name: The file; for example a .jsonl of ``prompt``, ``chosen`` and ``rejected``.

    Raises:
        PromptError: It cannot be read, a row is wrong, or there is none.
    """
    pairs = tuple(read_pairs(Importer(name)))
    if not pairs:
        raise PromptError(f"{name}: expected at least one pair, got none")
    return pairs


async def try_pairs(
    judge: JudgeClient,
    pairs: Sequence[LabelledPair],
    constitution: ConstitutionRef,
    *,
    in_flight: int,
    on_done: Callable[[], None],
) -> list[Tried]:
    """Have a judge compare every pair by every principle, in both orders.

    Args:
        judge: Open.
        pairs: What is judged.
        constitution: By what.
        in_flight: Comparisons asked for at once, >= 1.
        on_done: Called after each.

    Raises:
        SolonError: The first failure; the other comparisons are cancelled.
    """
    results: dict[int, Tried] = {}

    async def one(numbered: tuple[int, LabelledPair]) -> None:
        number, pair = numbered
        made = await judge.compare(
            pair.conversation, pair.chosen, pair.rejected, constitution=constitution
        )
        results[number] = tried(made)
        on_done()

    await work_through(list(enumerate(pairs)), one, Crowd(in_flight))
    return [results[number] for number in range(len(pairs))]


def tried(made: Comparison) -> Tried:
    """A comparison in which the chosen response was A."""
    overall = rows.comparison(0, 1, made)
    return Tried(
        overall=Opinion(probability=made.probability_a, follows_position=prefers_position(overall)),
        by_principle={
            verdict.principle_id: Opinion(
                probability=verdict.probability_a,
                follows_position=verdict.position_dependent,
                weight=verdict.weight,
            )
            for verdict in made.principles
        },
    )


def measures(results: Sequence[Tried]) -> dict[str, Any]:
    """All figures.

    Returns:
        ``pairs``; ``overall`` and, by id, ``principles``, each with ``accuracy`` (of the pairs with
        a verdict), ``log_loss`` (nats), ``calibration_error`` (expected, over ten bins of
        confidence; Guo et al. 2017, section 2), ``position_bias``, ``no_verdict`` (shares), all
        null without cases; a principle also ``weight`` and ``without``, the accuracy of all others
        together; ``agreement``: principle -> principle -> share of the pairs that both decide on
        which they prefer the same response.
    """
    names = list(dict.fromkeys(name for one in results for name in one.by_principle))
    return {
        "pairs": len(results),
        "overall": _figures([one.overall for one in results]),
        "principles": {name: _of_principle(name, results) for name in names},
        "agreement": {a: {b: _agreement(a, b, results) for b in names} for a in names},
    }


def _of_principle(name: str, results: Sequence[Tried]) -> dict[str, Any]:
    opinions = [one.by_principle[name] for one in results if name in one.by_principle]
    others = [_mean(o for key, o in one.by_principle.items() if key != name) for one in results]
    decided = [p > 0.5 for p in others if p is not None]
    return {
        "weight": opinions[0].weight,
        **_figures(opinions),
        "without": rate(decided, bool)["rate"],
    }


def _figures(opinions: Sequence[Opinion]) -> dict[str, float | None]:
    decided = [o for o in opinions if o.probability is not None]
    follows = [o.follows_position for o in opinions if o.follows_position is not None]
    probabilities = [o.probability or 0.0 for o in decided]
    losses = [-math.log(max(p, _LEAST)) for p in probabilities]
    return {
        "accuracy": rate(decided, lambda o: o.is_right)["rate"],
        "log_loss": math.fsum(losses) / len(losses) if losses else None,
        # the chosen response is the better one for certain
        "calibration_error": calibration_error(probabilities, [1.0] * len(decided))
        if decided
        else None,
        "position_bias": rate(follows, bool)["rate"],
        "no_verdict": rate(opinions, lambda o: o.probability is None)["rate"],
    }


def _agreement(a: str, b: str, results: Sequence[Tried]) -> float | None:
    both = [
        (one.by_principle[a], one.by_principle[b])
        for one in results
        if a in one.by_principle and b in one.by_principle
    ]
    decided = [
        one.is_right == other.is_right
        for one, other in both
        if one.probability is not None and other.probability is not None
    ]
    return rate(decided, bool)["rate"]


def _mean(opinions: Iterable[Opinion]) -> float | None:
    """As the judge takes it over principles: weighted, of those with a verdict."""
    found = [(o.weight, o.probability) for o in opinions if o.probability is not None]
    total = math.fsum(weight for weight, _ in found)
    return math.fsum(w * p for w, p in found) / total if total else None
