"""``solon keys``: what a configuration can say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from solon.trainer.cli import main
from solon.trainer.config import RunConfig, load_config, shipped_names, validate
from solon.trainer.keys import below
from solon.trainer.yaml_source import override, parse

KEYS = {one.key: one for one in below("")}


@pytest.mark.parametrize("name", shipped_names())
def test_whatever_a_shipped_configuration_says_is_a_known_key(name: str) -> None:
    def dotted(value: object, prefix: str) -> set[str]:
        section = KEYS.get(prefix)
        if isinstance(value, dict) and (section is None or section.is_section):
            found = {f"{prefix}.{key}".lstrip("."): inner for key, inner in value.items()}
            return set(found).union(*(dotted(inner, key) for key, inner in found.items()))
        return set()

    assert dotted(load_config(name).model_dump(mode="json"), "") <= KEYS.keys()


def test_the_default_that_is_shown_is_the_one_that_holds() -> None:
    models = "{policy: m, critic: m, judge: m, base_for_sft: m}"
    source = parse(f"constitution: core\nmodels: {models}", "mine.yaml")
    assert validate(source).rl.kl_coefficient == KEYS["rl.kl_coefficient"].default
    changed = validate(override(source, ["rl.kl_coefficient=0.5"]))
    assert changed.rl.kl_coefficient != KEYS["rl.kl_coefficient"].default
    assert KEYS["models.policy"].required
    assert KEYS["rl"].is_section
    assert set(RunConfig.model_fields) <= KEYS.keys()


def test_a_section_is_shown_with_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "rl.reward", "--json"]) == 0
    shown = [one["key"] for one in json.loads(capsys.readouterr().out)]
    assert shown[:2] == ["rl.reward", "rl.reward.model"]
    assert all(key.startswith("rl.reward") for key in shown)
    assert main(["keys", "seed"]) == 0
    assert capsys.readouterr().out.startswith("seed: 0\n  Every draw of the run")


def test_a_key_that_is_not_there_is_told_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["keys", "rl.rewad"]) == 2
    assert "did you mean 'rl.reward'?" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "solon.trainer.cli", "keys"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 141
