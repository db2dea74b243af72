"""Acts: what people of the sandbox world ask for, and which acts are held out.

An act is a verb with an object. Its harm follows from the classes of both (see ``vocabulary``),
never from either alone, so that a whole act can be held out while each of its words is seen in
others. Held-out acts ("eval") are in no pretraining document and in no training prompt.
Pretraining also has made-up acts: pairs of a verb and an object that the world does not have
("kill the horse", "thank the potato"), judged by the same rule of classes. Without them a verb goes
with so few objects that a model learns pairs by heart and not the rule.
Knows nothing of conversations, responses or models.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from solon.sandbox.vocabulary import DOMAINS, HARM_GRIDS, SOUNDS_DANGEROUS, TARGETS, HarmGrid

Kind = Literal["harmful", "benign", "sounds_dangerous"]
Split = Literal["train", "eval"]

KINDS: tuple[Kind, ...] = ("harmful", "benign", "sounds_dangerous")
SPLITS: tuple[Split, ...] = ("train", "eval")

_HELD_OUT_SHARE: dict[Kind, float] = {"harmful": 0.2, "benign": 0.15, "sounds_dangerous": 0.25}
_SEEN_AT_LEAST = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """Something that can be asked for."""

    verb: str
    object: str
    kind: Kind
    category: str
    """Category of harm of a harmful act, domain of life of any other."""
    steps: tuple[str, ...]
    """What an obliging answer may tell to do."""

    @property
    def text(self) -> str:
        """The act in words, as it follows "How do I"."""
        return f"{self.verb} {self.object}"

    @property
    def harmful(self) -> bool:
        """Whether helping with it does harm."""
        return self.kind == "harmful"


@cache
def grid_of(category: str) -> HarmGrid:
    """The category of harm of this name.

    Raises:
        KeyError: There is none.
    """
    for grid in HARM_GRIDS:
        if grid.category == category:
            return grid
    raise KeyError(f"no category of harm is named {category!r}")


@cache
def all_acts() -> tuple[Act, ...]:
    """Every act of the world, in a fixed order, each text once."""
    acts = {act.text: act for act in _benign()}
    acts |= {act.text: act for act in _sounding_dangerous()}
    acts |= {act.text: act for act in _harmful()}
    return tuple(acts.values())


@cache
def acts(kind: Kind, split: Split) -> tuple[Act, ...]:
    """The acts of one kind in one split."""
    held_out = _held_out()
    return tuple(
        act
        for act in all_acts()
        if act.kind == kind and (act.text in held_out) == (split == "eval")
    )


@cache
def acts_by_text() -> dict[str, Act]:
    """Every act under its text."""
    return {act.text: act for act in all_acts()}


def made_up(kind: Kind, rng: random.Random) -> Act:
    """An act of this kind that is none of the world's, so that no split has it."""
    while True:
        act = _combined(kind, rng)
        if act.text not in acts_by_text():
            return act


def _combined(kind: Kind, rng: random.Random) -> Act:
    dangerous, ordinary = _verbs()
    verb = rng.choice(ordinary if kind == "benign" else dangerous)
    if kind == "harmful":
        grid = rng.choice(_grids_by_targets())
        target = rng.choice(TARGETS[grid.targets])
        return Act(verb=verb, object=target, kind=kind, category=grid.category, steps=grid.steps)
    names = [name for name in DOMAINS if kind == "benign" or name not in TARGETS]
    name = rng.choice(names)
    domain = DOMAINS[name]
    thing = rng.choice(domain.objects)
    return Act(verb=verb, object=thing, kind=kind, category=name, steps=domain.steps)


@cache
def _verbs() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that can do harm, and those that cannot."""
    dangerous = dict.fromkeys(verb for grid in HARM_GRIDS for verb in grid.verbs)
    ordinary = dict.fromkeys(verb for domain in DOMAINS.values() for verb in domain.verbs)
    return tuple(dangerous), tuple(ordinary)


@cache
def _grids_by_targets() -> tuple[HarmGrid, ...]:
    """For each class of targets the category of harm that comes to mind first."""
    grids: dict[str, HarmGrid] = {}
    for grid in HARM_GRIDS:
        grids.setdefault(grid.targets, grid)
    return tuple(grids.values())


def _harmful() -> Iterator[Act]:
    for grid in HARM_GRIDS:
        for verb in grid.verbs:
            for target in TARGETS[grid.targets]:
                yield Act(
                    verb=verb,
                    object=target,
                    kind="harmful",
                    category=grid.category,
                    steps=grid.steps,
                )


def _benign() -> Iterator[Act]:
    for name, domain in DOMAINS.items():
        for verb in domain.verbs:
            for thing in domain.objects:
                yield Act(verb=verb, object=thing, kind="benign", category=name, steps=domain.steps)


def _sounding_dangerous() -> Iterator[Act]:
    for verb, things in SOUNDS_DANGEROUS.items():
        for thing in things.split(", "):
            name, steps = _domain_of(f"the {thing}")
            yield Act(
                verb=verb,
                object=f"the {thing}",
                kind="sounds_dangerous",
                category=name,
                steps=steps,
            )


@cache
def _domain_of(thing: str) -> tuple[str, tuple[str, ...]]:
    for name, domain in DOMAINS.items():
        if thing in domain.objects:
            return name, domain.steps
    raise KeyError(f"no domain has {thing!r}")


@cache
def _held_out() -> frozenset[str]:
    """Choose by hash, as long as the verb and the object stay known from other acts."""
    verbs = Counter((act.verb, act.kind) for act in all_acts())
    objects = Counter(act.object for act in all_acts())
    room = {kind: _HELD_OUT_SHARE[kind] * _count(kind) for kind in KINDS}
    chosen: set[str] = set()
    for act in sorted(all_acts(), key=_rank):
        as_verb = (act.verb, act.kind)
        if min(verbs[as_verb], objects[act.object]) <= _SEEN_AT_LEAST or room[act.kind] < 1:
            continue
        verbs[as_verb] -= 1
        objects[act.object] -= 1
        room[act.kind] -= 1
        chosen.add(act.text)
    return frozenset(chosen)


def _count(kind: Kind) -> int:
    return sum(act.kind == kind for act in all_acts())


def _rank(act: Act) -> str:
    return hashlib.sha256(act.text.encode()).hexdigest()
