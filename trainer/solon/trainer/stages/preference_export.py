"""From preference records to the pairs that the preference model is trained and tested on.

Knows nothing of how the records were made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from solon.chat import Conversation
from solon.constitution import derive_seed
from solon.trainer.errors import StageFailed
from solon.trainer.given import MARK
from solon.trainer.prompts import Prompt, source_digest
from solon.trainer.schemas import PREFERENCES, PREFERENCES_EXPORT
from solon.trainer.similarity import conversation_key
from solon.trainer.spool import temporary_database
from solon.trainer.stages.filters import copies
from solon.trainer.stages.preference_settings import PreferencesConfig
from solon.trainer.steps import Step, marked
from solon.trainer.store import Export, Record, RunDirectory

Split = Literal["train", "test"]
Row = dict[str, Any]


class Labels:
    """What may mislead training: longer texts that win, and labels without a spread."""

    def __init__(self) -> None:
        """Of none yet."""
        self._longer = Counter[bool]()
        self._tenths = Counter[int]()

    def add(self, row: Row) -> None:
        """Count a row of PREFERENCES_EXPORT that the judge labelled."""
        chosen, rejected = len(_text(row, "chosen")), len(_text(row, "rejected"))
        if chosen != rejected:
            self._longer[chosen > rejected] += 1
        self._tenths[min(int(row["probability"] * 10), 9)] += 1

    def figures(self) -> dict[str, Any]:
        """For the summary.

        ``longer_chosen``: of the pairs of different length, the share of which the longer one is
        chosen; None without any. ``labels``: tenth of the chosen one's probability -> pairs.
        """
        longer, tenths = self._longer, self._tenths
        return {
            "longer_chosen": longer[True] / longer.total() if longer else None,
            "labels": {f"{t / 10:.1f}-{(t + 1) / 10:.1f}": n for t, n in sorted(tenths.items())},
        }


def export_pairs(
    run: RunDirectory,
    step: Step,
    config: PreferencesConfig,
    *,
    without: Collection[str],
    given: Given,
) -> dict[str, Any]:
    """Write the pairs of all records that have a verdict and pass the filters, split by prompt.

    Args:
        run: Has the records.
        step: Whose.
        config: The stage's.
        without: Ids of pairs that are left out: see ``copied``.
        given: Comparisons to mix in.

    Returns:
        ``exported`` and ``given``: split -> all its pairs, and those of them that were given. The
        figures of ``Labels``.

    Raises:
        StageFailed: None of the judge's is left to train on.
    """
    labels = Labels()
    with (
        run.exporting(f"{step.name}/train", PREFERENCES_EXPORT) as train,
        run.exporting(f"{step.name}/test", PREFERENCES_EXPORT) as test,
    ):
        files: dict[Split, Export] = {"train": train, "test": test}
        for record in run.parts(step.name, PREFERENCES).records():
            rows = [row for row in pairs_of(record, step) if row["id"] not in without]
            files[split_of(record["prompt"], config.test_share)].extend(rows)
            for row in rows:
                labels.add(row)
        if not train.rows:
            raise StageFailed(
                f"{step.name}: no pair of different responses has a verdict and passes the "
                "filters, so that there is nothing to train on; look at the records in "
                f"{run.url}/{step.name}"
            )
        judged = {split: file.rows for split, file in files.items()}
        for split, file in files.items():
            file.extend(given.drawn(split, file.rows))
    exported = {split: file.rows for split, file in files.items()}
    return {
        "exported": exported,
        **labels.figures(),
        "given": {split: rows - judged[split] for split, rows in exported.items()},
    }


class Given:
    """Comparisons that were given, in the order in which they are drawn."""

    def __init__(self, prompts: Sequence[Prompt], config: PreferencesConfig, seed: int) -> None:
        """Draw.

        Args:
            prompts: With pairs of which the better is known.
            config: The stage's.
            seed: Of the draw.

        Raises:
            PromptError: A file of them is not there any more.
        """
        self._prompts = prompts
        self._config = config
        self._digests = {name: source_digest(name) for name in {one.source for one in prompts}}
        self._order = temporary_database()
        self._order.execute("CREATE TABLE pairs (split, draw INTEGER, place, number)")
        for place, prompt in enumerate(prompts):
            split = _split_of(prompt.conversation, config.test_share)
            for number, _ in enumerate(prompt.pairs):
                draw = derive_seed(seed, "given", _given_id(prompt, number)) - 2**63
                row = (split, draw, place, number)
                self._order.execute("INSERT INTO pairs VALUES (?, ?, ?, ?)", row)

    def drawn(self, split: Split, judged: int) -> Iterator[Row]:
        """As many of the split's, from the first on, as make their share beside the judged."""
        share = self._config.given.share
        wanted = round(judged * share / (1 - share))
        query = (
            "SELECT place, number FROM pairs WHERE split = ? ORDER BY draw, place, number LIMIT ?"
        )
        for place, number in self._order.execute(query, (split, wanted)):
            yield self._row(self._prompts[place], number)

    def _row(self, prompt: Prompt, number: int) -> Row:
        pair = prompt.pairs[number]
        return {
            "id": _given_id(prompt, number),
            "source": prompt.source,
            "row": prompt.row,
            "source_digest": self._digests[prompt.source],
            "prompt": prompt.conversation.as_dicts(),
            "chosen": _said(pair.chosen),
            "rejected": _said(pair.rejected),
            "probability": self._config.given.probability,
        }


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
    return _split_of(Conversation.from_dicts(prompt), test_share)


def _split_of(conversation: Conversation, test_share: float) -> Split:
    key = conversation_key(conversation)
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


def _given_id(prompt: Prompt, number: int) -> str:
    return f"{prompt.id}{MARK}{number}"


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _text(row: Row, side: str) -> str:
    return str(row[side][-1]["content"])
