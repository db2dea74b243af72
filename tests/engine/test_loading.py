"""What the engines say when they cannot start."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from solon.chat import Conversation, Message
from solon.engine import ENGINES, EngineOptions, create
from solon.engine.base import InvalidInput, Sampling, WeightsNotLoaded
from tests.engine.conftest import CHAT_TEMPLATE, make_adapter, running


async def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        async with running(path, **options):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(model_path: Path, target: Path, *names: str) -> Path:
    shutil.copytree(model_path, target)
    for name in names:
        for path in target.glob(name):
            path.unlink()
    return target


async def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = await refusal(tmp_path / "nowhere")
    assert said == f"model: expected a directory, {str(tmp_path / 'nowhere')!r} is not one"


async def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    assert "has no config.json" in await refusal(tmp_path)


async def test_a_config_of_no_known_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    assert await refusal(tmp_path)


async def test_a_model_without_a_tokenizer_says_how_to_save_one(
    model_path: Path, tmp_path: Path
) -> None:
    path = without(model_path, tmp_path / "m", "tokenizer*")
    assert "tokenizer.save_pretrained" in await refusal(path)


async def test_a_model_without_weights_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = without(model_path, tmp_path / "m", "*.safetensors")
    assert "cannot be loaded as a causal language model" in await refusal(path)


async def test_an_old_model_without_safetensors_starts_but_replaces_no_weights(
    model_path: Path, tmp_path: Path
) -> None:
    path = without(model_path, tmp_path / "m", "*.safetensors")
    torch.save(load_file(model_path / "model.safetensors"), path / "pytorch_model.bin")
    async with running(path) as engine:
        with pytest.raises(WeightsNotLoaded, match=r"no file named model\.safetensors"):
            await engine.update_weights(str(path), "step-1")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Path, protocol=2))
    assert "cannot be loaded as a causal language model" in await refusal(path)


async def test_an_adapter_alone_is_no_model_to_start_with(model_path: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", model_path)
    assert "load the adapter with UpdateWeights" in await refusal(adapter)


async def test_code_that_comes_with_a_model_is_not_run(model_path: Path, tmp_path: Path) -> None:
    path = without(model_path, tmp_path / "m", "config.json")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text("raise SystemExit('was run')")
    assert "contains custom code" in await refusal(path)


async def test_a_model_without_a_chat_template_names_the_fix_and_the_fix_works(
    model_path: Path, tmp_path: Path
) -> None:
    path = without(model_path, tmp_path / "m", "chat_template.jinja")
    said = await refusal(path)
    assert "has no chat template" in said
    assert "chat_template=PATH" in said
    template = tmp_path / "template.jinja"
    assert "cannot read" in await refusal(path, extra={"chat_template": str(template)})
    template.write_text(CHAT_TEMPLATE)
    async with running(path, extra={"chat_template": str(template)}) as engine:
        assert engine.info.context_tokens == 256


async def test_a_model_that_is_no_causal_language_model_is_refused(
    model_path: Path, tmp_path: Path
) -> None:
    path = without(model_path, tmp_path / "m", "model.safetensors", "config.json")
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(path)
    assert "is not a causal language model" in await refusal(path)


async def test_cuda_is_refused_where_there_is_none(model_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert "torch sees no CUDA device" in await refusal(model_path, device="cuda")


async def test_unknown_device_dtype_engine_and_option_are_refused(model_path: Path) -> None:
    assert await refusal(model_path, device="abacus")
    assert "dtype" in await refusal(model_path, dtype="int8")
    assert "engine option 'typo'" in await refusal(model_path, extra={"typo": "1"})
    assert "expected int" in await refusal(model_path, extra={"score_keys": "many"})
    with pytest.raises(InvalidInput, match="max_batch: expected a number >= 1, got 0"):
        EngineOptions(model="m", max_batch=0)
    with pytest.raises(InvalidInput, match=f"expected one of {', '.join(ENGINES)}"):
        create("magic", EngineOptions(model="m"))


async def test_a_conversation_that_the_template_refuses_is_the_callers_mistake(
    model_path: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    conversation = Conversation((Message("system", "Be kind."), Message("user", "Hi")))
    async with running(model_path, extra={"chat_template": str(template)}) as engine:
        with pytest.raises(InvalidInput, match="refuses it: no system turn"):
            await engine.generate(conversation, Sampling())


async def test_a_narrower_dtype_runs(model_path: Path) -> None:
    async with running(model_path, dtype="bfloat16") as engine:
        answer = await engine.generate(Conversation.from_user("Hi"), Sampling(max_tokens=5))
        scored = await engine.score([Conversation.from_user("Hi")], [["(A)", "(B)"]])
        assert engine.info.extra["dtype"] == "bfloat16"
    assert answer.tokens
    assert all(value < 0 for value in scored.logprobs[0])


def test_the_engine_package_imports_no_torch() -> None:
    code = (
        "import sys; from solon.engine import EngineOptions, create; import solon.engine.base;"
        "create('scripted', EngineOptions(model='m'));"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
