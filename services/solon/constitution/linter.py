"""Warnings about constitutions that are well formed and yet likely to train badly.

Nothing here is an error: the rules are heuristics over English words. Knows nothing of files,
prompts or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from solon.constitution.types import Constitution, Principle

_MOST_WORDS = 120
_NEAR_DUPLICATE = 0.7
_ASKS = re.compile(r"\b(which|choose|pick|select|prefer|better|best)\b", re.IGNORECASE)
_HELPS = re.compile(
    r"\b(help(s|ful|fully|fulness)?|useful|answers?|does what|complet(e|ely)|informative)\b",
    re.IGNORECASE,
)
_ENGAGES = re.compile(
    r"\b(evasive|evades?|evasion|explains?|reasons?|engages?|preach\w*|lectur\w*|dodg\w*)\b",
    re.IGNORECASE,
)
_AGAINST = {"less", "least", "not", "never", "no", "without", "avoid", "avoids", "fewer", "fewest"}
_TOWARDS = {"more", "most", "is", "be", "does", "do", "that"}
"""Words that come and go with a direction, and carry none against anything."""
_FIELDS = ("critique_request", "revision_request", "comparison_instruction")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One warning."""

    rule: str
    """Short name of the rule, such as ``near-duplicate``."""
    key: str
    """Where: a principle's id and field, or the part of the constitution."""
    text: str
    """What was found, why it matters, what to do."""


def lint(constitution: Constitution) -> tuple[Finding, ...]:
    """All warnings about a constitution, in the order of its parts."""
    return (
        *_too_long(constitution),
        *_not_asking(constitution),
        *_near_duplicates(constitution),
        *_conflicts(constitution),
        *_nothing_helpful(constitution),
        *_nothing_engaging(constitution),
        *_unbalanced_exemplars(constitution),
        *_exemplars_without_answers(constitution),
    )


def _too_long(constitution: Constitution) -> Iterator[Finding]:
    for principle in constitution.principles:
        for name, text in _texts(principle).items():
            if (count := len(text.split())) > _MOST_WORDS:
                yield Finding(
                    rule="too-long",
                    key=f"{principle.id}.{name}",
                    text=f"{count} words: models follow short requests better, and every call "
                    f"pays for them; keep it below {_MOST_WORDS} or make two principles of it",
                )


def _not_asking(constitution: Constitution) -> Iterator[Finding]:
    for principle in constitution.for_comparison:
        if not _ASKS.search(principle.comparison_instruction or ""):
            yield Finding(
                rule="not-a-question",
                key=f"{principle.id}.comparison_instruction",
                text="asks for no choice between the two responses: ask which one is better, "
                'such as "Which of these responses is ...?" or "Choose the response that ..."',
            )


def _near_duplicates(constitution: Constitution) -> Iterator[Finding]:
    for name in _FIELDS:
        pairs = {
            principle.id: _word_pairs(text)
            for principle in constitution.principles
            if (text := _texts(principle).get(name))
        }
        for (one, first), (other, second) in combinations(pairs.items(), 2):
            if len(first & second) >= _NEAR_DUPLICATE * len(first | second):
                yield Finding(
                    rule="near-duplicate",
                    key=f"{other}.{name}",
                    text=f"says nearly the same as {one}.{name}: a repeated principle is a weight "
                    "in disguise; merge the two, or set weight",
                )


def _conflicts(constitution: Constitution) -> Iterator[Finding]:
    texts = {p.id: p.comparison_instruction or "" for p in constitution.for_comparison}
    for (one, first), (other, second) in combinations(texts.items(), 2):
        if _without_direction(first) == _without_direction(second) and _is_turned(first, second):
            yield Finding(
                rule="conflict",
                key=f"{other}.comparison_instruction",
                text=f"asks for the opposite of {one}.comparison_instruction: in the mean over "
                "principles the two cancel each other; keep one",
            )


def _without_direction(text: str) -> list[str]:
    return [w for w in re.findall(r"\w+", text.lower()) if w not in _AGAINST | _TOWARDS]


def _is_turned(first: str, second: str) -> bool:
    """Whether one of the texts, and not the other, points against what both name."""
    against = (sum(w in _AGAINST for w in re.findall(r"\w+", t.lower())) for t in (first, second))
    return next(against) % 2 != next(against) % 2


def _nothing_helpful(constitution: Constitution) -> Iterator[Finding]:
    judging = constitution.for_comparison
    if judging and not any(_HELPS.search(p.comparison_instruction or "") for p in judging):
        yield Finding(
            rule="only-harm",
            key="principles",
            text="no comparison instruction asks for helpfulness: nothing then speaks against a "
            "refusal of a benign request, and RL finds that out; add a principle that prefers "
            "the response that helps with what may be helped with",
        )


def _nothing_engaging(constitution: Constitution) -> Iterator[Finding]:
    texts = [text for p in constitution.principles for text in _texts(p).values()]
    if texts and not any(_ENGAGES.search(text) for text in texts):
        yield Finding(
            rule="evasive",
            key="principles",
            text="no principle asks for reasons rather than evasion: the model may learn to dodge; "
            "add a principle that prefers a response which explains why it declines",
        )


def _unbalanced_exemplars(constitution: Constitution) -> Iterator[Finding]:
    answers = [e.answer for e in constitution.comparison_exemplars]
    for answer in ("A", "B"):
        if len(answers) >= 2 and answers.count(answer) > 0.75 * len(answers):
            yield Finding(
                rule="unbalanced-exemplars",
                key="exemplars.comparisons",
                text=f"{answers.count(answer)} of {len(answers)} answers are {answer}: the judge "
                "learns the position; swap the responses of some",
            )


def _exemplars_without_answers(constitution: Constitution) -> Iterator[Finding]:
    asked = {p.id for p in constitution.principles if p.questions}
    shared = [("exemplars.critiques", e) for e in constitution.critique_exemplars]
    own = [(f"{p.id}.exemplars", e) for p in constitution.principles for e in p.exemplars]
    for key, exemplar in (*shared, *own):
        if exemplar.principle in asked and not exemplar.answers:
            yield Finding(
                rule="exemplar-without-answers",
                key=key,
                text=f"principle {exemplar.principle} has questions, which an exemplar of it does "
                "not answer: it shows the critic to criticise at once; add answers",
            )


def _texts(principle: Principle) -> dict[str, str]:
    values = {name: getattr(principle, name) for name in _FIELDS}
    return {name: text for name, text in values.items() if text is not None}


def _word_pairs(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, [*words[1:], ""], strict=True))
