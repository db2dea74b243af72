"""LoRA adapters, merged into the full weights that were loaded last."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from solon.chat import Conversation
from solon.engine import Engine
from solon.engine.base import Sampling, WeightsNotLoaded
from tests.engine.conftest import make_adapter, make_model, make_tokenizer, running

PROMPT = Conversation.from_user("How do I bake bread?")
LONG = Sampling(temperature=0.0, max_tokens=60)


async def said(engine: Engine) -> tuple[Any, ...]:
    """Answers and log-probabilities, to the last bit."""
    answer = await engine.generate(PROMPT, LONG)
    scored = await engine.score([PROMPT], [["(A)", "(B)"]])
    return answer.tokens, scored.logprobs


def merged_by_peft(path: Path, base: Path, adapter: Path, dtype: torch.dtype | None = None) -> Path:
    """A checkpoint of what peft makes of both."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype or torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def adapter(model_path: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", model_path)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"modules_to_save": ["lm_head", "norm"]},
        {"use_rslora": True, "use_dora": True},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["embed_tokens", "v_proj"]},
    ],
    ids=["plain", "modules-to-save", "rslora-dora", "all-linear", "embedding"],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
async def test_an_adapter_answers_to_the_last_bit_as_what_peft_merges(
    changed: dict[str, Any], model_path: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", model_path, **changed)
    async with running(merged_by_peft(tmp_path / "merged", model_path, adapter)) as engine:
        expected = await said(engine)
    async with running(model_path) as engine:
        assert await said(engine) != expected
        await engine.update_weights(str(adapter), "adapter")
        assert engine.weight_version == "adapter"
        assert await said(engine) == expected


async def test_an_adapter_of_a_model_in_bfloat16_is_what_peft_merges(
    model_path: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = merged_by_peft(tmp_path / "merged", model_path, adapter, torch.bfloat16)
    async with running(merged, dtype="bfloat16") as engine:
        expected = await said(engine)
    async with running(model_path, dtype="bfloat16") as engine:
        await engine.update_weights(str(adapter), "adapter")
        assert await said(engine) == expected


async def test_an_adapter_applies_to_the_full_weights_loaded_last_and_to_no_other_adapter(
    model_path: Path, other_path: Path, adapter: Path, tmp_path: Path
) -> None:
    second = make_adapter(tmp_path / "second", model_path, seed=3)
    async with running(model_path) as engine:
        initial = await said(engine)
        await engine.update_weights(str(second), "second")
        alone = await said(engine)
        await engine.update_weights(str(adapter), "first")
        await engine.update_weights(str(second), "second again")
        assert await said(engine) == alone
        await engine.update_weights(str(model_path), "back")
        assert await said(engine) == initial
        await engine.update_weights(str(other_path), "other")
        await engine.update_weights(str(second), "second of other")
        changed = await said(engine)
    async with running(merged_by_peft(tmp_path / "merged", other_path, second)) as engine:
        assert await said(engine) == changed


async def test_requests_in_flight_finish_on_the_weights_from_before_an_adapter(
    model_path: Path, adapter: Path
) -> None:
    async with running(model_path) as engine:
        tokens = {"initial": (await engine.generate(PROMPT, LONG)).tokens}
        update = asyncio.create_task(engine.update_weights(str(adapter), "adapter"))
        traffic = []
        while not update.done():
            traffic.append(await engine.generate(PROMPT, LONG))
        await update
        after = await engine.generate(PROMPT, LONG)
    assert after.weight_version == "adapter"
    tokens["adapter"] = after.tokens
    assert traffic[0].weight_version == "initial"
    assert all(answer.tokens == tokens[answer.weight_version] for answer in traffic)


def without_weights(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def pickled(path: Path) -> None:
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    without_weights(path)


def cut_short(path: Path) -> None:
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def not_finite(path: Path) -> None:
    weights = load_file(path / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, path / "adapter_model.safetensors")


def lacking_a_tensor(path: Path) -> None:
    weights = load_file(path / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, path / "adapter_model.safetensors")


def configured(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = path / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))

    return change


def no_json(path: Path) -> None:
    (path / "adapter_config.json").write_text("<html>")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (without_weights, "has no adapter_model.safetensors"),
        (pickled, r"pickles \(adapter_model.bin\) are not loaded"),
        (cut_short, "adapter_model.safetensors is damaged"),
        (not_finite, "holds NaN or infinity"),
        (lacking_a_tensor, "1 missing tensors, such as base_model.model"),
        (no_json, "adapter_config.json is none that peft can read: JSONDecodeError"),
        (configured(peft_type="MAGIC"), "none that peft can read: KeyError: 'MAGIC'"),
        (configured(r="many"), "does not fit them"),
        (configured(target_modules=["c_attn"]), "does not fit them: Target modules .*c_attn"),
        (configured(r=8), "does not fit them: size mismatch for base_model"),
        (configured(layers_to_transform=[0]), "unexpected tensors"),
        (configured(layer_replication=[[0, 2], [0, 2]]), "missing tensors"),
        (configured(megatron_config={}, megatron_core="antigravity"), "megatron_config"),
    ],
)
async def test_an_adapter_that_cannot_be_used_leaves_the_old_weights_at_work(
    damage: Callable[[Path], None], what: str, model_path: Path, adapter: Path
) -> None:
    damage(adapter)
    async with running(model_path) as engine:
        expected = await said(engine)
        with pytest.raises(WeightsNotLoaded, match=what) as caught:
            await engine.update_weights(str(adapter), "adapter")
        assert str(adapter) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert engine.weight_version == "initial"
        assert await said(engine) == expected


