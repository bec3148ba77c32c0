"""The queries in deploy/monitoring, and the metrics that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))

_VARIABLES = {"$__rate_interval": "1m", "$run": ".*"}


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard without the headings of rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries, as Grafana sends them to Prometheus."""
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in _VARIABLES.items():
                query = query.replace(name, value)
            yield panel["title"], query


def alert_rules() -> list[dict[str, Any]]:
    """Return the alert rules of all groups."""
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def metrics_in(query: str) -> set[str]:
    """Return the names of our metrics in a query."""
    return set(re.findall(r"\bgenevolve_\w+", query))
