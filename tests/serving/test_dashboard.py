"""The Grafana dashboard asks for metrics that a server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from solon.serving.metrics import Metrics
from solon.serving.testing import FunctionEngine

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "solon-services.json"


@pytest.fixture
def names() -> set[str]:
    """What a scrape may hold."""
    metrics = Metrics(FunctionEngine())
    calls = metrics.of("m")
    calls.began()
    calls.ended("OK", "REASON", 0.1)
    calls.replayed()
    calls.spent(0.1, prompt=1, cached=0, completion=0, cost_usd=0.1)
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def panels() -> list[dict[str, Any]]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return list(read["panels"])


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_shows_metrics_that_there_are_and_says_what_they_mean(
    panel: dict[str, Any], names: set[str]
) -> None:
    asked = {m for t in panel["targets"] for m in re.findall(r"solon_\w+", t["expr"])}
    assert asked
    assert asked <= names
    assert panel["description"]


def test_every_metric_is_shown_somewhere(names: set[str]) -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    quiet = {name for name in names if name.endswith("_created")}
    whole = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names - quiet}
    assert {name for name in whole if name not in shown} == set()
