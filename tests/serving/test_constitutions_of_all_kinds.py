"""Constitutions of one principle, of a hundred, in Japanese, and with templates inside their text.

Each goes through real gRPC to a critic and a judge over an engine that keeps what it was asked, so
that every word can be seen to arrive as it is. That tokenizers and chat templates take such words
is held in ``test_adversarial_strings``.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import cache

import pytest

from solon.chat import Conversation
from solon.client import CriticClient, JudgeClient, Outcome, Sampling
from solon.constitution import (
    AbsoluteQuestion,
    Constitution,
    CritiqueExemplar,
    Principle,
    dump,
    loads,
)
from solon.critic.server import ROLE as CRITIC
from solon.judge.server import ROLE as JUDGE
from solon.serving.testing import FunctionEngine, running
from solon.trainer.inline import inline

Clients = tuple[CriticClient, JudgeClient]


def principle(name: str, text: str, yes: str = "Yes", no: str = "No") -> Principle:
    """Everything that a principle can have, all of it in these words."""
    shown = CritiqueExemplar(
        conversation=Conversation.from_user(text),
        response=text,
        principle=name,
        answers=(f"{text} 1",),
        critique=f"{text} 2",
        revision=f"{text} 3",
    )
    return Principle(
        id=name,
        critique_request=f"{text} 4",
        revision_request=f"{text} 5",
        comparison_instruction=f"{text} 6",
        absolute_question=AbsoluteQuestion(text=f"{text} 7", answers={yes: 0.0, no: 1.0}),
        questions=(f"{text} 8",),
        exemplars=(shown,),
    )


TEMPLATES = (
    "{{ messages[0].content }} {% raw %} {name} {0} %s %(x)d $HOME ${x} \\n <|im_start|>system "
    "</s> <|endoftext|> [INST] \n\nHuman: (A)"
)
KINDS = {
    "one": [principle("only", "Is it kind?")],
    "hundred": [principle(f"p-{n}", f"Is it fine in way {n}?") for n in range(100)],
    "japanese": [principle("safe", "害がありますか。", "はい", "いいえ")],
    "templates": [principle("odd", TEMPLATES, "{{ yes }}", "%s")],
}


@cache
def constitution(kind: str) -> Constitution:
    made = Constitution(name=kind, version="1", principles=tuple(KINDS[kind]))
    # as from a file
    return loads(dump(made))


async def clients(stack: AsyncExitStack, engine: FunctionEngine) -> Clients:
    addresses = [await stack.enter_async_context(running(role, engine)) for role in (CRITIC, JUDGE)]
    critic = await stack.enter_async_context(CriticClient(addresses[0], retry_for=0))
    judge = await stack.enter_async_context(JudgeClient(addresses[1], retry_for=0))
    return critic, judge


async def ask_everything(kind: str, engine: FunctionEngine) -> None:
    """Each call of both services, by all of the constitution's principles."""
    whole = constitution(kind)
    asked, by = Conversation.from_user("How do I bake?"), inline(whole)
    known = [p.id for p in whole.principles]
    async with AsyncExitStack() as stack:
        critic, judge = await clients(stack, engine)
        chain = critic.refine(
            asked,
            "First mix, then bake.",
            constitution=by,
            rounds=1,
            draw="priority",
            not_needed_below=0.0,
            sampling=Sampling(max_tokens=8, seed=1),
        )
        (made,) = [one async for one in chain]
        assert made.constitution_digest == whole.digest
        assert [answer.number for answer in made.answers] == [1]
        assert made.revision_outcome is Outcome.MADE
        assessed = await critic.assess(asked, "No.", constitution=by)
        compared = await judge.compare(asked, "Yes.", "No.", constitution=by)
        scored = await judge.score(asked, "No.", constitution=by)
    assert [one.principle_id for one in assessed.principles] == known
    assert [one.principle_id for one in compared.principles] == known
    assert [one.principle_id for one in scored.principles] == known
    for found in (assessed.probability, compared.probability_a, scored.score):
        assert found is not None
        assert 0 <= found <= 1


@pytest.mark.parametrize("kind", KINDS)
async def test_every_word_of_a_constitution_reaches_the_model_as_it_is(kind: str) -> None:
    engine = FunctionEngine(answer=lambda conversation, sampling: "Said.")
    await ask_everything(kind, engine)
    generated = [m.content for prompt, _ in engine.asked for m in prompt.messages]
    scored = [m.content for prompts in engine.scored for one in prompts for m in one.messages]
    first, *_ = constitution(kind).principles
    (own,) = first.exemplars
    for text in (first.critique_request, first.revision_request, *first.questions):
        assert any(str(text) in said for said in generated)
    for text in (*own.answers, own.critique, own.revision):
        assert text in generated
    for one in constitution(kind).principles:
        assert one.absolute_question is not None
        for text in (one.comparison_instruction, one.absolute_question.text):
            assert any(str(text) in said for said in scored)
