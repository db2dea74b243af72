"""The transformers engine's generation, against transformers alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from solon.chat import Conversation, Message
from solon.engine.base import (
    ContextExceeded,
    EngineFailed,
    FinishReason,
    Generation,
    InvalidInput,
    Overloaded,
    PauseMode,
    Sampling,
)
from tests.engine.conftest import Reference, make_model, running

PROMPTS = [
    Conversation.from_user(text)
    for text in (
        "How do I bake bread?",
        "The quick brown fox jumps over the lazy dog. " * 4,
        "Hi",
        "Which response is better? Answer only (A) or (B). Mix flour and water.",
    )
]
GREEDY = Sampling(temperature=0.0, max_tokens=24)


def prompt_ids(reference: Reference, conversation: Conversation) -> list[int]:
    ids: list[int] = reference.tokenizer.apply_chat_template(
        conversation.as_dicts(), add_generation_prompt=True, return_dict=False
    )
    return ids


def generate_alone(reference: Reference, ids: list[int], tokens: int) -> list[int]:
    tensor = torch.tensor([ids])
    out = reference.model.generate(
        tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=tokens, do_sample=False
    )
    made: list[int] = out[0, len(ids) :].tolist()
    return made


def _whole(reference: Reference, prompt: Conversation) -> list[int]:
    ids = prompt_ids(reference, prompt)
    return ids + generate_alone(reference, ids, 24)


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in generation.tokens]


async def test_greedy_answers_equal_those_of_transformers_generate(reference: Reference) -> None:
    async with running(reference.path) as engine:
        answers = await asyncio.gather(*(engine.generate(prompt, GREEDY) for prompt in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert ids_of(answer) == generate_alone(reference, prompt_ids(reference, prompt), 24)


async def test_a_model_with_a_sliding_window_answers_as_transformers_does(
    windowed: Reference,
) -> None:
    async with running(windowed.path) as engine:
        answers = await asyncio.gather(*(engine.generate(prompt, GREEDY) for prompt in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert ids_of(answer) == generate_alone(windowed, prompt_ids(windowed, prompt), 24)


async def test_logprobs_are_those_of_a_plain_forward_at_temperature_1(
    reference: Reference,
) -> None:
    sampling = Sampling(temperature=0.6, top_k=5, top_p=0.9, max_tokens=12, seed=5)
    async with running(reference.path) as engine:
        answers = await asyncio.gather(*(engine.generate(p, sampling) for p in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = prompt_ids(reference, prompt)
        with torch.no_grad():
            logits = reference.model(torch.tensor([ids + ids_of(answer)])).logits[0]
        logprobs = logits.log_softmax(-1)[len(ids) - 1 :]
        expected = [float(logprobs[i, token]) for i, token in enumerate(ids_of(answer))]
        assert [token.logprob for token in answer.tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(
    model_path: Path, threads: int
) -> None:
    requests = [
        (
            Conversation.from_user("flour " * (i % 23) + "and water"),
            Sampling(
                temperature=(0.7, 1.0, 1.3)[i % 3],
                top_p=(1.0, 0.9)[i % 2],
                top_k=(0, 20)[i // 2 % 2],
                max_tokens=4 + 5 * (i % 6),
                seed=i,
            ),
        )
        for i in range(60 if threads == 1 else 24)
    ]
    async with running(model_path, threads=threads, max_batch=24) as engine:
        together = await asyncio.gather(*(engine.generate(*request) for request in requests))
        alone = [await engine.generate(*request) for request in requests[::3]]
    for first, second in zip(together[::3], alone, strict=True):
        assert first.text == second.text
        assert first.tokens == second.tokens


async def test_another_seed_gives_another_text_and_the_same_seed_the_same(
    model_path: Path,
) -> None:
    async with running(model_path) as engine:
        texts = [
            (await engine.generate(PROMPTS[0], Sampling(max_tokens=12, seed=seed))).text
            for seed in (1, 2, 3, 2**64 - 1, 1)
        ]
    assert len(set(texts)) == 4
    assert texts[0] == texts[-1]


async def test_equal_prompts_that_join_together_are_computed_once(model_path: Path) -> None:
    async with running(model_path) as engine:
        await engine.pause(PauseMode.KEEP)
        asked = [
            asyncio.create_task(engine.generate(PROMPTS[0], Sampling(max_tokens=3, seed=i)))
            for i in range(4)
        ]
        await asyncio.sleep(0)
        await engine.resume()
        answers = await asyncio.gather(*asked)
        alone = await engine.generate(PROMPTS[0], Sampling(max_tokens=3, seed=3))
    prompt = answers[0].usage.prompt_tokens
    assert [a.usage.cached_tokens for a in answers] == [0, prompt, prompt, prompt]
    assert answers[3].tokens == alone.tokens


async def test_an_answer_ends_with_the_end_of_turn_or_at_max_tokens(reference: Reference) -> None:
    async with running(reference.path) as engine:
        answers = await asyncio.gather(
            *(
                engine.generate(PROMPTS[0], Sampling(temperature=1.5, max_tokens=60, seed=seed))
                for seed in range(40)
            )
        )
    end = reference.tokenizer.eos_token_id
    ended = [a for a in answers if a.finish_reason is FinishReason.STOP]
    cut = [a for a in answers if a.finish_reason is FinishReason.LENGTH]
    assert ended
    assert cut
    assert all(ids_of(a)[-1] == end and end not in ids_of(a)[:-1] for a in ended)
    assert all(len(a.tokens) == 60 and end not in ids_of(a) for a in cut)
    assert all("<|end|>" not in a.text for a in answers)
    assert all(a.usage.completion_tokens == len(a.tokens) for a in answers)


async def test_the_earliest_stop_text_ends_the_answer_and_is_left_out(model_path: Path) -> None:
    async with running(model_path) as engine:
        whole = await engine.generate(PROMPTS[0], GREEDY)
        # begins in the middle of a token and ends in the middle of another
        late, early = whole.text[-4:-1], _across_tokens(whole)
        stopped = await engine.generate(
            PROMPTS[0], Sampling(temperature=0.0, max_tokens=24, stop=(late, early))
        )
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == whole.text[: whole.text.index(early)]
    assert whole.tokens[: len(stopped.tokens)] == stopped.tokens
    assert len(stopped.tokens) < len(whole.tokens)


def _across_tokens(generation: Generation) -> str:
    for first, second in zip(generation.tokens[2:], generation.tokens[3:], strict=False):
        both = first.text[-1:] + second.text[:1]
        if len(first.text) > 1 and "\ufffd" not in both and generation.text.count(both) == 1:
            return both
    raise AssertionError("the tiny model's answer has no two tokens of plain characters")


async def test_a_stream_gives_whole_characters_that_make_up_the_text(model_path: Path) -> None:
    async with running(model_path) as engine:
        for seed in range(6):
            sampling = Sampling(temperature=1.3, max_tokens=30, seed=seed)
            whole = await engine.generate(PROMPTS[0], sampling)
            pieces = [piece async for piece in engine.stream(PROMPTS[0], sampling)]
            assert "".join(piece.text for piece in pieces) == whole.text
            assert sum((piece.tokens for piece in pieces), ()) == whole.tokens
            assert [piece.final is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]


async def test_a_stream_never_shows_the_beginning_of_a_stop_text(model_path: Path) -> None:
    async with running(model_path) as engine:
        whole = await engine.generate(PROMPTS[0], GREEDY)
        stop = _across_tokens(whole)
        sampling = Sampling(temperature=0.0, max_tokens=24, stop=(stop,))
        pieces = [piece async for piece in engine.stream(PROMPTS[0], sampling)]
    assert "".join(piece.text for piece in pieces) == whole.text[: whole.text.index(stop)]


async def test_a_conversation_that_ends_with_the_assistant_is_continued(
    reference: Reference,
) -> None:
    conversation = PROMPTS[0].then(Message("assistant", "Mix flour, "))
    ids = reference.tokenizer.apply_chat_template(
        conversation.as_dicts(), continue_final_message=True, return_dict=False
    )
    async with running(reference.path) as engine:
        answer = await engine.generate(conversation, GREEDY)
        empty = await engine.generate(PROMPTS[0].then(Message("assistant", "")), GREEDY)
        plain = await engine.generate(PROMPTS[0], GREEDY)
    assert ids_of(answer) == generate_alone(reference, ids, 24)
    assert empty.tokens == plain.tokens


async def test_a_prompt_that_does_not_fit_is_refused_with_the_three_sizes(
    model_path: Path,
) -> None:
    async with running(model_path) as engine:
        with pytest.raises(ContextExceeded) as caught:
            await engine.generate(PROMPTS[0], Sampling(max_tokens=250))
        with pytest.raises(ContextExceeded):
            await engine.score([Conversation.from_user("dog " * 300)], [["(A)"]])
        to_the_brim = Sampling(temperature=2.0, max_tokens=256 - caught.value.prompt_tokens)
        filled = await engine.generate(PROMPTS[0], to_the_brim)
    assert (caught.value.max_tokens, caught.value.context_tokens) == (250, 256)
    assert len(filled.tokens) <= to_the_brim.max_tokens


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(seed=2**64), "seed"),
        (Sampling(stop=("x", "")), "stop[1]"),
    ],
)
@pytest.mark.parametrize("name", ["transformers", "scripted"])
async def test_a_setting_out_of_its_range_is_refused_by_name(
    model_path: Path, sampling: Sampling, named: str, name: str, started: Any
) -> None:
    engine = await started(name)
    with pytest.raises(InvalidInput) as caught:
        await engine.generate(PROMPTS[0], sampling)
    assert str(caught.value).startswith(f"{named}: expected")


async def test_cancelling_frees_the_row(model_path: Path) -> None:
    async with running(model_path, max_batch=1) as engine:
        stream = engine.stream(PROMPTS[0], Sampling(temperature=1.0, max_tokens=200))
        await anext(stream)
        assert engine.load().running == 1
        waiting = asyncio.create_task(engine.generate(PROMPTS[1], GREEDY))
        gone = asyncio.create_task(engine.generate(PROMPTS[1], GREEDY))
        await asyncio.sleep(0)
        assert engine.load().queued == 2
        gone.cancel()
        await stream.aclose()
        answer = await waiting
        last = await engine.generate(PROMPTS[2], Sampling(max_tokens=1))
        assert engine.load().running == 0
        assert engine.load().queued == 0
    assert answer.tokens
    assert last.timing.queue < 10


async def test_a_full_queue_refuses_and_says_when_to_come_back(model_path: Path) -> None:
    async with running(model_path, queue_capacity=2) as engine:
        await engine.pause(PauseMode.KEEP)
        accepted = [asyncio.create_task(engine.generate(p, GREEDY)) for p in PROMPTS[:2]]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await engine.generate(PROMPTS[2], GREEDY)
        with pytest.raises(Overloaded):
            await engine.score(PROMPTS[:1], [["(A)"]])
        await engine.resume()
        assert all(await asyncio.gather(*accepted))
    assert caught.value.retry_after > 0


async def test_tokens_that_wait_are_bounded_too(model_path: Path) -> None:
    long = Sampling(temperature=0.0, max_tokens=40)
    async with running(model_path, token_capacity=60) as engine:
        await engine.pause(PauseMode.KEEP)
        # alone, even a request above the bound may wait: else it never could run
        accepted = asyncio.create_task(engine.generate(PROMPTS[0], long))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"tokens wait.*at most 60"):
            await engine.generate(PROMPTS[1], long)
        accepted.cancel()
        await asyncio.sleep(0)
        again = asyncio.create_task(engine.generate(PROMPTS[1], long))
        await asyncio.sleep(0)
        await engine.resume()
        assert (await again).tokens


async def test_logits_that_are_not_finite_fail_their_own_request_only(
    tmp_path: Path, reference: Reference
) -> None:
    path = make_model(tmp_path / "damaged")
    model = type(reference.model).from_pretrained(path)
    poisoned = Conversation.from_user("each costs 20 €")
    healthy = {i for p in PROMPTS for i in _whole(reference, p)}
    poison = sorted(set(prompt_ids(reference, poisoned)) - healthy)
    model.model.embed_tokens.weight.data[poison] = float("nan")
    model.save_pretrained(path)
    assert poison
    async with running(path, max_batch=4) as engine:
        results = await asyncio.gather(
            *(engine.generate(p, GREEDY) for p in (PROMPTS[0], poisoned, PROMPTS[1])),
            return_exceptions=True,
        )
        scores = await asyncio.gather(
            *(engine.score([p], [["(A)", "(B)"]]) for p in (poisoned, PROMPTS[0])),
            return_exceptions=True,
        )
        again = [await engine.generate(p, GREEDY) for p in PROMPTS]
    assert isinstance(results[1], EngineFailed)
    assert isinstance(scores[0], EngineFailed)
    assert not isinstance(scores[1], BaseException)
    for place, prompt in ((0, PROMPTS[0]), (2, PROMPTS[1])):
        answer = results[place]
        assert isinstance(answer, Generation)
        assert ids_of(answer) == generate_alone(reference, prompt_ids(reference, prompt), 24)
    assert again[0].tokens == results[0].tokens  # type: ignore[union-attr]
