"""What is shipped for Prometheus and Grafana names metrics that there are, and says what to do."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from flask import Flask
from redis import Redis

from afterhours_service.cleanup.jobs import cleanup
from afterhours_service.jobs.jobs import MAINTENANCE_QUEUE
from afterhours_service.jobs.worker import Worker
from afterhours_service.sessions.jobs import reconcile
from tests.conftest import ROOT
from tests.factories import SECRET

PROMETHEUS, DASHBOARD = ROOT / "deploy/prometheus", ROOT / "deploy/grafana/dashboard.json"
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]


@pytest.fixture
def metrics(make_app: Callable[..., Flask], redis: Redis) -> set[str]:
    """Return the names of all metrics, as Prometheus keeps them."""
    app = make_app(metrics_token=SECRET)
    with app.app_context():
        reconcile()
        cleanup()
        Worker([MAINTENANCE_QUEUE], connection=redis).work(burst=True)
    text = app.test_client().get("/metrics", headers={"Authorization": f"Bearer {SECRET}"}).text
    types = re.findall(r"^# TYPE (after_hours_\w+) (\w+)$", text, re.MULTILINE)
    return {name for name, _ in types} | {f"{name}_bucket" for name, kind in types if kind == "histogram"}


def named(expression: str) -> set[str]:
    return set(re.findall(r"\bafter_hours_\w+", expression))


def test_every_metric_named_exists_and_the_dashboard_shows_them_all(metrics: set[str]) -> None:
    shown = named(" ".join(target["expr"] for panel in PANELS for target in panel["targets"]))
    assert named(" ".join(rule["expr"] for rule in RULES)) <= metrics
    assert shown <= metrics
    assert {name for name in metrics if f"{name}_bucket" not in metrics} == shown


def test_the_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_every_alert_says_what_to_do_and_is_in_the_docs() -> None:
    docs = (ROOT / "docs/operations.md").read_text()
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert f"`{rule['alert']}`" in docs
    assert set(re.findall(r"`(AfterHours[A-Z]\w+)`", docs)) == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_takes_them(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian has it in the package prometheus)")
    done = subprocess.run([promtool, *words], check=False, cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
