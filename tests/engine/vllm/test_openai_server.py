"""The openai engine against a real vLLM server, beside the transformers engine on one model."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from solon.chat import Conversation, Message
from solon.client import ChainOfThought, JudgeClient, NoVerdictReason
from solon.client import Sampling as Sampled
from solon.constitution import Constitution, load, resolve
from solon.constitution.prompts import OPTION_A, OPTION_B, comparison_prompt, score_prompt
from solon.engine import Engine, EngineOptions, create
from solon.engine.base import ContextExceeded, FinishReason, InvalidInput, Sampling
from solon.judge.server import ROLE
from solon.sandbox import model_path
from solon.serving.testing import running
from solon.trainer.launch.local import LocalServices, ServiceSpec

KEY = "sk-of-the-test"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# 32-bit logits of two implementations, summed over a few tokens
CLOSE = 2e-3
ASKED = Conversation.from_user("How do I kill the process?")
HELPFUL = "To kill the process, first open a terminal, then type its name."
EVASIVE = "I would rather not talk about this."


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM server with the sandbox's model, which asks for a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    flags = ["--dtype=float32", "--enforce-eager", "--enable-prompt-tokens-details"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags),
                *(f"--model={model_path()}", "--served-model-name=sandbox", f"--api-key={KEY}"),
                *("--host=127.0.0.1", f"--port={port}"),
            ],
            env={**os.environ, **ENVIRONMENT},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until_healthy(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    transport = httpx2.HTTPTransport(retries=0)
    with httpx2.Client(transport=transport, timeout=300) as client:
        while True:
            assert server.poll() is None, log.read_text("utf-8", "replace")[-4000:]
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx2.TransportError:
                # what waits is the server's start: a minute on two cores
                with pytest.raises(subprocess.TimeoutExpired):
                    server.wait(timeout=0.5)


@asynccontextmanager
async def behind(url: str, **extra: str) -> AsyncIterator[Engine]:
    """An engine at the server."""
    own = {"base_url": url, "api_key_env": "TEST_KEY"} | extra
    engine = create("openai", EngineOptions(model="sandbox", extra=own))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
async def local() -> AsyncIterator[Engine]:
    """The same model on the transformers engine."""
    engine = create("transformers", EngineOptions(model=str(model_path()), threads=1))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def constitution() -> Constitution:
    return load(resolve("sandbox"))


async def test_whole_continuations_are_scored_as_the_model_scores_them(
    url: str, local: Engine, constitution: Constitution
) -> None:
    (compared, *_) = constitution.for_comparison
    (scored, *_) = constitution.for_scoring
    question = scored.absolute_question
    assert question is not None
    prompts = [
        comparison_prompt(constitution, compared, ASKED, HELPFUL, EVASIVE),
        comparison_prompt(constitution, compared, ASKED, EVASIVE, HELPFUL),
        score_prompt(scored, ASKED, EVASIVE),
        ASKED.then(Message("assistant", "To kill")),
        ASKED,
    ]
    texts = [
        *[(OPTION_A, OPTION_B)] * 2,
        tuple(question.answers),
        (" the process", " the teacher,"),
        (HELPFUL, EVASIVE, "To", "To kill the process"),
    ]
    async with behind(url) as engine:
        assert engine.info.extra["dialect"] == engine.info.extra["scoring"] == "vllm"
        assert engine.info.context_tokens == local.info.context_tokens
        found = await engine.score(prompts, texts)
        expected = await local.score(prompts, texts)
        for row, ours in zip(expected.logprobs, found.logprobs, strict=True):
            assert ours == pytest.approx(row, abs=CLOSE)
        # asked again, all but the last block of a prompt comes from the server's cache
        long = [score_prompt(scored, ASKED, HELPFUL * 20)]
        first = await engine.score(long, texts[2:3])
        again = await engine.score(long, texts[2:3])
        assert again.usage.cached_tokens > first.usage.cached_tokens
        assert again.logprobs[0] == pytest.approx(first.logprobs[0], abs=CLOSE)


async def test_text_tokens_and_seeds_are_the_models_own(url: str, local: Engine) -> None:
    greedy = Sampling(temperature=0, max_tokens=40)
    prefilled = ASKED.then(Message("assistant", "To kill"))
    async with behind(url, scoring="none") as engine:
        for conversation in (ASKED, prefilled):
            made = await engine.generate(conversation, greedy)
            expected = await local.generate(conversation, greedy)
            assert (made.text, made.finish_reason) == (expected.text, expected.finish_reason)
            assert [t.id for t in made.tokens] == [t.id for t in expected.tokens]
            assert [t.logprob for t in made.tokens] == pytest.approx(
                [t.logprob for t in expected.tokens], abs=CLOSE
            )
            assert made.usage.prompt_tokens == expected.usage.prompt_tokens
            assert made.usage.completion_tokens == expected.usage.completion_tokens
        drawn = [
            (await engine.generate(ASKED, Sampling(seed=seed, max_tokens=40, top_k=50))).text
            for seed in (1, 1, 2, 3, 4)
        ]
        assert drawn[0] == drawn[1]
        assert len(set(drawn)) > 1
        stopped = await engine.generate(ASKED, Sampling(temperature=0, stop=("process",)))
        assert stopped.text.endswith("kill the ")
        cut = [p async for p in engine.stream(ASKED, Sampling(temperature=0, max_tokens=4))]
        final = cut[-1].final
        assert final is not None
        assert final.finish_reason is FinishReason.LENGTH
        assert "".join(p.text for p in cut) == final.text
        assert [t for p in cut for t in p.tokens] == list(final.tokens)
        assert len(final.tokens) == final.usage.completion_tokens == 4


async def test_what_does_not_fit_is_refused_and_not_cut(url: str, local: Engine) -> None:
    long = Conversation.from_user("How do I kill the process? " * 100)
    tokens = (await local.generate(long, Sampling(max_tokens=1))).usage.prompt_tokens
    context = local.info.context_tokens
    async with behind(url, scoring="none") as engine:
        fits = await engine.generate(long, Sampling(max_tokens=context - tokens))
        assert fits.usage.prompt_tokens == tokens
        # the first the server would cut without a word
        for most in (context - tokens + 1, 5 * context):
            with pytest.raises(ContextExceeded, match=f"prompt has {tokens} tokens"):
                await engine.generate(long, Sampling(max_tokens=most))


async def test_a_cancelled_request_is_aborted_by_the_server(url: str) -> None:
    # an answer of a thousand tokens, which nobody waits for
    async with behind(url, scoring="none", body='{"ignore_eos": true}') as engine:
        stream = engine.stream(ASKED, Sampling(max_tokens=900))
        await anext(stream)
        await stream.aclose()
        async with httpx2.AsyncClient() as client:
            while True:
                text = (await client.get(f"{url.removesuffix('/v1')}/metrics")).text
                counts = [line for line in text.splitlines() if 'reason="abort"' in line]
                if any(float(line.rpartition(" ")[2]) >= 1 for line in counts):
                    break
                await asyncio.sleep(0.05)


async def test_a_wrong_key_and_an_unknown_model_are_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-wrong")
    with pytest.raises(InvalidInput, match="refuses the key that 'OTHER_KEY' holds"):
        async with behind(url, api_key_env="OTHER_KEY"):
            pass
    engine = create(
        "openai",
        EngineOptions(model="other", extra={"base_url": url, "api_key_env": "TEST_KEY"}),
    )
    with pytest.raises(InvalidInput, match=r"no 'other' .*it has 'sandbox'"):
        await engine.start()
    await engine.close()


@asynccontextmanager
async def judging(url: str, log_dir: Path, **extra: str) -> AsyncIterator[JudgeClient]:
    """A ``solon-judge`` process before the server, as a run starts it."""
    own = {"base_url": url, "api_key_env": "TEST_KEY"} | extra
    flags = [part for key, value in own.items() for part in ("--engine-option", f"{key}={value}")]
    spec = ServiceSpec(
        role="judge",
        model="sandbox",
        engine="openai",
        constitutions=("sandbox",),
        flags=tuple(flags),
    )
    async with (
        LocalServices([spec], log_dir=log_dir) as services,
        JudgeClient(services.addresses["judge"]) as judge,
    ):
        yield judge


async def test_a_judge_before_the_server_judges_as_one_with_the_model_or_hears_what_it_says(
    url: str, local: Engine, constitution: Constitution, tmp_path: Path
) -> None:
    async with (
        running(ROLE, local, constitutions=[constitution]) as address,
        JudgeClient(address) as judge,
    ):
        theirs = await judge.compare(ASKED, HELPFUL, EVASIVE, constitution="sandbox")
        their_score = await judge.score(ASKED, EVASIVE, constitution="sandbox")
    async with judging(url, tmp_path) as judge:
        ours = await judge.compare(ASKED, HELPFUL, EVASIVE, constitution="sandbox")
        our_score = await judge.score(ASKED, EVASIVE, constitution="sandbox")
    assert ours.probability_a == pytest.approx(theirs.probability_a, abs=CLOSE)
    for one, other in zip(ours.principles, theirs.principles, strict=True):
        assert one.probability_a == pytest.approx(other.probability_a, abs=CLOSE)
        assert one.position_dependent == other.position_dependent
    assert our_score.score == pytest.approx(their_score.score, abs=CLOSE)
    async with judging(url, tmp_path, scoring="none", input_price="1") as judge:
        heard = await judge.compare(ASKED, HELPFUL, EVASIVE, constitution="sandbox")
        said = await judge.score(ASKED, EVASIVE, constitution="sandbox")
        # a critique is no verdict, and no chain either: what begins with no option is not read
        thought = ChainOfThought(sampling=Sampled(max_tokens=1))
        cut = await judge.compare(
            ASKED, HELPFUL, EVASIVE, constitution="sandbox", chain_of_thought=thought
        )
    heard_orders = [order for one in heard.principles for order in one.orders]
    read_orders = [order for one in theirs.principles for order in one.orders]
    for said_so, read in zip(heard_orders, read_orders, strict=True):
        assert math.isnan(said_so.logprob_a)
        assert read.probability_a is not None
        assert said_so.probability_a == float(read.probability_a > 0.5)
    assert heard.usage.cost_usd == pytest.approx(heard.usage.prompt_tokens / 1e6)
    for score, probable in zip(said.principles, their_score.principles, strict=True):
        likeliest = max(probable.probabilities, key=lambda text: probable.probabilities[text])
        assert score.probabilities[likeliest] == 1
    assert cut.probability_a is None
    assert {one.no_verdict_reason for one in cut.principles} == {NoVerdictReason.UNREADABLE_ANSWER}
