"""A file read as one format, some of its rows or all. Knows nothing of any format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from solon.trainer.errors import PromptError
from solon.trainer.importers.formats import Format, format_named, format_of, read_row
from solon.trainer.importers.records import Imported, LabelledPair, content_id, place_of
from solon.trainer.importers.rows import Row, read_rows
from solon.trainer.prompt_settings import FormatName

_MOST_LISTED = 20


class Importer:
    """The prompts of a file, read anew by every iteration; the counts are of the last one."""

    def __init__(
        self,
        path: str | Path,
        *,
        file_format: FormatName | None = None,
        where: Mapping[str, tuple[str, ...]] | None = None,
        skip_unusable: bool = False,
    ) -> None:
        """Look at nothing yet.

        Args:
            path: The file.
            file_format: What its rows are. None: what the first row's columns show.
            where: Column -> values; only rows with one of them in each column are read.
            skip_unusable: Leave out, and count, rows that hold no prompt, instead of refusing them.
        """
        self.path = Path(path)
        self._where = dict(where or {})
        self._skip_unusable = skip_unusable
        self.format: Format | None = file_format and format_named(file_format)
        """What the rows are; None until the first was read."""
        self.excluded = 0
        """Rows that ``where`` left out."""
        self.unusable = 0
        """Rows that hold no prompt, and were left out."""

    def __iter__(self) -> Iterator[Imported]:
        """Row by row.

        Raises:
            PromptError: The file cannot be read, its format is not known, a row holds no prompt,
                or no row is chosen by ``where``.
        """
        self.excluded = self.unusable = 0
        values: dict[str, Counter[str]] = {column: Counter() for column in self._where}
        chosen = 0
        for row in read_rows(self.path):
            # a row that is left out may be of no use
            if not self._is_chosen(row, values):
                self.excluded += 1
                continue
            chosen += 1
            self.format = self.format or format_of(row)
            try:
                made = read_row(self.format, row)
            except PromptError:
                if not self._skip_unusable:
                    raise
                self.unusable += 1
                continue
            yield made
        if self.excluded and not chosen:
            raise self._nothing_chosen(values)

    def _is_chosen(self, row: Row, values: dict[str, Counter[str]]) -> bool:
        if not self._where:
            return True
        columns = row.value if isinstance(row.value, dict) else {}
        if missing := [column for column in self._where if column not in columns]:
            raise PromptError(
                f"{row.place}: where.{missing[0]}: no such column; there are "
                f"{', '.join(map(str, columns)) or 'none'}"
            )
        is_chosen = True
        for column, wanted in self._where.items():
            found = _texts(columns[column])
            if len(values[column]) < _MOST_LISTED:
                values[column].update(found)
            is_chosen = is_chosen and not found.isdisjoint(wanted)
        return is_chosen

    def _nothing_chosen(self, values: Mapping[str, Counter[str]]) -> PromptError:
        said = "; ".join(
            f"where.{column}: expected one of its values, such as "
            f"{', '.join(map(repr, values[column]))}, got {', '.join(map(repr, wanted))}"
            for column, wanted in self._where.items()
        )
        return PromptError(f"{self.path}: no row is chosen: {said}")


def read_pairs(importer: Importer) -> Iterator[LabelledPair]:
    """The pairs of responses of which the file says which is better.

    Raises:
        PromptError: As ``Importer``; or the format has no such pairs.
    """
    for made in importer:
        if not made.pairs:
            assert importer.format is not None
            place = place_of(importer.path, made.row)
            raise PromptError(
                f"{place}: the format {importer.format.name} has no pairs of a better and a worse "
                "response; expected prompt, chosen and rejected, or another format that has them"
            )
        for pair in made.pairs:
            yield LabelledPair(
                id=made.id or content_id(made.conversation),
                conversation=made.conversation,
                chosen=pair.chosen,
                rejected=pair.rejected,
                category=made.category,
                row=made.row,
            )


def _texts(value: Any) -> set[str]:
    """A cell's value as the configuration spells it; a list's values."""
    values = value if isinstance(value, list) else [value]
    return {str(one).lower() if isinstance(one, bool) else str(one) for one in values}
