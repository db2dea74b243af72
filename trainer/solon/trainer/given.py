"""Given comparisons as a run has trained on them: what each says, and where it comes from.

Knows nothing of how they were drawn or mixed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import rich.console
from rich.markup import escape

from solon.trainer.store import RunDirectory

MARK = ":given-"
"""Between a prompt's id and the number of a comparison that was given with it."""


def rows(run: RunDirectory, folders: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All that were mixed in: rows of ``schemas.PREFERENCES_EXPORT``, and the ``file`` of each.

    Args:
        run: Has the exports.
        folders: Of ``export``, in which there are pairs.

    Raises:
        StoreError: An export is damaged.
    """
    for folder in folders:
        for split in ("train", "test"):
            file = f"{folder}/{split}"
            yield from (row | {"file": file} for row in run.exported(file) if MARK in row["id"])


def prompt_id(row: dict[str, Any]) -> str:
    """Of the prompt that a row's responses answer."""
    return str(row["id"]).rpartition(MARK)[0]


def show(found: Sequence[dict[str, Any]], console: rich.console.Console) -> None:
    """For people."""
    console.rule("given comparisons", align="left")
    for row in found:
        _say(
            console, "from", f"{row['source']} {row['row']}  [SHA-256 {row['source_digest'][:12]}]"
        )
        head = f"export/{row['file']} {row['id']}"
        _say(console, head, f"better with {row['probability']:.4f}: {row['chosen'][-1]['content']}")
        _say(console, "than", row["rejected"][-1]["content"])


def _say(console: rich.console.Console, who: str, text: str) -> None:
    console.print(f"[bold]{escape(who)}[/bold]: {escape(text)}", soft_wrap=True)
