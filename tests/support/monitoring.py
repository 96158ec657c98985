"""The files that Prometheus and Grafana get, and the names in their expressions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FILES = Path(__file__).parents[2] / "ansible" / "roles" / "monitoring" / "files"
RULES, DASHBOARD = FILES / "jobworker.rules.yml", FILES / "jobworker.dashboard.json"

# What Grafana puts there.
_VARIABLES = {"$host": ".*", "$__rate_interval": "5m"}
_SERIES = re.compile(r"\b((?:[a-z_]+:)?jobworker_\w+(?::\w+)*|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_BY = re.compile(r"\bby\s*\(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def shown() -> list[str]:
    """The dashboard's expressions, as Grafana asks for them."""
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [_filled_in(expression) for expression in expressions]


def _filled_in(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def expressions() -> list[str]:
    return [*(rule["expr"] for rule in rules()), *shown()]


def series(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The names in an expression, each with the labels that are asked for of it."""
    grouped = {label.strip() for labels in _BY.findall(expression) for label in labels.split(",")}
    for name, matchers in _SERIES.findall(expression):
        yield name, set(_MATCHER.findall(matchers)) | grouped
