"""The configurations for real models: each fits the accelerators that its name says.

Nothing is downloaded: a model of the same architecture and size stands for theirs, whose weights
are a file of the right length with nothing in it.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

from solon.trainer.cli import main
from solon.trainer.config import differences, load_config, model_source, shipped_names
from tests.trainer.runs import served

GIB = 2**30
# Qwen/Qwen2.5-7B, by its config.json
SEVEN_B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
GPUS = {
    "7b-1x40gb-sl": "1xa100-40gb",
    "7b-2x40gb-rl": "2xa100-40gb",
    "7b-1x40gb-lora": "1xa100-40gb",
    "7b-1x40gb-70b-judge": "1xa100-40gb",
    "7b-8x80gb-full": "8xa100-80gb",
}


def seven_b_shapes() -> dict[str, list[int]]:
    width, inner, keys = 3584, 18944, 512
    layer = {
        "self_attn.q_proj.weight": [width, width],
        "self_attn.q_proj.bias": [width],
        "self_attn.k_proj.weight": [keys, width],
        "self_attn.k_proj.bias": [keys],
        "self_attn.v_proj.weight": [keys, width],
        "self_attn.v_proj.bias": [keys],
        "self_attn.o_proj.weight": [width, width],
        "mlp.gate_proj.weight": [inner, width],
        "mlp.up_proj.weight": [inner, width],
        "mlp.down_proj.weight": [width, inner],
        "input_layernorm.weight": [width],
        "post_attention_layernorm.weight": [width],
    }
    layers = {f"model.layers.{n}.{name}": shape for n in range(28) for name, shape in layer.items()}
    ends = {"model.embed_tokens.weight": [152064, width], "lm_head.weight": [152064, width]}
    return layers | ends | {"model.norm.weight": [width]}


def write_hollow_weights(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """A safetensors file that is whole and takes no space: its data is a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 7B model without its contents."""
    folder = tmp_path_factory.mktemp("7b")
    (folder / "config.json").write_text(json.dumps(SEVEN_B))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(model_source("sandbox")) / name, folder)
    write_hollow_weights(folder / "model.safetensors", seven_b_shapes())
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served("judge", tmp_path_factory.mktemp("judge")) as address:
        yield address


def dry(
    capsys: pytest.CaptureFixture[str], model: Path, run: Path, name: str, *more: str, code: int = 0
) -> Any:
    roles = ("policy", "critic", "judge", "base_for_sft")
    models = [f"models.{role}={model}" for role in roles]
    gpus = ("--gpus", GPUS[name])
    assert main(["run", name, "--dry-run", "--json", "--run", str(run), *gpus, *models, *more]) in (
        code,
        2,
    )
    found = json.loads(capsys.readouterr().out)
    # how much disk the machine of the test has is not the configuration's business
    found["problems"] = [one for one in found["problems"] if not one.startswith("run_dir: the run")]
    assert bool(found["problems"]) == (code == 2), found["problems"]
    return found


def most(found: Any, device: int = 0) -> float:
    """GiB that the fullest stage takes of a device."""
    totals: dict[str, float] = {}
    for use in found["memory"]:
        if use["device"] == device:
            totals[use["stage"]] = totals.get(use["stage"], 0.0) + use["total"] / GIB
    return max(totals.values())


def test_every_configuration_for_real_models_is_tested() -> None:
    assert {name for name in shipped_names() if not name.startswith("sandbox")} == set(GPUS)


@pytest.mark.parametrize("name", [name for name in GPUS if "judge" not in name])
def test_it_fits_the_accelerators_of_its_name(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry(capsys, model, tmp_path / "run", name)
    count, _, size = name.split("-")[1].removesuffix("gb").partition("x")
    assert len(found["gpus"]) == int(count)
    assert {gpu["memory"] for gpu in found["gpus"]} == {int(size) * GIB}
    assert found["models"]["policy"]["parameters"] == 7_615_616_512
    for device in range(int(count)):
        # above what one copy of the weights takes: something is really estimated
        assert 15 < most(found, device) <= 0.95 * int(size)
    assert all(seconds > 1 for seconds in found["seconds"].values())


def test_a_judge_elsewhere_is_asked_what_it_is_and_takes_no_memory_here(
    judge: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "7b-1x40gb-70b-judge"
    told = dry(capsys, model, tmp_path / "run", name, code=2)["problems"]
    assert any("'SOLON_JUDGE_TOKEN' is not set" in one for one in told)
    here = [f"services.judge.address={judge}", "services.judge.tls=null"]
    monkeypatch.setenv("SOLON_JUDGE_TOKEN", "secret")
    found = dry(capsys, model, tmp_path / "run", name, *here)
    assert "secret" not in json.dumps(found)
    assert found["facts"]["judge"] == f"scripted on scripted at {judge}"
    assert not [use for use in found["memory"] if use["process"] == "judge"]
    assert any("how fast the service at" in note for note in found["notes"])
    assert most(found) < 38


def test_the_rl_phase_goes_on_in_the_run_of_the_sl_phase() -> None:
    first, second = load_config("7b-1x40gb-sl"), load_config("7b-2x40gb-rl")
    assert differences(first, second) == []
    assert set(first.stages) | set(second.stages) == set(load_config("sandbox").stages)


def test_full_fine_tuning_is_divided_among_eight_devices(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "7b-8x80gb-full"
    found = dry(capsys, model, tmp_path / "run", name)
    stages = {use["stage"] for use in found["memory"] if use["process"] == "training, rank 7"}
    assert stages == {"sft", "reward", "rl"}
    ranks = [use for use in found["memory"] if use["process"].startswith("training, rank")]
    assert [use["device"] for use in ranks] == 3 * list(range(8))
    # what does not fit on one (see below) is divided, but for autocast's copies, which it has not
    parts = ranks[0]["parts"]
    states = sum(parts[part] for part in ("weights", "gradients", "optimiser"))
    assert states == 16 * 7_615_616_512 / 8
    assert any("memory before it goes to its device: about 227 GiB" in n for n in found["notes"])
    more = dry(capsys, model, tmp_path / "run", name, "sft.processes=16", code=2)["problems"]
    assert more == [
        "sft.processes: expected at most 8, one for each device, got 16; lower it, or give more "
        "devices"
    ]


def test_full_fine_tuning_on_one_device_is_said_not_to_fit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry(capsys, model, tmp_path / "run", "7b-1x40gb-sl", "sft.lora=null", code=2)
    (told,) = found["problems"]
    assert told.startswith("memory: sft needs about")
    training = next(u for u in found["memory"] if u["process"] == "training")
    # float32 weights, gradients and two moments, and autocast's bfloat16 copies: 18 bytes each
    weights = sum(training["parts"][name] for name in ("weights", "gradients", "optimiser"))
    assert weights == 18 * 7_615_616_512
