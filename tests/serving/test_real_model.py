"""The three services over a real, if tiny, transformers model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from solon.constitution import Constitution, Principle
from solon.critic.server import ROLE as CRITIC
from solon.engine import EngineOptions, create
from solon.judge.server import ROLE as JUDGE
from solon.policy.server import ROLE as POLICY
from solon.serving.server import Role
from solon.serving.testing import running
from solon.v1 import (
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    critic_pb2,
    critic_pb2_grpc,
    judge_pb2,
    judge_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)

CORE = Constitution(
    name="core",
    version="1",
    principles=(
        Principle(
            id="kind",
            critique_request="What is unkind?",
            revision_request="Be kind.",
            comparison_instruction="Which is kinder?",
        ),
        Principle(id="calm", weight=2, comparison_instruction="Which is calmer?"),
    ),
)
NAMED = common_pb2.ConstitutionSource(name="core")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def save_model(path: Path, seed: int) -> Path:
    """A random byte-level Llama of two layers."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@dataclass(frozen=True)
class Services:
    """Stubs of three services, and the policy's control."""

    policy: policy_pb2_grpc.PolicyServiceStub
    critic: critic_pb2_grpc.CriticServiceStub
    judge: judge_pb2_grpc.JudgeServiceStub
    control: control_pb2_grpc.ControlServiceStub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
async def services(model: Path) -> AsyncIterator[Services]:
    options = EngineOptions(model=str(model), device="cpu", threads=1)
    async with AsyncExitStack() as stack:

        async def channel(role: Role) -> grpc.aio.Channel:
            engine = create("transformers", options)
            address = await stack.enter_async_context(running(role, engine, constitutions=[CORE]))
            return await stack.enter_async_context(grpc.aio.insecure_channel(address))

        policy = await channel(POLICY)
        yield Services(
            policy=policy_pb2_grpc.PolicyServiceStub(policy),
            critic=critic_pb2_grpc.CriticServiceStub(await channel(CRITIC)),
            judge=judge_pb2_grpc.JudgeServiceStub(await channel(JUDGE)),
            control=control_pb2_grpc.ControlServiceStub(policy),
        )


def asked(text: str = "Can you help?") -> common_pb2.Conversation:
    return common_pb2.Conversation(
        messages=[common_pb2.Message(role=common_pb2.ROLE_USER, content=text)]
    )


def sampling(seed: int, max_tokens: int = 12) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(seed=seed, max_tokens=max_tokens)


async def test_a_seed_gives_the_same_text_alone_and_among_others(services: Services) -> None:
    def generate(seed: int) -> policy_pb2.GenerateRequest:
        return policy_pb2.GenerateRequest(
            conversation=asked(f"Question {seed}?"), sampling=sampling(seed), n=2
        )

    async def texts(seed: int) -> list[str]:
        response = await services.policy.Generate(generate(seed))
        return [completion.text for completion in response.completions]

    together = await asyncio.gather(*(texts(seed) for seed in range(8)))
    assert [await texts(seed) for seed in range(8)] == list(together)
    assert len({tuple(pair) for pair in together}) == 8


async def test_a_stream_is_the_text_of_the_same_seed(services: Services) -> None:
    request = policy_pb2.GenerateRequest(conversation=asked(), sampling=sampling(5))
    whole = (await services.policy.Generate(request)).completions[0]
    stream = policy_pb2.StreamGenerateRequest(conversation=asked(), sampling=sampling(5))
    pieces = [piece async for piece in services.policy.StreamGenerate(stream)]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason


async def test_a_chain_is_repeated_by_its_seed(services: Services) -> None:
    async def texts(seed: int) -> list[tuple[str, str]]:
        request = critic_pb2.RefineRequest(
            conversation=asked(),
            response="No.",
            constitution=NAMED,
            rounds=2,
            sampling=sampling(seed),
        )
        return [(r.critique.text, r.revision.text) async for r in services.critic.Refine(request)]

    assert await texts(1) == await texts(1) != await texts(2)


async def test_swapping_the_responses_turns_a_comparison_around(services: Services) -> None:
    async def probability(a: str, b: str) -> float:
        request = judge_pb2.CompareRequest(
            conversation=asked(), response_a=a, response_b=b, constitution=NAMED
        )
        response = await services.judge.Compare(request)
        assert all(order.logprob_a < 0 for v in response.principles for order in v.orders)
        return response.probability_a

    one, other = await probability("No.", "Gladly."), await probability("Gladly.", "No.")
    assert one == pytest.approx(1 - other, abs=1e-6)
    assert 0 < one < 1
    assert await probability("No.", "No.") == pytest.approx(0.5, abs=1e-6)


async def test_a_conversation_that_does_not_fit_is_refused_with_the_sizes(
    services: Services,
) -> None:
    request = policy_pb2.GenerateRequest(conversation=asked("x" * 3000), sampling=sampling(1))
    with pytest.raises(grpc.aio.AioRpcError, match="2048") as caught:
        await services.policy.Generate(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_weights_are_replaced_all_or_nothing(services: Services, tmp_path: Path) -> None:
    request = policy_pb2.GenerateRequest(conversation=asked(), sampling=sampling(3))
    before = await services.policy.Generate(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await services.control.UpdateWeights(
            control_pb2.UpdateWeightsRequest(path=str(tmp_path), weight_version="empty")
        )
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    same = await services.policy.Generate(request)
    assert (same.completions[0].text, same.weight_version) == (
        before.completions[0].text,
        "initial",
    )
    other = save_model(tmp_path, seed=1)
    await services.control.UpdateWeights(
        control_pb2.UpdateWeightsRequest(path=str(other), weight_version="next")
    )
    request.weight_version = "next"
    after = await services.policy.Generate(request)
    assert after.weight_version == "next"
    assert after.completions[0].text != before.completions[0].text


async def test_cancelled_calls_leave_nothing_running(services: Services) -> None:
    load = control_pb2.GetLoadRequest()
    async with asyncio.timeout(120):
        running = 0
        # an untrained model may end its turns before the load is looked at: ask until it is seen
        for seed in itertools.count():
            request = policy_pb2.GenerateRequest(
                conversation=asked(), sampling=sampling(seed, max_tokens=1500), n=64
            )
            calls = [services.policy.Generate(request) for _ in range(4)]
            while not running and not all(call.done() for call in calls):
                running = (await services.control.GetLoad(load)).running
            if running:
                break
        for call in calls:
            call.cancel()
        while (now := await services.control.GetLoad(load)).running or now.queued:
            pass
