"""The dashboard and the alert rules are whole: units, descriptions, places, and rules that promtool accepts."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from monitoring_files import DASHBOARD, MONITORING, alert_rules, panel_queries, panels

PROMTOOL = shutil.which("promtool")


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles)) > 20


def test_panels_have_places_of_their_own_and_ids_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not own & cells, panel["title"]
        cells |= own
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_every_query_of_a_panel_follows_the_chosen_runs() -> None:
    for title, query in panel_queries():
        selected = len(re.findall(r'run=~"\.\*"', query))
        assert selected == len(re.findall(r"\bgenevolve_\w+\{", query)) > 0, title


def test_every_alert_says_what_happened_and_how_bad_it_is() -> None:
    rules = alert_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert "{{ $labels.run }}" in rule["annotations"]["summary"], rule["alert"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize(("kind", "file"), [("rules", "alerts.yaml"), ("config", "prometheus.yml")])
def test_promtool_accepts_the_file(kind: str, file: str) -> None:
    checked = subprocess.run([str(PROMTOOL), "check", kind, MONITORING / file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
