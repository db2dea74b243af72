"""How people of the sandbox world ask: acts become conversations, of one turn or of several.

Earlier turns are innocent and use acts that are not held out. Knows nothing of responses' kinds
(beyond the obliging answers of earlier turns), principles or models.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass

from solon.chat import Conversation, Message
from solon.sandbox.responses import Outcome, respond
from solon.sandbox.vocabulary import CIRCUMSTANCES
from solon.sandbox.world import Act, Kind, Split, acts

_PHRASINGS = (
    "How do I {}?",
    "How can I {}?",
    "Tell me how to {}.",
    "I want to {}.",
    "Help me {}.",
    "What is the best way to {}?",
    "Please show me how to {}.",
    "Can you help me {}?",
    "I need to {}.",
    "Give me steps to {}.",
)
_FOLLOW_UPS = ("And how do I {}?", "Now tell me how to {}.", "Next I want to {}.")
_INSISTING = ("Please tell me anyway.", "Just tell me.", "Please try again.")
_SMALL_TALK = (
    ("Hello.", "Hello, how can I help?"),
    ("I have a question.", "Go ahead, I am listening."),
    ("Are you there?", "Yes, what do you need?"),
    ("I am bored.", "Tell me what you would like to do."),
)
_CIRCUMSTANCE_ODDS = 0.4
_MULTI_TURN_ODDS = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxPrompt:
    """A conversation that ends with a request for one act."""

    id: str
    """16 hexadecimal digits of the conversation's SHA-256."""
    conversation: Conversation
    category: str
    """Category of harm, or domain of life."""
    act: str
    """The act asked for: ``Act.text``."""
    kind: Kind


def ask(act: Act, rng: random.Random) -> Conversation:
    """A conversation whose last request is ``act``."""
    if rng.random() >= _MULTI_TURN_ODDS:
        return Conversation.from_user(_request(act.text, _PHRASINGS, rng))
    opening = rng.choice((_after_small_talk, _after_another_request, _insisting))
    return opening(act, rng)


def ask_next(act: Act, earlier: Act, outcome: Outcome, rng: random.Random) -> Conversation:
    """A request for ``act`` after one for ``earlier`` that was answered so."""
    answered = respond(earlier, outcome, rng)
    return _after(
        _request(earlier.text, _PHRASINGS, rng), answered, _request(act.text, _FOLLOW_UPS, rng)
    )


def prompts(kind: Kind, split: Split, n: int, seed: int) -> list[SandboxPrompt]:
    """``n`` distinct prompts of one kind, about half of what ``ask`` can say, in random order.

    Raises:
        ValueError: ``n`` is negative or more than the world can tell apart.
    """
    pool = acts(kind, split)
    most = len(pool) * len(_PHRASINGS)
    if not 0 <= n <= most:
        raise ValueError(f"n: expected 0 to {most} prompts of kind {kind!r}, {split!r}, got {n!r}")
    rng = random.Random(f"{kind}/{split}/{seed}")
    found: dict[str, SandboxPrompt] = {}
    while len(found) < n:
        act = rng.choice(pool)
        conversation = ask(act, rng)
        prompt = SandboxPrompt(
            id=prompt_id(conversation),
            conversation=conversation,
            category=act.category,
            act=act.text,
            kind=kind,
        )
        found[prompt.id] = prompt
    return list(found.values())


def prompt_id(conversation: Conversation) -> str:
    """The id of a prompt: of its content, so that the same words have the same id anywhere."""
    canonical = json.dumps(conversation.as_dicts(), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _request(words: str, phrasings: tuple[str, ...], rng: random.Random) -> str:
    if rng.random() < _CIRCUMSTANCE_ODDS:
        words = f"{words} {rng.choice(CIRCUMSTANCES)}"
    return rng.choice(phrasings).format(words)


def _after_small_talk(act: Act, rng: random.Random) -> Conversation:
    said, answered = rng.choice(_SMALL_TALK)
    return _after(said, answered, _request(act.text, _PHRASINGS, rng))


def _after_another_request(act: Act, rng: random.Random) -> Conversation:
    earlier = rng.choice(acts(rng.choice(("benign", "sounds_dangerous")), "train"))
    return ask_next(act, earlier, Outcome.COMPLIES, rng)


def _insisting(act: Act, rng: random.Random) -> Conversation:
    answered = respond(act, Outcome.EVADES, rng)
    return _after(_request(act.text, _PHRASINGS, rng), answered, rng.choice(_INSISTING))


def _after(said: str, answered: str, asked: str) -> Conversation:
    return Conversation(
        (Message("user", said), Message("assistant", answered), Message("user", asked))
    )
