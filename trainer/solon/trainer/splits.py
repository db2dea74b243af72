"""No prompt on both sides: what is trained on is not evaluated on.

Two prompts are the same here if they differ in case, white space or punctuation at most, whatever
their ids and whichever file they are of. Knows nothing of how prompts are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from solon.constitution.selection import derive_seed
from solon.trainer.errors import PromptError
from solon.trainer.importers import content_id
from solon.trainer.prompts import Prompt, Prompts, PromptSet
from solon.trainer.similarity import conversation_key
from solon.trainer.spool import TextSet, temporary_database

_MOST_SHOWN = 80


def divide(
    training: Mapping[str, PromptSet],
    evaluation: Mapping[str, PromptSet],
    *,
    held_out_share: float | None,
) -> dict[str, PromptSet]:
    """Give every prompt that both sides have to one of them.

    Args:
        training: Configuration key -> prompts.
        evaluation: Configuration key -> prompts.
        held_out_share: Share of the prompts of both that is evaluated on, 0 to 1. The hash of a
            prompt's text decides: the same in every run, whatever its seed. None: there may be
            none.

    Returns:
        All keys with what is left to them; ``PromptSet.divided`` counts what is not.

    Raises:
        PromptError: There are some and may not be, one id names two conversations, or a key is
            left with none.
    """
    _refuse_shared_ids({**training, **evaluation})
    held = TextSet(_key(prompt) for prompt in _all(evaluation))
    # most runs evaluate on few prompts, or on none that these could be among
    both = TextSet(key for key in map(_key, _all(training)) if key in held) if held else held
    if both and held_out_share is None:
        held_key, prompt = _first(evaluation, both)
        key, _ = _first(training, TextSet([_key(prompt)]))
        raise PromptError(
            f"prompts.{held_key}: {len(both)} held-out prompts are also in prompts.{key}, so that "
            "their evaluation would measure memory; remove them from one of the two, or have each "
            "given to one: prompts.held_out_share=1 keeps all of them for evaluation, 0.1 a tenth. "
            f"The first: {prompt.conversation.messages[-1].content[:_MOST_SHOWN]!r}"
        )
    out = TextSet(key for key in both if is_held_out(key, held_out_share or 0.0))
    kept = TextSet(key for key in both if key not in out)
    return _without(training, out) | _without(evaluation, kept)


def is_held_out(key: str, share: float) -> bool:
    """Whether the hash of a conversation's key is among this share of all hashes."""
    return derive_seed(0, "held out", key) < share * 2**64


def _key(prompt: Prompt) -> str:
    return conversation_key(prompt.conversation)


def _all(sets: Mapping[str, PromptSet]) -> Iterator[Prompt]:
    for of in sets.values():
        yield from of.prompts


def _first(sets: Mapping[str, PromptSet], keys: TextSet) -> tuple[str, Prompt]:
    """The first prompt with one of these keys, and the configuration key of its set."""
    return next((name, one) for name, of in sets.items() for one in of.prompts if _key(one) in keys)


def _without(sets: Mapping[str, PromptSet], taken: TextSet) -> dict[str, PromptSet]:
    if not taken:
        return dict(sets)
    made = {}
    for name, of in sets.items():
        left = Prompts(prompt for prompt in of.prompts if _key(prompt) not in taken)
        if of.prompts and not left:
            raise PromptError(
                f"prompts.{name}: none of its {len(of.prompts)} prompts is left: all of them are "
                "given to the other side; change prompts.held_out_share, or give it prompts of "
                "its own"
            )
        made[name] = replace(of, prompts=left, divided=len(of.prompts) - len(left))
    return made


def _refuse_shared_ids(sets: Mapping[str, PromptSet]) -> None:
    """A record is of one id: two prompts under it would pass for one."""
    known = temporary_database()
    known.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, first TEXT, content TEXT) WITHOUT ROWID")
    for name, of in sets.items():
        for prompt in of.prompts:
            content = content_id(prompt.conversation)
            row = (prompt.id, name, content)
            if known.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", row).rowcount:
                continue
            query = known.execute("SELECT first, content FROM ids WHERE id = ?", (prompt.id,))
            first, before = query.fetchone()
            if before != content:
                raise PromptError(
                    f"prompts.{name}: id {prompt.id!r} is that of another conversation in "
                    f"prompts.{first}; ids must be unique in a run, or left out"
                )
