"""What every engine that runs a model promises, on the sandbox's model, against transformers alone.

A module that imports these tests has a fixture ``engine``: one engine for all of them, with a
``max_batch`` of 8 and a ``queue_capacity`` of 16. Each test leaves it as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from solon.chat import Conversation, Message
from solon.engine import Engine
from solon.engine.base import (
    ContextExceeded,
    FinishReason,
    Generation,
    InvalidInput,
    Overloaded,
    Paused,
    PauseMode,
    Sampling,
    WeightsNotLoaded,
)
from solon.sandbox import model_path
from tests.engine.conftest import make_adapter

PROMPTS = [
    Conversation.from_user(text)
    for text in ("How do I bake bread?", "How do I kill the process?", "Hello", "bread " * 150)
]
PROMPT = PROMPTS[0]
GREEDY = Sampling(temperature=0.0, max_tokens=24)
LONG = Sampling(temperature=0.0, max_tokens=400)
OPTIONS = ["(A)", "(B)", "(A) is better because it helps", "bread"]
PREFILL = Message("assistant", "Of course.")


@dataclass(frozen=True)
class Plain:
    """A model through transformers alone."""

    path: Path
    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, path: Path) -> Plain:
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        return cls(path, model, AutoTokenizer.from_pretrained(path))

    def ids(self, conversation: Conversation) -> list[int]:
        continued = conversation.messages[-1].role == "assistant"
        ids: list[int] = self.tokenizer.apply_chat_template(
            conversation.as_dicts(),
            add_generation_prompt=not continued,
            continue_final_message=continued,
            return_dict=False,
        )
        return ids

    def greedy(self, conversation: Conversation, tokens: int = 24) -> list[int]:
        ids = torch.tensor([self.ids(conversation)])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        made: list[int] = out[0, ids.shape[1] :].tolist()
        return made

    def logprobs(self, conversation: Conversation, made: list[int]) -> list[float]:
        ids = self.ids(conversation)
        with torch.no_grad():
            logits = self.model(torch.tensor([ids + made])).logits[0].double()
        logprobs = logits.log_softmax(-1)[len(ids) - 1 :]
        return [float(logprobs[at, token]) for at, token in enumerate(made)]

    def score(self, conversation: Conversation, text: str) -> float:
        made = self.tokenizer.encode(text, add_special_tokens=False)
        return sum(self.logprobs(conversation, made))


@pytest.fixture(scope="module")
def plain() -> Plain:
    """The sandbox's model."""
    return Plain.of(model_path())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """Other weights of the same architecture."""
    path = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(model_path())
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(path)
    return Plain.of(path)


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in generation.tokens]


async def begun(engine: Engine) -> asyncio.Task[Generation]:
    """A request that has made a token."""
    first = asyncio.Event()

    async def follow() -> Generation:
        async for piece in engine.stream(PROMPT, LONG):
            first.set()
            if piece.final is not None:
                return piece.final
        raise AssertionError("the stream ended without its final piece")

    task = asyncio.create_task(follow())
    await first.wait()
    return task


