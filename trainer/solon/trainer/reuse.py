"""Stages that another run has made already: their results are taken over instead of made again.

What a run takes over is as if it had made it: the files lie in its own directory (hard links, where
the disk allows them; a run's files are never changed in place), and the state names the run that
made them. ``lineage`` alone decides whether a result fits. Knows nothing of how a stage works.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from solon.trainer.config import differences
from solon.trainer.errors import StoreError
from solon.trainer.fleet import Weights
from solon.trainer.lineage import claimed, decided_by
from solon.trainer.schemas import EVALUATION, JUDGED_PAIRS
from solon.trainer.session import Session, saved_config
from solon.trainer.stage_names import Stage
from solon.trainer.stages import evaluate
from solon.trainer.state import Origin, RunState, StageKey
from solon.trainer.steps import Step
from solon.trainer.store import Parts, Record, RunDirectory

_RESULT: Mapping[Stage, tuple[str, ...]] = {
    "revisions": ("revisions", "export/sft"),
    "sft": ("models/sl",),
    "preferences": ("preferences{}", "export/preferences{}"),
    "reward": ("models/reward{}", "models/reward_test{}"),
    "rl": ("models/rl{}", "models/rl{}-snapshots", "export/rl_prompts", "rl{}"),
}
"""Stage -> the folders of its result, ``{}`` being a later iteration's number. The first appears
last: with it the result is there. Of the others some are made with some configurations only."""
_METRICS = "metrics.jsonl"


class Reuse:
    """The runs that one run may take over stages from."""

    def __init__(self, session: Session, state: RunState, sources: Sequence[RunDirectory]) -> None:
        """Look at the sources' states.

        Raises:
            RunDirectoryError: This run, or a source, is no folder of this machine.
        """
        self._session = session
        self._state = state
        self._run = session.run
        others = [one for one in sources if one.local != session.run.local]
        self._sources = [(one, RunState(one)) for one in others]

    def take(self, step: Step, key: StageKey | None) -> Origin | None:
        """Take the step over; where from, or None if no source has it.

        Where a source has the same records, of which this run is to make something else, those
        alone are taken: the step is not done, but will find them done.

        Raises:
            StoreError: A file cannot be read or written.
        """
        if key is None or not self._is_untouched(step):
            return None
        found = self._best(step, key)
        if found is None:
            return None
        source, state = found
        whole = state.key(step.name) == key
        origin = _origin(source, state, step.name, whole=whole)
        self._state.taking(step.name, origin)
        folders = _folders(step)
        self._link(source, step, folders if whole else folders[:1])
        if whole:
            self._state.taken(step.name, origin, state.summary(step.name), key)
        return origin

    def _best(self, step: Step, key: StageKey) -> tuple[RunDirectory, RunState] | None:
        """A source that has the whole result; if there is none, one that has the records."""
        fit = [
            (source, state)
            for source, state in self._sources
            if (theirs := state.key(step.name)) is not None
            and theirs.records == key.records
            and state.is_done(step.name)
        ]
        return min(fit, key=lambda one: one[1].key(step.name) != key, default=None)

    def take_answers(self, key: StageKey | None, weights: Mapping[str, Weights]) -> int:
        """Take over the evaluation's answers of models that a source has asked the same; how many.

        And the judge's verdicts on pairs of them, where the judge was asked the same.

        Raises:
            StoreError: A file cannot be read or written.
        """
        if key is None:
            return 0
        taken = 0
        answers, pairs = _evaluated(self._run)
        for source, state in self._sources:
            theirs = state.key("evaluate")
            if theirs is None or theirs.records != key.records:
                continue
            their_answers, their_pairs = _evaluated(source)
            same = _same_models(their_answers, weights)
            fit = [one for one in their_answers.records() if one["model"] in same]
            if fit:
                origin = _origin(source, state, "evaluate", whole=False)
                self._state.taking("evaluate", origin)
            taken += _append_new(answers, fit)
            if theirs.result == key.result:
                judged = their_pairs.records()
                fit = [one for one in judged if {one["model_a"], one["model_b"]} <= same]
                _append_new(pairs, fit)
        return taken

    def why_not(self, step: Step) -> list[str]:
        """A line a source, none of which could serve for the step: what differs."""
        return [
            f"{step.name}: not taken from {source.url}: {self._difference(step, source, state)}"
            for source, state in self._sources
        ]

    def _difference(self, step: Step, source: RunDirectory, state: RunState) -> str:
        if not state.is_done(step.name):
            return "it has not finished it"
        if state.key(step.name) is None:
            return "it does not say what its result was made of"
        changed = differences(saved_config(source), self._session.config)
        ours = [line for line in changed if claimed(step.stage, line.partition(":")[0])]
        before = " or ".join(one.name for one in decided_by(self._session.config, step))
        other = f"{before} differs" if before else "a file that it names differs"
        return "; ".join(ours) or f"{other}, or a model or the constitution"

    def _is_untouched(self, step: Step) -> bool:
        """Whether there is nothing of the step's own, which another's must not be mixed with."""
        if self._state.origin(step.name) is not None:
            return True
        return not (self._run.local / _folders(step)[0]).exists()

    def _link(self, source: RunDirectory, step: Step, folders: Sequence[str]) -> None:
        try:
            for folder in reversed(folders):
                if folder == folders[0] or (source.local / folder).exists():
                    _link_folder(source.local / folder, self._run.local / folder)
            if source.storage.exists(_METRICS):
                self._take_metrics(source, step)
        except OSError as error:
            raise StoreError(
                f"{self._run.url}: could not take {step.name} over from {source.url}: {error}"
            ) from error

    def _take_metrics(self, source: RunDirectory, step: Step) -> None:
        own = self._run.storage.read(_METRICS) if self._run.storage.exists(_METRICS) else b""
        kept = [line for line in own.splitlines(keepends=True) if not _is_of(line, step)]
        theirs = source.storage.read(_METRICS).splitlines(keepends=True)
        kept += [line for line in theirs if _is_of(line, step)]
        self._run.storage.write(_METRICS, b"".join(kept))


def _origin(source: RunDirectory, state: RunState, step: str, *, whole: bool) -> Origin:
    """The run that made it, through however many it has come."""
    made = state.origin(step)
    if made is not None and made.whole:
        return replace(made, whole=whole)
    seconds = state.seconds(step) + (made.seconds if made else 0.0)
    return Origin(run=source.url, seconds=seconds, whole=whole)


def _folders(step: Step) -> tuple[str, ...]:
    return tuple(folder.format(step.at("")) for folder in _RESULT[step.stage])


def _is_of(line: bytes, step: Step) -> bool:
    # a line without its end is of a step at work, which is not one that is taken
    names = (step.name, step.at(f"{step.stage}_test"))
    return line.endswith(b"\n") and json.loads(line)["stage"] in names


def _link_folder(source: Path, target: Path) -> None:
    """The folder appears whole or not at all; one that is there stays."""
    if target.exists():
        return
    beside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, beside, copy_function=_link_or_copy)
    beside.replace(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # another disk, or one that knows no links
        shutil.copy2(source, target)


def _evaluated(run: RunDirectory) -> tuple[Parts, Parts]:
    answers = run.parts(evaluate.RESPONSES_FOLDER, EVALUATION)
    return answers, run.parts(evaluate.PAIRS_FOLDER, JUDGED_PAIRS)


def _same_models(answers: Parts, weights: Mapping[str, Weights]) -> set[str]:
    """Models of which a source has answers by these very weights."""
    found: dict[str, Any] = {
        model: answered["weight_version"]
        for model, answered in zip(answers.column("model"), answers.column("policy"), strict=True)
    }
    return {model for model, one in weights.items() if found.get(model) == one.version}


def _append_new(parts: Parts, records: Sequence[Record]) -> int:
    known = parts.ids()
    new = [record for record in records if record["id"] not in known]
    parts.append(new)
    return len(new)
