"""The dashboard and the alert rules are whole: units, descriptions, places, and rules that promtool accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring_files import DASHBOARD, MONITORING, alert_rules, panel_queries, panels

from genevolve_ray.evolution.alarms import AlarmName

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


def alarm_rules() -> dict[str, dict[str, Any]]:
    """Return the rules for alarms of a run by the alarm that they name."""
    named = {rule["expr"]: rule for rule in alert_rules() if "genevolve_alarm" in rule["expr"]}
    return {re.fullmatch(r'genevolve_alarm\{alarm="(\w+)"\} == 1', expr)[1]: rule for expr, rule in named.items()}  # type: ignore[index]


def test_every_alarm_of_a_run_has_one_rule_without_a_limit_of_its_own() -> None:
    assert list(alarm_rules()) == [name.value for name in AlarmName]
    assert sum("genevolve_alarm" in rule["expr"] for rule in alert_rules()) == len(AlarmName)


def fired(alert: str, minute: int, labels: dict[str, str]) -> dict[str, Any]:
    """Return what promtool is to find at a minute: one alert with these labels beside its own, and its words."""
    (rule,) = [rule for rule in alert_rules() if rule["alert"] == alert]
    words = {name: text.replace("{{ $labels.run }}", "demo") for name, text in rule["annotations"].items()}
    found = {"exp_labels": labels | rule["labels"], "exp_annotations": words}
    return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": [found]}


def silent(alert: str, minute: int) -> dict[str, Any]:
    return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_rules_fire_while_their_reason_lasts_and_no_others(tmp_path: Path) -> None:
    own = {"job": "genevolve", "instance": "here:9400", "run": "demo"}

    def series(name: str, labels: dict[str, str], values: str) -> dict[str, str]:
        pairs = ",".join(f'{key}="{value}"' for key, value in (own | labels).items())
        return {"series": f"{name}{{{pairs}}}", "values": values}

    names = {alarm: rule["alert"] for alarm, rule in alarm_rules().items()}
    cases = [
        (
            [series("genevolve_alarm", {"alarm": other}, "0 1 0" if other == alarm else "0 0 0") for other in names],
            [
                fired(names[alarm], 1, own | {"alarm": alarm}),
                silent(names[alarm], 2),
                *(silent(name, 1) for other, name in names.items() if other != alarm),
            ],
        )
        for alarm in names
    ]
    cases.append(
        (
            [series("up", {}, "1 0 0 0 0 0")],
            [silent("GenevolveRunGone", 2), fired("GenevolveRunGone", 4, own)],
        )
    )
    tests = [{"interval": "1m", "input_series": given, "alert_rule_test": expected} for given, expected in cases]
    file = tmp_path / "alerts_test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "alerts.yaml")], "tests": tests}))
    checked = subprocess.run([str(PROMTOOL), "test", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
