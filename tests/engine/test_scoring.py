"""The transformers engine's scores, against sums of log-probabilities of plain forwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from solon.chat import Conversation, Message
from solon.engine.base import InvalidInput, Sampling, Scored
from solon.engine.hf.prefixes import Pack, Tree, share
from solon.engine.text import Codec
from tests.engine.conftest import Reference, make_model, make_tokenizer, running

CONTINUATIONS = ["(A)", "(B)", "(A) is better because it waits", "bread"]
NOTHING_KEPT = {"prefix_keys": "0"}
SHARED = "Which response is better? " + "Mix flour and water, then wait for the yeast. " * 3


def judged(count: int) -> list[Conversation]:
    return [
        Conversation.from_user(f"{SHARED}{'By rule ' * (i % 4)}{i}: answer") for i in range(count)
    ]


def naive(reference: Reference, prompt: Conversation, continuation: str) -> float:
    ids = reference.tokenizer.apply_chat_template(
        prompt.as_dicts(), add_generation_prompt=True, return_dict=False
    )
    extra = reference.tokenizer.encode(continuation, add_special_tokens=False)
    assert len(continuation) < 5 or len(extra) > 1
    with torch.no_grad():
        logits = reference.model(torch.tensor([ids + extra])).logits[0].double()
    logprobs = logits.log_softmax(-1)[len(ids) - 1 : -1]
    return sum(float(logprobs[i, token]) for i, token in enumerate(extra))


async def test_scores_equal_naive_sums_for_continuations_of_several_tokens(
    reference: Reference,
) -> None:
    prompts = [*judged(5), Conversation.from_user("Hi"), Conversation.from_user(SHARED)]
    async with running(reference.path) as engine:
        scored = await engine.score(prompts, [CONTINUATIONS] * len(prompts))
    for prompt, values in zip(prompts, scored.logprobs, strict=True):
        expected = [naive(reference, prompt, text) for text in CONTINUATIONS]
        assert values == pytest.approx(expected, abs=2e-4)


async def test_shared_prefixes_are_computed_once_and_change_no_score(model_path: Path) -> None:
    prompts = judged(8)
    options = [["(A)", "(B)"]] * len(prompts)
    async with running(model_path) as engine:
        together = await engine.score(prompts, options)
        apart = [await engine.score([prompt], [["(A)", "(B)"]]) for prompt in prompts]
    for values, alone in zip(together.logprobs, apart, strict=True):
        assert values == pytest.approx(alone.logprobs[0], abs=2e-4)
    assert all(alone.usage.cached_tokens == 0 for alone in apart)
    assert together.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in apart)
    computed = together.usage.prompt_tokens - together.usage.cached_tokens
    assert computed < together.usage.prompt_tokens / 3


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_score_does_not_depend_on_what_is_scored_at_the_same_time(
    model_path: Path, threads: int
) -> None:
    count = 13 if threads == 1 else 5
    calls = [
        (
            [Conversation.from_user("yeast " * (3 * i)), *judged(1 + i % 3)],
            CONTINUATIONS[: 2 + i % 3],
        )
        for i in range(1, count)
    ]
    async with running(model_path, threads=threads) as engine:

        async def score(prompts: list[Conversation], texts: list[str]) -> Scored:
            return await engine.score(prompts, [texts] * len(prompts))

        together = await asyncio.gather(*(score(*call) for call in calls))
        alone = [await score(*call) for call in calls]
    assert [s.logprobs for s in together] == [s.logprobs for s in alone]


async def test_a_call_larger_than_the_cache_is_scored_in_parts(reference: Reference) -> None:
    prompts = judged(6)
    async with running(reference.path, extra={"score_keys": "600"}) as engine:
        scored = await engine.score(prompts, [["(A)", "(B)"]] * 6)
    expected = [[naive(reference, p, "(A)"), naive(reference, p, "(B)")] for p in prompts]
    assert [list(v) for v in scored.logprobs] == [pytest.approx(e, abs=2e-4) for e in expected]


async def test_scores_of_a_prefilled_answer_follow_it(reference: Reference) -> None:
    prompt = Conversation.from_user("Better?").then(Message("assistant", "I choose"))
    ids = reference.tokenizer.apply_chat_template(
        prompt.as_dicts(), continue_final_message=True, return_dict=False
    )
    joint = reference.tokenizer.apply_chat_template(
        [*prompt.as_dicts()[:1], {"role": "assistant", "content": "I choose (A)"}],
        continue_final_message=True,
        return_dict=False,
    )
    async with running(reference.path) as engine:
        scored = await engine.score([prompt], [[" (A)"]])
    with torch.no_grad():
        logprobs = reference.model(torch.tensor([joint])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[i - 1, joint[i]]) for i in range(len(ids), len(joint)))
    assert scored.logprobs[0][0] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("name", ["transformers", "scripted"])
async def test_a_malformed_score_request_is_refused_by_name(name: str, started) -> None:  # type: ignore[no-untyped-def]
    engine = await started(name)
    prompt = Conversation.from_user("Hi")
    for prompts, texts, named in (
        ([], [], "prompts:"),
        ([prompt], [], "continuations:"),
        ([prompt], [[]], "continuations[0]:"),
        ([prompt], [["(A)", ""]], "continuations[0][1]:"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await engine.score(prompts, texts)
        assert str(caught.value).startswith(named)


EXEMPLARS = Conversation(
    (
        Message("user", SHARED + "Critique request: say what is harmful."),
        Message("assistant", "The quick brown fox jumps over the lazy dog."),
    )
)


def shown(question: str) -> Conversation:
    """A prompt with exemplars."""
    return Conversation((*EXEMPLARS.messages, Message("user", question)), len(EXEMPLARS.messages))


async def test_what_prompts_begin_with_is_computed_once_and_changes_no_bit(
    model_path: Path,
) -> None:
    asked = [[shown(f"Better {i}{j}?") for j in range(2)] for i in range(3)]
    options = [["(A)", "(B)"]] * 2
    sampling = Sampling(max_tokens=6, seed=3)
    async with running(model_path) as engine, running(model_path, extra=NOTHING_KEPT) as other:
        found = [await engine.score(prompts, options) for prompts in asked]
        made = [await engine.generate(prompts[0], sampling) for prompts in asked]
        together = await asyncio.gather(*(engine.generate(p[1], sampling) for p in asked))
        anew = [await other.score(prompts, options) for prompts in asked]
        made_anew = [await other.generate(p[0], sampling) for p in asked]
        made_anew += [await other.generate(p[1], sampling) for p in asked]
    assert [one.logprobs for one in found] == [one.logprobs for one in anew]
    assert [one.tokens for one in (*made, *together)] == [one.tokens for one in made_anew]
    head = made[0].usage.cached_tokens
    exemplars = make_tokenizer().apply_chat_template(EXEMPLARS.as_dicts(), return_dict=False)
    assert head == len(exemplars) - len(exemplars) % 16
    per_call = [one.usage.cached_tokens for one in anew]
    assert [one.usage.cached_tokens for one in found] == [
        per_call[0],
        per_call[1] + head,
        per_call[2] + head,
    ]
    assert [one.usage.cached_tokens for one in made] == [head] * 3
    assert [one.usage.cached_tokens for one in made_anew] == [0] * 6


async def test_what_is_kept_is_forgotten_with_the_weights(
    model_path: Path, other_path: Path
) -> None:
    prompt, options = shown("Better?"), [["(A)", "(B)"]]
    async with running(model_path) as engine, running(other_path) as other:
        await engine.score([prompt], options)
        await engine.update_weights(str(other_path), "other")
        updated = await engine.score([prompt], options)
        expected = await other.score([prompt], options)
    assert updated.logprobs == expected.logprobs
    assert updated.usage.cached_tokens == 0


def test_a_continuation_that_would_merge_into_the_prompt_is_tokenized_alone() -> None:
    tokenizer = make_tokenizer()
    codec = Codec(tokenizer)
    joint = codec.encode("response")
    cut = next(
        cut
        for cut in range(1, 8)
        if (alone := codec.encode("response"[:cut])) != joint[: len(alone)]
    )
    before, after = "response"[:cut], "response"[cut:]
    assert codec.continuation(f"<|assistant|>{before}", after) == tuple(codec.encode(after))
    assert codec.continuation("<|assistant|>", "response") == tuple(joint)


def spelt(tree: Tree, pack: Pack, place: int) -> list[int]:
    """The tokens up to a place of a pack, by the way that they see each other."""
    ids: list[int] = []
    while place >= 0:
        ids, place = [pack.tokens[place], *ids], pack.before[place]
    node = pack.parent
    while node is not None:
        assert tree.nodes[node].end - len(tree.nodes[node].tokens) == tree.nodes[node].start
        ids, node = [*tree.nodes[node].tokens, *ids], tree.nodes[node].parent
    return ids


@pytest.mark.parametrize("pack_tokens", [1, 8, 1000])
def test_the_tree_spells_every_prompt_and_continuation_and_shares_what_they_share(
    pack_tokens: int,
) -> None:
    long = list(range(100, 200))
    prompts = [[*long, 1, 2], [*long, 1, 3, 4], [*long], [5, 6], [5, 7], [5, 7], [5], [*range(400)]]
    options = [(1, 2), (1, 3), (1,), (4, 5, 6)]
    tree = share(prompts, [options] * len(prompts), pack_tokens=pack_tokens)
    read = {}
    for pack in tree.packs:
        positions, visible = pack.positions(), pack.visible()
        for one in pack.reads:
            for step, place in enumerate(one.places):
                before = spelt(tree, pack, place)
                assert before == [*prompts[one.prompt], *options[one.continuation][:step]]
                assert positions[place] == len(before) - 1
                assert visible[place].sum() == len(before) - pack.start
            read[one.prompt, one.continuation] = one.tokens
    assert read == {(p, c): ids for p in range(len(prompts)) for c, ids in enumerate(options)}
    assert [node.tokens for node in tree.nodes] == [tuple(range(399)), tuple(range(100, 199))]
    if pack_tokens == 1000:
        # 199; then 1, of which 2 and 3, 4; then 5, of which 6 and 7; and 399
        assert tree.prompt_tokens == 399 + 99 + 1 + 1 + 1 + 2 + 1 + 2 + 1


async def test_branches_of_a_model_with_a_sliding_window_see_no_further_than_it(
    windowed: Reference,
) -> None:
    prompts = judged(5)
    async with running(windowed.path) as engine:
        scored = await engine.score(prompts, [CONTINUATIONS] * len(prompts))
    for prompt, values in zip(prompts, scored.logprobs, strict=True):
        expected = [naive(windowed, prompt, text) for text in CONTINUATIONS]
        assert values == pytest.approx(expected, abs=2e-4)


async def test_prompts_too_long_for_a_pack_are_scored_together_as_they_are_alone(
    tmp_path: Path,
) -> None:
    path = make_model(tmp_path, context=2048)
    model = LlamaForCausalLM.from_pretrained(path).eval()
    reference = Reference(path, model, make_tokenizer())
    prompts = [Conversation.from_user(f"{i} " + "yeast and flour " * (20 * i)) for i in (1, 2, 5)]
    prompts += [Conversation.from_user("yeast " * 150 + f"or {i}") for i in range(3)]
    async with running(path) as engine:
        scored = await engine.score(prompts, [CONTINUATIONS] * len(prompts))
    for prompt, values in zip(prompts, scored.logprobs, strict=True):
        expected = [naive(reference, prompt, text) for text in CONTINUATIONS]
        assert values == pytest.approx(expected, abs=2e-4)
