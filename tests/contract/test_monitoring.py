"""Rules and dashboard ask for what there is, and alerts come when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jobworker.gateway.metrics_table import METRICS, Kind
from support import monitoring

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool (Debian's package prometheus) is not installed"
)

TESTS = Path(__file__).parent / "jobworker.rules.test.yml"
# Given to each target by who scrapes.
OF_TARGETS = {"job", "instance", "host"}
RECORDED = {rule["record"] for rule in monitoring.rules() if "record" in rule}


def labels_of(name: str) -> set[str] | None:
    """The labels that a series of this name has; None if there is none."""
    if name == "up":
        return OF_TARGETS
    if name in RECORDED:
        # Their first part says by which labels they are.
        return {*name.split(":", maxsplit=1)[0].split("_")} | OF_TARGETS
    for ending in ("_bucket", "_count", "_sum"):
        metric = METRICS.get(name.removesuffix(ending))
        if name.endswith(ending) and metric and metric.kind is Kind.HISTOGRAM:
            return {*metric.labels, "le"} | OF_TARGETS
    return {*METRICS[name].labels} | OF_TARGETS if name in METRICS else None


@pytest.mark.parametrize("expression", monitoring.expressions())
def test_metrics_and_labels_exist(expression: str) -> None:
    found = list(monitoring.series(expression))
    assert found
    for name, labels in found:
        known = labels_of(name)
        assert known is not None, f"there is no metric {name}"
        assert labels <= known, f"{name} has no label {', '.join(labels - known)}"


def test_a_name_that_does_not_exist_would_be_found() -> None:
    asked = 'sum by (host, colour) (rate(jobworker_jobs_stated_total{kind=~"a|b", x!="y"}[5m]))'
    assert list(monitoring.series(asked)) == [("jobworker_jobs_stated_total", {"host", "colour", "kind", "x"})]
    assert labels_of("jobworker_jobs_stated_total") is None
    assert labels_of("jobworker_jobs_bucket") is None


def test_each_metric_is_shown_or_watched() -> None:
    asked = {name for expression in monitoring.expressions() for name, _ in monitoring.series(expression)}
    told = {re.sub("_(bucket|count|sum)$", "", name) for name in asked}
    assert METRICS.keys() - told == set()


def test_annotations_have_the_labels_they_name() -> None:
    for rule in monitoring.rules():
        for label in re.findall(r"\$labels\.(\w+)", str(rule.get("annotations"))):
            assert all(label in (labels_of(name) or ()) for name, _ in monitoring.series(rule["expr"])), rule


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(monitoring.DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} is upon another one"
        taken |= cells
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) <= variables | {"__rate_interval"}


@needs_promtool
def test_alerts_come_when_they_should() -> None:
    run = subprocess.run(["promtool", "test", "rules", TESTS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_is_tried_out() -> None:
    tried = TESTS.read_text()
    assert [rule["alert"] for rule in monitoring.rules() if "alert" in rule and rule["alert"] not in tried] == []


@needs_promtool
def test_promtool_finds_nothing() -> None:
    run = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", monitoring.RULES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