@pytest.fixture(scope="module")
def never_ending(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """Weights that never end an answer: the logit of the end of turn is 0."""
    path = tmp_path_factory.mktemp("never-ending")
    model: Any = AutoModelForCausalLM.from_pretrained(plain.path)
    model.get_input_embeddings().weight.data[plain.tokenizer.eos_token_id] = 0
    model.save_pretrained(path)
    plain.tokenizer.save_pretrained(path)
    return Plain.of(path)


@pytest_asyncio.fixture(loop_scope="module")
async def ceaseless(engine: Engine, plain: Plain, never_ending: Plain) -> AsyncIterator[Plain]:
    """For one test, the engine has such weights."""
    await engine.update_weights(str(never_ending.path), "never ending")
    yield never_ending
    await engine.update_weights(str(plain.path), "initial")


async def test_greedy_answers_equal_those_of_transformers_generate(
    engine: Engine, plain: Plain
) -> None:
    answers = await asyncio.gather(*(engine.generate(prompt, GREEDY) for prompt in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        made = plain.greedy(prompt)
        assert ids_of(answer) == made
        assert answer.text == plain.tokenizer.decode(made, skip_special_tokens=True)
        ended = made[-1] == plain.tokenizer.eos_token_id
        assert answer.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert answer.usage.prompt_tokens == len(plain.ids(prompt))
        assert answer.usage.completion_tokens == len(made)


async def test_logprobs_are_those_of_a_plain_forward_at_temperature_1(
    engine: Engine, plain: Plain
) -> None:
    sampling = Sampling(temperature=0.6, top_k=5, top_p=0.9, max_tokens=12, seed=5)
    answers = await asyncio.gather(*(engine.generate(p, sampling) for p in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = plain.logprobs(prompt, ids_of(answer))
        assert [token.logprob for token in answer.tokens] == pytest.approx(expected, abs=2e-4)


async def test_a_seed_gives_the_same_text_alone_and_in_a_batch(engine: Engine) -> None:
    requests = [
        (
            Conversation.from_user(f"How do I {'really ' * (i % 7)}bake bread?"),
            Sampling(
                temperature=(0.7, 1.0, 1.3)[i % 3],
                top_p=(1.0, 0.9)[i % 2],
                top_k=(0, 20)[i // 2 % 2],
                max_tokens=4 + 5 * (i % 6),
                seed=i,
            ),
        )
        for i in range(16)
    ]
    together = await asyncio.gather(*(engine.generate(*request) for request in requests))
    alone = [await engine.generate(*request) for request in requests]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


async def test_another_seed_gives_another_text_and_the_same_seed_the_same(engine: Engine) -> None:
    texts = [
        (await engine.generate(PROMPT, Sampling(temperature=2.0, max_tokens=12, seed=seed))).text
        for seed in (1, 2, 3, 2**63, 2**64 - 1, 1)
    ]
    assert len(set(texts)) == 5
    assert texts[0] == texts[-1]


async def test_a_stream_gives_what_generate_gives_in_pieces(engine: Engine) -> None:
    for seed in range(3):
        sampling = Sampling(temperature=1.3, max_tokens=30, seed=seed)
        whole = await engine.generate(PROMPT, sampling)
        pieces = [piece async for piece in engine.stream(PROMPT, sampling)]
        assert len(pieces) > 2
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [t.id for piece in pieces for t in piece.tokens] == ids_of(whole)
        assert [piece.final is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]


async def test_a_stop_text_ends_the_answer_is_left_out_and_never_begun(engine: Engine) -> None:
    whole = await engine.generate(PROMPT, GREEDY)
    # begins within a word and ends within the next
    words = whole.text.split(" ")
    stop = f"{words[2][-1]} {words[3][0]}"
    expected = whole.text[: whole.text.index(stop)]
    sampling = Sampling(temperature=0.0, max_tokens=24, stop=("never", stop))
    stopped = await engine.generate(PROMPT, sampling)
    pieces = [piece async for piece in engine.stream(PROMPT, sampling)]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == "".join(piece.text for piece in pieces) == expected
    assert ids_of(whole)[: len(stopped.tokens)] == ids_of(stopped)
    assert len(stopped.tokens) < len(whole.tokens)


async def test_a_conversation_that_ends_with_the_assistant_is_continued(
    engine: Engine, plain: Plain
) -> None:
    conversation = PROMPT.then(PREFILL)
    answer = await engine.generate(conversation, GREEDY)
    assert ids_of(answer) == plain.greedy(conversation)


async def test_what_cannot_work_is_refused_before_any_work(engine: Engine) -> None:
    most = engine.info.context_tokens
    with pytest.raises(ContextExceeded) as caught:
        await engine.generate(PROMPT, Sampling(max_tokens=most))
    assert caught.value.context_tokens == most
    with pytest.raises(ContextExceeded):
        await engine.score([Conversation.from_user("bread " * most)], [["(A)"]])
    for sampling, named in (
        (Sampling(temperature=-1), "temperature"),
        (Sampling(seed=2**64), "seed"),
        (Sampling(max_tokens=0), "max_tokens"),
    ):
        with pytest.raises(InvalidInput, match=named):
            await engine.generate(PROMPT, sampling)
    assert engine.load().running == engine.load().queued == 0


async def test_scores_are_sums_of_logprobs_of_plain_forwards(engine: Engine, plain: Plain) -> None:
    prompts = [*PROMPTS, PROMPT.then(PREFILL)]
    # the joint tokenization of what goes on after a word has the blank in the next token
    options = [*[OPTIONS] * len(PROMPTS), [" First", " (A)"]]
    scored = await engine.score(prompts, options)
    for prompt, texts, values in zip(prompts, options, scored.logprobs, strict=True):
        assert values == pytest.approx([plain.score(prompt, t) for t in texts], abs=5e-4)


async def test_answers_and_scores_in_one_batch_do_not_touch_each_other(
    engine: Engine, plain: Plain
) -> None:
    answers, scores = await asyncio.gather(
        asyncio.gather(*(engine.generate(prompt, GREEDY) for prompt in PROMPTS)),
        asyncio.gather(*(engine.score([prompt], [OPTIONS]) for prompt in PROMPTS)),
    )
    for prompt, answer, scored in zip(PROMPTS, answers, scores, strict=True):
        assert [t.logprob for t in answer.tokens] == pytest.approx(
            plain.logprobs(prompt, ids_of(answer)), abs=2e-4
        )
        assert scored.logprobs[0] == pytest.approx(
            [plain.score(prompt, text) for text in OPTIONS], abs=5e-4
        )


async def test_what_prompts_share_is_computed_once_and_counted(engine: Engine) -> None:
    shared = "Which response is better? " + "First mix the flour, then wait for the yeast. " * 20
    prompts = [Conversation.from_user(f"{shared} By rule {i}: answer (A) or (B)") for i in range(8)]
    scored = await engine.score(prompts, [["(A)", "(B)"]] * len(prompts))
    usage = scored.usage
    assert usage.model_calls == len(prompts)
    assert 0 < usage.prompt_tokens - usage.cached_tokens < usage.prompt_tokens / 3


async def test_cancelling_frees_the_place(engine: Engine, ceaseless: Plain) -> None:
    runs = [await begun(engine) for _ in range(3)]
    stream = engine.stream(PROMPT, LONG)
    await anext(stream)
    assert engine.load().running >= 1
    await stream.aclose()
    for task in runs:
        task.cancel()
    assert all(
        isinstance(result, asyncio.CancelledError)
        for result in await asyncio.gather(*runs, return_exceptions=True)
    )
    # its places are free: those that come now get them
    answers = await asyncio.gather(*(engine.generate(PROMPT, GREEDY) for _ in range(8)))
    assert {tuple(ids_of(answer)) for answer in answers} == {tuple(ceaseless.greedy(PROMPT))}
    assert engine.load().running == engine.load().queued == 0


async def test_a_full_queue_refuses_and_says_when_to_come_again(engine: Engine) -> None:
    await engine.pause(PauseMode.KEEP)
    waiting = [asyncio.create_task(engine.generate(PROMPT, GREEDY)) for _ in range(16)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await engine.generate(PROMPT, GREEDY)
    assert caught.value.retry_after > 0
    await engine.resume()
    assert len({answer.text for answer in await asyncio.gather(*waiting)}) == 1


async def test_weights_change_between_requests_and_never_within_one(
    engine: Engine, plain: Plain, other: Plain
) -> None:
    expected = {"initial": plain.greedy(PROMPT), "other": other.greedy(PROMPT)}
    assert expected["initial"] != expected["other"]
    before = [asyncio.create_task(engine.generate(PROMPT, GREEDY)) for _ in range(6)]
    await asyncio.sleep(0)
    update = asyncio.create_task(engine.update_weights(str(other.path), "other"))
    after = [asyncio.create_task(engine.generate(PROMPT, GREEDY)) for _ in range(6)]
    await update
    assert engine.weight_version == "other"
    after.append(asyncio.create_task(engine.generate(PROMPT, GREEDY)))
    answers = await asyncio.gather(*before, *after)
    assert answers[-1].weight_version == "other"
    assert all(ids_of(answer) == expected[answer.weight_version] for answer in answers)
    # what is cached of prompts was computed with the old weights
    scored = await engine.score([PROMPTS[-1]], [OPTIONS])
    assert scored.weight_version == "other"
    assert scored.logprobs[0] == pytest.approx(
        [other.score(PROMPTS[-1], text) for text in OPTIONS], abs=5e-4
    )
    await engine.update_weights(str(plain.path), "initial")
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == expected["initial"]


async def test_weights_that_do_not_fit_leave_the_old_ones_at_work(
    engine: Engine, plain: Plain, other: Plain, tmp_path: Path
) -> None:
    damaged = AutoModelForCausalLM.from_pretrained(other.path)
    damaged.model.norm.weight.data[3] = torch.inf
    damaged.save_pretrained(tmp_path / "damaged")
    config = damaged.config
    config.num_hidden_layers = 2
    type(damaged)(config).save_pretrained(tmp_path / "shallow")
    other.model.save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\0" * 100)
    for name, said in (
        ("nowhere", "expected a directory"),
        ("damaged", "NaN or infinity"),
        ("shallow", "num_hidden_layers 2"),
        ("cut", str(tmp_path / "cut")),
    ):
        with pytest.raises(WeightsNotLoaded) as caught:
            await engine.update_weights(str(tmp_path / name), "broken")
        assert said in str(caught.value)
    assert engine.weight_version == "initial"
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == plain.greedy(PROMPT)


async def test_an_adapter_answers_as_the_merged_model_does(
    engine: Engine, plain: Plain, tmp_path: Path
) -> None:
    from peft import PeftModel

    path = make_adapter(tmp_path / "adapter", plain.path, r=8, lora_alpha=128)
    base = AutoModelForCausalLM.from_pretrained(plain.path)
    merged = PeftModel.from_pretrained(base, str(path)).merge_and_unload().eval()
    expected = Plain(path, merged, plain.tokenizer)
    assert expected.greedy(PROMPT) != plain.greedy(PROMPT)
    await engine.update_weights(str(path), "adapter")
    answer = await engine.generate(PROMPT, GREEDY)
    scored = await engine.score([PROMPT], [OPTIONS])
    assert answer.weight_version == scored.weight_version == "adapter"
    assert ids_of(answer) == expected.greedy(PROMPT)
    assert scored.logprobs[0] == pytest.approx(
        [expected.score(PROMPT, text) for text in OPTIONS], abs=1e-3
    )
    wrong = make_adapter(tmp_path / "wrong", plain.path, target_modules=["o_proj"], seed=3)
    (wrong / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(WeightsNotLoaded):
        await engine.update_weights(str(wrong), "wrong")
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == expected.greedy(PROMPT)
    await engine.update_weights(str(plain.path), "initial")
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == plain.greedy(PROMPT)


async def test_abort_ends_what_runs_and_waits_and_refuses_new_requests(
    engine: Engine, ceaseless: Plain
) -> None:
    whole = ceaseless.greedy(PROMPT, 400)
    runs = await begun(engine)
    waits = [asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in range(12)]
    await asyncio.sleep(0)
    assert await engine.pause(PauseMode.ABORT) == 13
    assert engine.load().paused
    with pytest.raises(Paused):
        await engine.generate(PROMPT, GREEDY)
    with pytest.raises(Paused):
        await engine.score([PROMPT], [["(A)"]])
    cut, *others = await asyncio.gather(runs, *waits)
    await engine.resume()
    assert all(answer.finish_reason is FinishReason.ABORT for answer in (cut, *others))
    assert 0 < len(cut.tokens) < len(whole)
    assert whole[: len(cut.tokens)] == ids_of(cut)
    assert (others[-1].text, others[-1].tokens) == ("", ())
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == whole[:24]


async def test_wait_lets_accepted_requests_finish_and_refuses_new_ones(
    engine: Engine, plain: Plain
) -> None:
    accepted = [asyncio.create_task(engine.generate(PROMPT, GREEDY)) for _ in range(12)]
    await asyncio.sleep(0)
    pausing = asyncio.create_task(engine.pause(PauseMode.WAIT))
    await asyncio.sleep(0)
    with pytest.raises(Paused):
        await engine.generate(PROMPT, GREEDY)
    assert await pausing == 0
    assert engine.load().running == engine.load().queued == 0
    assert {tuple(ids_of(await task)) for task in accepted} == {tuple(plain.greedy(PROMPT))}
    await engine.resume()
    await engine.resume()
    assert ids_of(await engine.generate(PROMPT, GREEDY)) == plain.greedy(PROMPT)


async def test_keep_holds_requests_where_they_are_until_resumed(
    engine: Engine, ceaseless: Plain, other: Plain
) -> None:
    runs = await begun(engine)
    assert await engine.pause(PauseMode.KEEP) == 0
    new = asyncio.create_task(engine.generate(PROMPT, GREEDY))
    await asyncio.sleep(0)
    load = engine.load()
    assert (load.running, load.queued, load.paused) == (1, 1, True)
    with pytest.raises(WeightsNotLoaded, match="1 requests are held"):
        await engine.update_weights(str(other.path), "other")
    assert not runs.done()
    await engine.resume()
    # after so many tokens other kernels may draw another one
    assert ids_of(await runs)[:64] == ceaseless.greedy(PROMPT, 64)
    assert len((await runs).tokens) == 400
    assert ids_of(await new) == ceaseless.greedy(PROMPT)
