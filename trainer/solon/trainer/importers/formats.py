"""The formats of prompt files: which columns they have, and what a row of each means.

=====================  ===========================================================================
``prompts``            prompt; perhaps id, category. TRL's prompt-only format, and Solon's own
``prompt_completion``  prompt, completion. TRL's; the completion is left out
``preference``         prompt, chosen, rejected. TRL's, with an explicit prompt
``implicit``           chosen, rejected. TRL's, with an implicit prompt: what both begin with
``messages``, ``text`` TRL's language modelling; the last turn, if the assistant's, is left out
``hh_rlhf``            chosen, rejected as Human/Assistant transcripts (Bai et al. 2022, 2204.05862)
``hh_red_team``        transcript, tags (Ganguli et al. 2022, 2209.07858)
``rewardbench``        prompt, chosen, rejected, subset (Lambert et al. 2024, 2403.13787)
``paper_eval``         prompt, corrects, incorrects (Bai et al. 2022, 2212.08073)
``xstest``             prompt, type, label, focus (Röttger et al. 2023, 2308.01263)
``harmbench``          Behavior, SemanticCategory, ContextString (Mazeika et al. 2024, 2402.04249)
``advbench``           goal, target (Zou et al. 2023, 2307.15043)
``strongreject``       category, source, forbidden_prompt (Souly et al. 2024, 2402.10260)
``lines``              a text file of a prompt a line; JSON lines or a JSON list of texts
=====================  ===========================================================================

Conversations of several turns are kept whole. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from solon.trainer.errors import PromptError
from solon.trainer.importers.records import Answers, Imported
from solon.trainer.importers.rows import Row
from solon.trainer.importers.turns import (
    answers_of,
    conversation_of,
    is_transcript,
    shown,
    whole_conversations,
)
from solon.trainer.prompt_settings import FormatName

Columns = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How rows of one format are told apart and read."""

    name: FormatName
    columns: frozenset[str]
    """Those that a row must have. Another format that fits and has more of them goes before."""
    read: Callable[[Row], Imported]
    """Raises ``PromptError``: the row holds no prompt."""
    fits: Callable[[Columns], bool] = lambda _: True
    """Whether a row that has the columns is of this format, by its values."""


def format_named(name: FormatName) -> Format:
    """The format of that name."""
    return next(one for one in FORMATS if one.name == name)


def format_of(row: Row) -> Format:
    """The format that a file's first row shows.

    Raises:
        PromptError: None fits, or more than one; the text says which and what to set.
    """
    if isinstance(row.value, str):
        return format_named("lines")
    if not isinstance(row.value, dict):
        raise _not_a_table(row)
    values = row.value
    tables = [one for one in FORMATS if one.columns]
    fitting = [one for one in tables if one.columns <= values.keys() and one.fits(values)]
    most = [one for one in fitting if not any(one.columns < other.columns for other in fitting)]
    if len(most) == 1:
        return most[0]
    if most:
        raise PromptError(
            f"{row.place}: fits the formats {' and '.join(one.name for one in most)}; say which it "
            f"is, with `format: {most[0].name}` beside the source, or --format {most[0].name}"
        )
    known = "; ".join(f"{one.name} ({', '.join(sorted(one.columns))})" for one in tables)
    raise PromptError(
        f"{row.place}: expected the columns of a known format, got {', '.join(map(str, values))}; "
        f"rename a column, for example to prompt. Formats: {known}"
    )


def read_row(of: Format, row: Row) -> Imported:
    """One row as its format means it.

    Raises:
        PromptError: It lacks a column, or holds no prompt.
    """
    if of.columns:
        if not isinstance(row.value, dict):
            raise _not_a_table(row)
        missing = sorted(of.columns - row.value.keys())
        if missing:
            raise PromptError(
                f"{row.place}: expected the columns of the format {of.name}, "
                f"{', '.join(sorted(of.columns))}; {missing[0]!r} is missing, got "
                f"{', '.join(map(repr, row.value)) or 'none'}"
            )
    return of.read(row)


def _not_a_table(row: Row) -> PromptError:
    return PromptError(
        f'{row.place}: expected an object such as {{"prompt": a text or a list of messages}}, '
        f"got {shown(row.value)}"
    )


def _column(name: str, *, category: str | None = None) -> Callable[[Row], Imported]:
    """Formats whose prompt is one column's text."""

    def read(row: Row) -> Imported:
        return Imported(
            conversation=conversation_of(row.value[name], f"{row.place}: {name}"),
            row=row.label,
            category=_text(row, category) if category else None,
        )

    return read


def _prompts(row: Row) -> Imported:
    return Imported(
        conversation=conversation_of(row.value["prompt"], f"{row.place}: prompt"),
        row=row.label,
        id=_id(row),
        category=_text(row, "category"),
    )


def _preference(row: Row) -> Imported:
    prompts = _prompts(row)
    keys = ("chosen", "rejected")
    pair = answers_of(row.value["chosen"], row.value["rejected"], row.place, keys)
    return Imported(
        conversation=prompts.conversation,
        row=row.label,
        id=prompts.id,
        category=_text(row, "subset") or prompts.category,
        pairs=(pair,),
    )


