"""Runs of the whole loop, small, that are killed again and again: nothing may come of it.

A few kills each; ``faults.py`` beside this makes as many as one likes, on any configuration.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONFIG = "sandbox-tiny"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    """The script beside this file: it is run by hand too."""
    path = Path(__file__).with_name("faults.py")
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_run_whose_coordinator_is_killed_at_random_moments_equals_an_unharmed_one(
    faults: ModuleType, tour: Any, tmp_path: Path
) -> None:
    trial = faults.Trial(config=CONFIG, folder=tmp_path / "killed")
    killed = trial.kill_coordinator(0.3 * tour.seconds, random.Random(5))
    assert len(killed) >= 2
    assert faults.differences(trial.folder, tour.run) == [], killed


def test_a_run_whose_services_are_killed_finishes_by_itself_and_equals_an_unharmed_one(
    faults: ModuleType, tour: Any, tmp_path: Path
) -> None:
    trial = faults.Trial(config=CONFIG, folder=tmp_path / "killed")
    killed = trial.kill_services(tour.seconds / 12, random.Random(6))
    assert len(killed) >= 2
    assert faults.differences(trial.folder, tour.run) == [], killed
