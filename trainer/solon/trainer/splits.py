"""No prompt on both sides: what is trained on is not evaluated on.

Two prompts are the same here if they differ in case, white space or punctuation at most, whatever
their ids and whichever file they are of. Knows nothing of how prompts are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import compress

from solon.constitution.selection import derive_seed
from solon.trainer.errors import PromptError
from solon.trainer.importers import content_id
from solon.trainer.prompts import Prompt, PromptSet
from solon.trainer.similarity import conversation_key

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
    keys = {name: _keys(of) for name, of in {**training, **evaluation}.items()}
    trained, held = _by_key(training, keys), _by_key(evaluation, keys)
    both = trained.keys() & held.keys()
    if both and held_out_share is None:
        first = next(key for key in held if key in both)
        (held_key, prompt), (key, _) = held[first], trained[first]
        raise PromptError(
            f"prompts.{held_key}: {len(both)} held-out prompts are also in prompts.{key}, so that "
            "their evaluation would measure memory; remove them from one of the two, or have each "
            "given to one: prompts.held_out_share=1 keeps all of them for evaluation, 0.1 a tenth. "
            f"The first: {prompt.conversation.messages[-1].content[:_MOST_SHOWN]!r}"
        )
    out = {key for key in both if is_held_out(key, held_out_share or 0.0)}
    return _without(training, keys, out) | _without(evaluation, keys, both - out)


def is_held_out(key: str, share: float) -> bool:
    """Whether the hash of a conversation's key is among this share of all hashes."""
    return derive_seed(0, "held out", key) < share * 2**64


def _keys(of: PromptSet) -> list[str]:
    return [conversation_key(prompt.conversation) for prompt in of.prompts]


def _by_key(
    sets: Mapping[str, PromptSet], keys: Mapping[str, list[str]]
) -> dict[str, tuple[str, Prompt]]:
    """``conversation_key`` -> the configuration's key and the prompt that had it first."""
    found: dict[str, tuple[str, Prompt]] = {}
    for name, of in sets.items():
        for key, prompt in zip(keys[name], of.prompts, strict=True):
            found.setdefault(key, (name, prompt))
    return found


def _without(
    sets: Mapping[str, PromptSet], keys: Mapping[str, list[str]], taken: set[str]
) -> dict[str, PromptSet]:
    if not taken:
        return dict(sets)
    made = {}
    for name, of in sets.items():
        is_left = (key not in taken for key in keys[name])
        left = tuple(compress(of.prompts, is_left))
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
    contents: dict[str, tuple[str, str]] = {}
    for name, of in sets.items():
        for prompt in of.prompts:
            content = content_id(prompt.conversation)
            first, before = contents.setdefault(prompt.id, (name, content))
            if before != content:
                raise PromptError(
                    f"prompts.{name}: id {prompt.id!r} is that of another conversation in "
                    f"prompts.{first}; ids must be unique in a run, or left out"
                )