def _implicit(row: Row) -> Imported:
    keys = ("chosen", "rejected")
    chosen, rejected = (row.value[key] for key in keys)
    if isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen):
        # as TRL divides them, but between words: the prompt is what both begin with
        prompt = _common_beginning(chosen, rejected).rpartition(" ")[0]
        conversation = conversation_of(prompt, f"{row.place}: what {' and '.join(keys)} share")
        ends = [text[len(prompt) :].lstrip() for text in (chosen, rejected)]
        pair = answers_of(ends[0], ends[1], row.place, keys)
    else:
        conversation, pair = whole_conversations(chosen, rejected, row.place, keys)
    return Imported(
        conversation=conversation,
        row=row.label,
        id=_id(row),
        category=_text(row, "category"),
        pairs=(pair,),
    )


def _common_beginning(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _modelled(name: str) -> Callable[[Row], Imported]:
    def read(row: Row) -> Imported:
        place = f"{row.place}: {name}"
        return Imported(
            conversation=conversation_of(row.value[name], place, ends_with_answer=True),
            row=row.label,
            id=_id(row),
            category=_text(row, "category"),
        )

    return read


def _red_team(row: Row) -> Imported:
    tags = row.value.get("tags")
    place = f"{row.place}: transcript"
    return Imported(
        conversation=conversation_of(row.value["transcript"], place, ends_with_answer=True),
        row=row.label,
        category=", ".join(map(str, tags)) if isinstance(tags, list) and tags else None,
    )


def _harmbench(row: Row) -> Imported:
    behavior, context = row.value["Behavior"], row.value.get("ContextString") or ""
    if not isinstance(behavior, str) or not behavior.strip():
        raise PromptError(f"{row.place}: Behavior: expected a text, got {shown(behavior)}")
    # the context first, as the benchmark itself asks
    asked = f"{context.strip()}\n\n---\n\n{behavior}" if context.strip() else behavior
    return Imported(
        conversation=conversation_of(asked, row.place),
        row=row.label,
        category=_text(row, "SemanticCategory"),
    )


def _paper_eval(row: Row) -> Imported:
    keys = ("text_correct", "text_incorrect")
    if row.value.keys() >= set(keys):
        # 438HHHEvaluations: beside the question with options, the conversations themselves
        right, wrong = (row.value[key] for key in keys)
        conversation, pair = whole_conversations(right, wrong, row.place, keys)
        return Imported(conversation=conversation, row=row.label, pairs=(pair,))
    options = [row.value[key] for key in ("corrects", "incorrects")]
    if not all(isinstance(of, list) and of for of in options):
        raise PromptError(f"{row.place}: corrects and incorrects: expected lists of texts")
    place, names = row.place, ("corrects", "incorrects")
    pairs: tuple[Answers, ...] = tuple(
        answers_of(right, wrong, place, names) for right in options[0] for wrong in options[1]
    )
    conversation = conversation_of(row.value["prompt"], f"{row.place}: prompt")
    return Imported(conversation=conversation, row=row.label, pairs=pairs)


def _line(row: Row) -> Imported:
    if not isinstance(row.value, str):
        raise PromptError(
            f"{row.place}: the format lines is of texts alone, got {shown(row.value)}"
        )
    return Imported(conversation=conversation_of(row.value, row.place), row=row.label)


def _id(row: Row) -> str | None:
    given = row.value.get("id")
    if given is not None and not isinstance(given, str | int):
        raise PromptError(f"{row.place}: id: expected a text or a whole number, got {shown(given)}")
    return None if given is None else str(given)


def _text(row: Row, column: str) -> str | None:
    value = row.value.get(column)
    return None if value is None or value == "" else str(value)


def _has_transcripts(row: Columns) -> bool:
    return is_transcript(row["chosen"])


def _format(name: FormatName, columns: str, read: Callable[[Row], Imported]) -> Format:
    return Format(name=name, columns=frozenset(columns.split()), read=read)


FORMATS: tuple[Format, ...] = (
    _format("prompts", "prompt", _prompts),
    _format("prompt_completion", "prompt completion", _prompts),
    _format("preference", "prompt chosen rejected", _preference),
    Format(
        name="implicit",
        columns=frozenset(("chosen", "rejected")),
        read=_implicit,
        fits=lambda row: not _has_transcripts(row),
    ),
    _format("messages", "messages", _modelled("messages")),
    _format("text", "text", _modelled("text")),
    Format(
        name="hh_rlhf",
        columns=frozenset(("chosen", "rejected")),
        read=_implicit,
        fits=_has_transcripts,
    ),
    _format("hh_red_team", "transcript", _red_team),
    _format("rewardbench", "prompt chosen rejected subset", _preference),
    _format("paper_eval", "prompt corrects incorrects", _paper_eval),
    _format("xstest", "prompt type label focus", _column("prompt", category="type")),
    _format("harmbench", "Behavior BehaviorID", _harmbench),
    _format("advbench", "goal target", _column("goal")),
    _format(
        "strongreject",
        "category forbidden_prompt",
        _column("forbidden_prompt", category="category"),
    ),
    _format("lines", "", _line),
)
