"""From preference records to the pairs that the preference model is trained and tested on.

Knows nothing of how the records were made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from solon.chat import Conversation
from solon.constitution import derive_seed
from solon.trainer.errors import StageFailed
from solon.trainer.given import MARK
from solon.trainer.prompts import Prompt, source_digest
from solon.trainer.schemas import PREFERENCES, PREFERENCES_EXPORT
from solon.trainer.similarity import conversation_key
from solon.trainer.stages.filters import copies
from solon.trainer.stages.preference_settings import PreferencesConfig
from solon.trainer.steps import Step, marked
from solon.trainer.store import Record, RunDirectory

Split = Literal["train", "test"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """The rows for training, and what is left out only because of others."""

    rows: dict[Split, list[Row]]
    """Of PREFERENCES_EXPORT: those that the judge labelled."""
    given: dict[Split, list[Row]]
    """The same of comparisons that were given."""
    copies: int
    """Pairs left out because the same two responses were a pair often enough before."""

    def write(self, run: RunDirectory, step: Step) -> dict[Split, int]:
        """Put the step's files in their place; returns how many rows each has.

        Raises:
            StageFailed: None is left to train on.
        """
        if not self.rows["train"]:
            raise StageFailed(
                f"{step.name}: no pair of different responses has a verdict and passes the "
                "filters, so that there is nothing to train on; look at the records in "
                f"{run.url}/{step.name}"
            )
        return {
            split: run.export(f"{step.name}/{split}", found + self.given[split], PREFERENCES_EXPORT)
            for split, found in self.rows.items()
        }

    def figures(self) -> dict[str, Any]:
        """What may mislead training: longer texts that win, and labels without a spread.

        ``longer_chosen``: of the pairs of different length, the share of which the longer one is
        chosen; None without any. ``labels``: tenth of the chosen one's probability -> pairs. Both
        of the judge's labels; ``given``: split -> pairs beside them.
        """
        pairs = [row for found in self.rows.values() for row in found]
        lengths = [(len(_text(row, "chosen")), len(_text(row, "rejected"))) for row in pairs]
        longer = [chosen > rejected for chosen, rejected in lengths if chosen != rejected]
        tenths = Counter(min(int(row["probability"] * 10), 9) for row in pairs)
        return {
            "longer_chosen": sum(longer) / len(longer) if longer else None,
            "labels": {f"{t / 10:.1f}-{(t + 1) / 10:.1f}": n for t, n in sorted(tenths.items())},
            "given": {split: len(found) for split, found in self.given.items()},
        }


def collect(
    run: RunDirectory,
    step: Step,
    config: PreferencesConfig,
    *,
    comparisons: Sequence[Prompt],
    seed: int,
) -> Export:
    """The pairs of all records that have a verdict and pass the filters, split by prompt.

    Args:
        run: Has the records.
        step: Whose.
        config: The stage's.
        comparisons: Prompts with pairs of which the better is known, to draw from.
        seed: Of the draw.

    Raises:
        PromptError: A file of comparisons is not there any more.
    """
    most = config.filters.max_copies
    out = copied(run, step, most)
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    for record in run.parts(step.name, PREFERENCES).records():
        kept = (row for row in pairs_of(record, step) if row["id"] not in out)
        rows[split_of(record["prompt"], config.test_share)].extend(kept)
    digests = {name: source_digest(name) for name in {one.source for one in comparisons}}
    pool = [row for one in comparisons for row in _given_of(one, config, digests[one.source])]
    pool.sort(key=lambda row: derive_seed(seed, "given", row["id"]))
    given = {split: _drawn(pool, split, len(found), config) for split, found in rows.items()}
    return Export(rows=rows, given=given, copies=len(out))


def copied(run: RunDirectory, step: Step, most: int | None) -> frozenset[str]:
    """Ids of the pairs that the filter ``max_copies`` leaves out, which no record knows alone."""
    if most is None:
        return frozenset()
    records = run.parts(step.name, PREFERENCES).records()
    return frozenset(copies((row for record in records for row in pairs_of(record, step)), most))


def split_of(prompt: Sequence[Mapping[str, str]], test_share: float) -> Split:
    """Which split a prompt's pairs belong to: by the hash of its text, so the same in every run.

    Prompts that differ in case, white space or punctuation at most are in the same.
    """
    key = conversation_key(Conversation.from_dicts(prompt))
    return "test" if derive_seed(0, "split", key) < test_share * 2**64 else "train"


def pairs_of(record: Record, step: Step) -> Iterator[Row]:
    """The rows of PREFERENCES_EXPORT that come of a record: verdicts that no filter left out."""
    for pair in record["comparisons"]:
        probability = pair["probability_a"]
        if probability is None or pair["dropped"] is not None:
            continue
        chosen, rejected = pair["a"], pair["b"]
        if probability < 0.5:
            chosen, rejected, probability = rejected, chosen, 1 - probability
        yield {
            "id": row_id(record, pair, step),
            "source": record["source"],
            "row": record["row"],
            "source_digest": None,
            "prompt": record["prompt"],
            "chosen": _said(record["responses"][chosen]["text"]),
            "rejected": _said(record["responses"][rejected]["text"]),
            "probability": probability,
        }


def row_id(record: Record, pair: Record, step: Step) -> str:
    """What a judged pair is called: ``PROMPT:0-1``, in the second iteration ``PROMPT:0-1:i2``."""
    return marked(f"{record['id']}:{pair['a']}-{pair['b']}", step.iteration)


def _given_of(prompt: Prompt, config: PreferencesConfig, digest: str) -> Iterator[Row]:
    for number, pair in enumerate(prompt.pairs):
        yield {
            "id": f"{prompt.id}{MARK}{number}",
            "source": prompt.source,
            "row": prompt.row,
            "source_digest": digest,
            "prompt": prompt.conversation.as_dicts(),
            "chosen": _said(pair.chosen),
            "rejected": _said(pair.rejected),
            "probability": config.given.probability,
        }


def _drawn(pool: Sequence[Row], split: Split, judged: int, config: PreferencesConfig) -> list[Row]:
    """As many of the split's, from the first on, as make their share beside the judged pairs."""
    share = config.given.share
    wanted = round(judged * share / (1 - share))
    own = (row for row in pool if split_of(row["prompt"], config.test_share) == split)
    return list(islice(own, wanted))


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _text(row: Row, side: str) -> str:
    return str(row[side][-1]["content"])
