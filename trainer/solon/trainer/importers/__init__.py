"""Prompts and labelled pairs out of the files that the field publishes them in.

``Importer`` reads a file row by row: its kind from its name, its format from its columns
(``formats``). What it gives are conversations, and with them what the file says of responses to
them. Knows nothing of what prompts or pairs are used for.
"""

from solon.trainer.importers.formats import FORMATS, Format, format_named
from solon.trainer.importers.reading import Importer, read_pairs
from solon.trainer.importers.records import Answers, Imported, LabelledPair, content_id, place_of

__all__ = [
    "FORMATS",
    "Answers",
    "Format",
    "Imported",
    "Importer",
    "LabelledPair",
    "content_id",
    "format_named",
    "place_of",
    "read_pairs",
]
