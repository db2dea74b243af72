"""What an ablation has come to: every row measured, held against another, and judged.

Plain values, for ``ablation.json`` and for whoever shows them. Knows nothing of how they look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from solon.trainer.ablation.estimates import Cases, Estimate, effect, estimate, together, verdict
from solon.trainer.ablation.figures import Figures, measure
from solon.trainer.ablation.runner import Failure
from solon.trainer.ablation.spec import Ablation, Expectation, Finding
from solon.trainer.ablation.variants import Variant, is_done
from solon.trainer.state import RunState

Result = dict[str, Any]
"""JSON values; see ``Results.collect``."""


class Results:
    """The figures of an ablation's runs, as far as they are done."""

    def __init__(self, ablation: Ablation, variants: Iterable[Variant]) -> None:
        """Measure the runs that are done already.

        Args:
            ablation: The file.
            variants: All that are to be shown: those asked for, and others that are done.

        Raises:
            StoreError: A record cannot be read.
        """
        self._ablation = ablation
        self._variants = {(one.row, one.seed): one for one in variants}
        self._figures: dict[tuple[str, int], Figures] = {}
        self._failures: dict[tuple[str, int], Failure] = {}
        for variant in self._variants.values():
            if is_done(variant):
                self.add(variant, None)

    def add(self, variant: Variant, failure: Failure | None) -> None:
        """A run has ended.

        Raises:
            StoreError: A record cannot be read.
        """
        if failure is not None:
            self._failures[variant.row, variant.seed] = failure
            return
        last = variant.models[-1]
        self._figures[variant.row, variant.seed] = measure(variant.run, last=last)

    @property
    def done(self) -> list[str]:
        """Names of the variants that have been measured."""
        return [self._variants[key].name for key in self._figures]

    @property
    def failed(self) -> int:
        """How many variants have no result."""
        return len(self._failures)

    def collect(self) -> Result:
        """Everything, row by row.

        Returns:
            ``ablation``, ``base``, ``seeds``, ``first`` and ``rows``: name -> ``title``, ``set``,
            ``until``, ``against``, ``runs`` (seed -> directory and, by stage, the run that it was
            taken from), ``failures`` (seed -> kind and text), ``measures`` and ``effects`` (the
            difference to the row ``against``; measure -> ``mean``, ``half`` of the 95 % interval,
            ``seeds``, ``cases``), and ``findings`` with their ``verdict``.
        """
        config = self._ablation.config
        return {
            "ablation": self._ablation.name,
            "base": config.base,
            "set": config.set,
            "seeds": sorted({seed for _, seed in self._variants}),
            "first": config.first,
            "measures": list(config.measures),
            "picture": config.picture.model_dump(),
            "rows": {
                row: self._row(row)
                for row in config.rows
                if any(shown == row for shown, _ in self._variants)
            },
        }

    def _row(self, name: str) -> Result:
        config = self._ablation.config
        row, against = config.rows[name], config.against(name)
        figures = {seed: found for (row, seed), found in self._figures.items() if row == name}
        measures = sorted({measure for found in figures.values() for measure in found})
        found = {one: estimate(self._cases(name, one)) for one in measures}
        effects = {one: self._effect((name, one), (against, one)) for one in measures}
        return {
            "title": row.title,
            "set": row.set,
            "until": row.until,
            "against": None if against == name else against,
            "runs": {seed: self._run(name, seed) for r, seed in self._variants if r == name},
            "failures": {
                seed: asdict(failure) for (r, seed), failure in self._failures.items() if r == name
            },
            "measures": {one: asdict(value) for one, value in found.items() if value},
            "effects": {
                one: asdict(value) for one, value in effects.items() if value and against != name
            },
            "findings": [self._finding(name, finding) for finding in row.findings],
        }

    def _run(self, row: str, seed: int) -> Result:
        variant = self._variants[row, seed]
        if (row, seed) not in self._figures:
            return {"directory": variant.run.url, "taken_from": {}}
        state = RunState(variant.run)
        origins = {step.name: state.origin(step.name) for step in variant.steps}
        taken = {name: origin.run for name, origin in origins.items() if origin}
        return {"directory": variant.run.url, "taken_from": taken}

    def _finding(self, row: str, finding: Finding) -> Result:
        expected = [self._expectation(row, one) for one in finding.expect]
        return {
            "says": finding.says,
            "source": finding.source,
            "verdict": together([one["verdict"] for one in expected]),
            "expected": expected,
            "reason": finding.reason,
        }

    def _expectation(self, row: str, one: Expectation) -> Result:
        found: Estimate | None
        if one.is_ in ("at_most", "at_least"):
            other = None
            found = estimate(self._cases(row, one.measure))
        else:
            against = row if one.than_measure else self._ablation.config.against(row)
            other = (one.than or against, one.than_measure or one.measure)
            found = self._effect((row, one.measure), other)
        return {
            "measure": one.measure,
            "is": one.is_,
            "than": other and {"row": other[0], "measure": other[1]},
            "limit": one.limit,
            "found": found and asdict(found),
            "verdict": verdict(one.is_, found, one.limit),
        }

    def _effect(self, ours: tuple[str, str], theirs: tuple[str, str]) -> Estimate | None:
        return effect(self._cases(*ours), self._cases(*theirs))

    def _cases(self, row: str, name: str) -> Mapping[int, Cases]:
        return {
            seed: found[name]
            for (one, seed), found in self._figures.items()
            if one == row and name in found
        }
