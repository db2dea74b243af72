"""The ``solon`` command: exit codes and messages for whatever a user can get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from solon.trainer.cli import main
from solon.trainer.lock import exclusive
from solon.trainer.storage import Storage

CONFIG = """\
constitution: core
models: {{policy: {model}, critic: {model}, judge: {model}, base_for_sft: {model}}}
prompts:
  red_team: [{folder}/red.txt]
  preferences: [{folder}/red.txt]
  evaluation: {{harmful: [{folder}/held.txt]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "red.txt").write_text("How do I pick a lock?\nHow do I pick a pocket?\n")
    (tmp_path / "held.txt").write_text("How do I pick a fight?\n")
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG.format(model=model, folder=tmp_path))
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one message of a command that ends with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out == ""
    assert said.err.count("solon: error: ") == 1
    return said.err


def test_help_and_version_need_nothing_heavy_and_say_what_there_is() -> None:
    code = (
        "import sys; from solon.trainer.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'pydantic', 'grpc', 'torch', 'rich'} & set(sys.modules)"
    )
    for flag, expected in (("--help", "revisions"), ("--version", "solon ")):
        ended = subprocess.run(
            [sys.executable, "-c", code, flag], capture_output=True, text=True, check=True
        )
        assert expected in ended.stdout


def test_without_the_trainer_extra_the_command_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None; from solon.trainer.cli import main;"
        "sys.exit(main(['run', 'sandbox']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert 'pip install "solon[local]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_check_says_that_all_is_well_and_what_a_run_will_cost(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config), "revisions.rounds=2", "--run", "x", "seed=3"]) == 0
    said = capsys.readouterr().err
    assert "2 red-team and 0 helpfulness prompts, 10 generations" in said
    assert "All is well" in said
    assert "warning" not in said


def test_check_warns_of_a_constitution_that_only_forbids(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    constitution = tmp_path / "strict.yaml"
    constitution.write_text(
        "name: strict\nversion: '1'\nprinciples:\n"
        "  - id: harm\n    critique_request: Say what is harmful.\n"
        "    revision_request: Remove all harm.\n"
        "    comparison_instruction: Which response is less harmful?\n"
    )
    assert main(["check", str(config), f"constitution={constitution}"]) == 0
    said = capsys.readouterr().err
    assert "warning: constitution strict: principles: no comparison instruction asks for" in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("revisions.rounds=0", "command line: revisions.rounds: expected greater than"),
        ("constitution=nonsense", "expected a constitution's file or a shipped name"),
        ("models.judge=/no/such/model", "models.judge: expected a directory in Hugging Face"),
        ("preferences.principles=99", "preferences.principles: expected 1 to 5"),
        ("prompts.red_team=[/no/such.txt]", "/no/such.txt: no such file"),
    ],
)
def test_the_users_mistakes_end_with_2_and_one_message(
    config: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    assert expected in fails(capsys, "check", config, override)


def test_a_held_out_prompt_in_the_training_set_ends_the_check(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "held.txt").write_text("How do I pick a lock?\n")
    assert "1 held-out prompts are also in prompts.red_team" in fails(capsys, "check", config)


def test_a_run_that_is_there_is_not_touched_without_resume(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("anything")
    said = fails(capsys, "run", config, "--run", run)
    assert "--resume" in said
    assert "--run DIRECTORY" in said
    assert (run / "config.yaml").read_text() == "anything"


def test_a_directory_of_other_files_is_not_touched(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "run", config, "--run", tmp_path)
    assert "holds files that are not a run's" in said


def test_a_file_in_the_place_of_the_run_is_not_touched(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "got a file" in fails(capsys, "run", config, "--run", config)


def test_a_run_in_use_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with exclusive(Storage(str(run))):
        assert "another run is at work in it" in fails(capsys, "run", config, "--run", run)


def test_a_stage_whose_input_is_missing_names_the_stage_to_run_first(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert "`solon revisions" in fails(capsys, "sft", config, "--run", run)
    assert "`solon preferences" in fails(capsys, "reward", run)


def test_a_changed_configuration_cannot_go_on_with_old_records(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fails(capsys, "sft", config, "--run", run)
    said = fails(capsys, "run", config, "seed=5", "--run", run, "--resume")
    assert "seed: 0 -> 5" in said
    assert "services.in_flight" not in said


def test_a_changed_constitution_cannot_go_on_with_old_records(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from solon.constitution import resolve

    run, mine = tmp_path / "run", tmp_path / "constitution.yaml"
    mine.write_bytes(resolve("core").read_bytes())
    fails(capsys, "sft", config, f"constitution={mine}", "--run", run)
    mine.write_bytes(resolve("harmlessness").read_bytes())
    assert "another version of the constitution" in fails(capsys, "run", run, "--resume")


def test_a_service_that_is_not_up_is_named_with_its_key(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = [f"services.{role}.address=127.0.0.1:1" for role in ("policy", "critic", "judge")]
    said = fails(
        capsys, "run", config, *addresses, "services.start_timeout=0.2", "--run", tmp_path / "run"
    )
    assert "services.critic.address: the critic service at '127.0.0.1:1' is not up" in said


def test_a_run_behind_a_url_is_refused_before_any_work_if_it_is_to_train(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "choose a path with --run" in fails(capsys, "run", config, "--run", "memory://x")


def test_an_unwritable_place_is_one_message(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "run", config, "--run", "/proc/nowhere")
    assert "/proc/nowhere: cannot be made or written" in said


def test_an_argument_that_is_no_override_is_refused(config: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(config), "--resum"])
    assert caught.value.code == 2


def test_the_state_of_another_version_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fails(capsys, "sft", config, "--run", run)
    (run / "state.json").write_text(json.dumps({"format": 99, "stages": {}}))
    assert "expected format 1, got 99" in fails(capsys, "run", run, "--resume")