async def test_an_adapter_of_another_model_is_refused_with_the_name_of_its_own(
    model_path: Path, tmp_path: Path
) -> None:
    async with running(model_path) as engine:
        expected = await said(engine)
        for name, shape in (("wider", {"hidden": 64}), ("deeper", {"layers": 3})):
            base = make_model(tmp_path / name, **shape)  # type: ignore[arg-type]
            adapter = make_adapter(tmp_path / f"of-{name}", base)
            with pytest.raises(WeightsNotLoaded, match="does not fit them") as caught:
                await engine.update_weights(str(adapter), name)
            assert f"trained on {str(base)!r}" in str(caught.value)
        assert await said(engine) == expected


async def test_an_adapter_of_another_kind_is_refused(model_path: Path, tmp_path: Path) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    model = get_peft_model(LlamaForCausalLM.from_pretrained(model_path), config)
    model.save_pretrained(str(tmp_path / "ia3"))
    async with running(model_path) as engine:
        with pytest.raises(WeightsNotLoaded, match=r"expected an adapter of type LORA, got .*IA3"):
            await engine.update_weights(str(tmp_path / "ia3"), "ia3")


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Input and output embeddings"
)
async def test_an_adapter_that_would_untie_what_the_model_ties_is_refused(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", tied=True)
    fits = make_adapter(tmp_path / "fits", tied)
    unties = make_adapter(tmp_path / "unties", tied, modules_to_save=["lm_head"])
    async with running(tied) as engine:
        await engine.update_weights(str(fits), "fits")
        expected = await said(engine)
        with pytest.raises(WeightsNotLoaded, match="ties the two"):
            await engine.update_weights(str(unties), "unties")
        assert await said(engine) == expected


async def test_an_adapter_is_refused_once_its_base_has_changed_or_gone(
    model_path: Path, other_path: Path, adapter: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(model_path, tmp_path / "base")
    async with running(base) as engine:
        expected = await said(engine)
        shutil.copy(other_path / "model.safetensors", base)
        with pytest.raises(WeightsNotLoaded, match="have changed since they were loaded"):
            await engine.update_weights(str(adapter), "adapter")
        shutil.rmtree(base)
        with pytest.raises(
            WeightsNotLoaded, match=r"cannot be read again.*load full weights first"
        ):
            await engine.update_weights(str(adapter), "adapter")
        assert await said(engine) == expected
        await engine.update_weights(str(model_path), "full")
        await engine.update_weights(str(adapter), "adapter")
        assert engine.weight_version == "adapter"
