"""Showing pairs of responses to a model and reading which it prefers.

All pairs, principles and orders of a request go to the engine in one call (two with chains of
thought), those that share a prefix side by side. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from solon.chat import Conversation
from solon.constitution import Principle, derive_seed
from solon.constitution.prompts import (
    OPTION_A,
    OPTION_B,
    comparison_prompt,
    reasoning_prompt,
    verdict_prompt,
)
from solon.engine.base import FinishReason, Generation, Sampling
from solon.judge import verdicts
from solon.judge.questions import ChainOfThought, Manner, Question
from solon.judge.verdicts import OrderVerdict, PrincipleVerdict, Reading
from solon.serving import asking
from solon.serving.readings import NoVerdict, Prompts
from solon.serving.session import Session

_OPTIONS = (OPTION_A, OPTION_B)


@dataclass(frozen=True, slots=True)
class _Showing:
    """One pair by one principle in one order."""

    pair: int
    principle: Principle
    first: str
    """Shown as (A)."""
    second: str
    swapped: bool

    def prompt(self, question: Question) -> Conversation:
        """Asks for the answer at once."""
        return comparison_prompt(
            question.constitution, self.principle, question.conversation, self.first, self.second
        )

    def reasoning(self, question: Question) -> Conversation:
        """Asks for a chain of thought."""
        return reasoning_prompt(self.principle, question.conversation, self.first, self.second)

    def read(self, logprobs: Sequence[float], manner: Manner) -> Reading:
        """The options' log-probabilities, given back to the responses that they stood for."""
        first, second = logprobs
        a, b = (second, first) if self.swapped else (first, second)
        return verdicts.read(a, b, min_option_mass=manner.min_option_mass)

    def hear(self, answer: str | NoVerdict) -> Reading:
        """The option that was said, given back to the response that it stood for."""
        if isinstance(answer, NoVerdict):
            return verdicts.unread(answer)
        return verdicts.heard(prefers_a=(answer == OPTION_A) != self.swapped)


async def compare_pairs(
    session: Session, question: Question, pairs: Sequence[tuple[str, str]], manner: Manner
) -> list[tuple[PrincipleVerdict, ...]]:
    """Judge every pair by every principle; a tuple of verdicts a pair.

    Raises:
        WeightVersionMismatch: The weights were replaced meanwhile.
        EngineError: As ``Engine.score``, and ``Engine.generate`` with chains of thought or where
            answers are heard.
    """
    # principles innermost: what stands before the principle in a prompt is then shared
    showings = [
        _Showing(pair, principle, *((b, a) if swapped else (a, b)), swapped)
        for pair, (a, b) in enumerate(pairs)
        for swapped in ((False, True) if manner.both_orders else (False,))
        for principle in question.principles
    ]
    thought = manner.chain_of_thought
    if thought is None:
        orders = await _read_at_once(session, question, showings, manner)
    else:
        orders = await _read_after_chains(session, question, showings, manner, thought)
    found: dict[tuple[int, str], list[OrderVerdict]] = defaultdict(list)
    for showing, order in zip(showings, orders, strict=True):
        found[showing.pair, showing.principle.id].append(order)
    return [
        tuple(verdicts.principle_verdict(p, found[pair, p.id]) for p in question.principles)
        for pair in range(len(pairs))
    ]


async def _read_at_once(
    session: Session, question: Question, showings: Sequence[_Showing], manner: Manner
) -> list[OrderVerdict]:
    prompts = Prompts([partial(showing.prompt, question) for showing in showings])
    return [
        verdicts.order_verdict([reading], swapped=showing.swapped)
        for showing, reading in zip(
            showings, await _readings(session, prompts, showings, manner), strict=True
        )
    ]


async def _readings(
    session: Session, prompts: Prompts, showings: Sequence[_Showing], manner: Manner
) -> list[Reading]:
    """What the judge answers to each prompt, which is one of a showing."""
    options = [_OPTIONS] * len(prompts)
    if session.tells_logprobs:
        scored = await session.score(prompts, options)
        return [
            showing.read(logprobs, manner)
            for showing, logprobs in zip(showings, scored.logprobs, strict=True)
        ]
    heard = await asking.hear(session, prompts, options)
    return [showing.hear(answer) for showing, answer in zip(showings, heard, strict=True)]


async def _read_after_chains(
    session: Session,
    question: Question,
    showings: Sequence[_Showing],
    manner: Manner,
    thought: ChainOfThought,
) -> list[OrderVerdict]:
    asked = [
        (prompt, _chain_sampling(thought, showing, chain))
        for showing in showings
        for prompt in [showing.reasoning(question)]
        for chain in range(thought.chains)
    ]
    made = await session.generate_what_passes(asked)
    owners = [showing for showing in showings for _ in range(thought.chains)]
    whole = [
        (partial(verdict_prompt, prompt, chain.text), owner)
        for (prompt, _), chain, owner in zip(asked, made, owners, strict=True)
        if chain is not None and _is_whole(chain)
    ]
    answers: Iterator[Reading] = iter(())
    if whole:
        prompts = Prompts([maker for maker, _ in whole])
        found = await _readings(session, prompts, [owner for _, owner in whole], manner)
        answers = iter(found)
    orders = []
    for index, showing in enumerate(showings):
        chains = made[index * thought.chains : (index + 1) * thought.chains]
        orders.append(
            verdicts.order_verdict(
                [_led_to(chain) or next(answers) for chain in chains],
                swapped=showing.swapped,
                clamp=thought.clamp,
                chains=["" if chain is None else chain.text for chain in chains],
            )
        )
    return orders


def _led_to(chain: Generation | None) -> Reading | None:
    """The reading of a chain that no answer follows from; None: one does."""
    if chain is None:
        return verdicts.unread(NoVerdict.FILTERED)
    return None if _is_whole(chain) else verdicts.unread(NoVerdict.UNREADABLE_ANSWER)


def _is_whole(chain: Generation) -> bool:
    """Whether the model reasoned, and ended it itself: from half a chain no answer follows.

    One that says nothing, or nothing but an answer, has given no reason for any.
    """
    left = chain.text
    for option in _OPTIONS:
        left = left.replace(option, "")
    return chain.finish_reason is FinishReason.STOP and any(map(str.isalpha, left))


def _chain_sampling(thought: ChainOfThought, showing: _Showing, chain: int) -> Sampling:
    # by the principle's id: which others are asked for changes no chain
    seed = derive_seed(thought.sampling.seed, showing.principle.id, int(showing.swapped), chain)
    return replace(thought.sampling, seed=seed)
