"""Prometheus reads a real run of the atlas: every metric that is watched is exported, and every query has data."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring_files import MONITORING, alert_rules, metrics_in, panel_queries
from prometheus_client.parser import text_string_to_metric_families

PROMETHEUS = shutil.which("prometheus")
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

LOOP = "loop={steps: 60, requests_per_step: 3, group_size: 3, validate_every: 2, validation_requests: 2}"


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str, seconds: float = 240) -> Any:
    """Return what a condition returns as soon as that is true. The process must live as long."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the process has ended with {process.wait(0.2)} before {what}")
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
    return found


def get(url: str, **query: str) -> str:
    """Return the body of an answer, empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            body: str = answer.read().decode()
            return body
    except (urllib.error.URLError, ConnectionError):
        return ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run in progress, and the folder with its address."""
    folder = tmp_path_factory.mktemp("monitored")
    settings = [
        "engine.kind=transformers",
        LOOP,
        "heldout.requests=0",
        f"logging.prometheus={{port: 0, targets: '{folder / 'targets'}'}}",
    ]
    command = [sys.executable, "-m", "genevolve_ray", "evolve", "atlas", "--in-process", "--run", str(folder / "run")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, *(word for setting in settings for word in ("--set", setting))], stdout=log, stderr=log
        )
    try:
        yield process, folder / "targets"
    finally:
        process.terminate()
        process.wait(60)
        assert list((folder / "targets").iterdir()) == [], "the address is removed at the end"


def test_every_metric_that_is_watched_is_exported(run: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, targets = run
    file = wait_for(lambda: next(targets.glob("*.json"), None), process, "the address")
    ((entry,),) = [json.loads(file.read_text())]
    url = f"http://{entry['targets'][0]}/metrics"
    wait_for(lambda: "genevolve_validation" in get(url), process, "a step with a validation")
    families = list(text_string_to_metric_families(get(url)))
    exported = {sample.name for family in families for sample in family.samples}
    queries = [query for _, query in panel_queries()] + [rule["expr"] for rule in alert_rules()]
    watched = set().union(*map(metrics_in, queries))
    assert len(watched) >= 40 and watched <= exported
    series = [(sample.name, sample.labels) for family in families for sample in family.samples]
    assert len(series) < 1000
    assert not any("request" in label for _, labels in series for label in labels)


@pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed")
def test_prometheus_has_data_for_every_panel_and_evaluates_every_alert(
    run: tuple[subprocess.Popen[bytes], Path], tmp_path: Path
) -> None:
    process, targets = run
    shutil.copy(MONITORING / "alerts.yaml", tmp_path)
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["file_sd_configs"] = [{"files": [f"{targets}/*.json"], "refresh_interval": "1s"}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with open(tmp_path / "log", "wb") as log:
        prometheus = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )

    def asked(query: str) -> list[Any]:
        """Return the series of an answer; an expression that Prometheus refuses fails the test."""
        answer = json.loads(get(f"http://{address}/api/v1/query", query=query) or '{"status": "no answer"}')
        assert answer["status"] == "success", (query, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def without_data() -> list[tuple[str, str]]:
        assert prometheus.poll() is None, (tmp_path / "log").read_text()
        return [(title, query) for title, query in panel_queries() if not asked(query)]

    try:
        wait_for(lambda: get(f"http://{address}/-/ready"), process, "Prometheus")
        wait_for(lambda: not without_data(), process, "data for every panel")
        for rule in alert_rules():
            asked(rule["expr"])

        def rules() -> list[dict[str, Any]]:
            groups = json.loads(get(f"http://{address}/api/v1/rules"))["data"]["groups"]
            return [rule for group in groups for rule in group["rules"]]

        wait_for(lambda: all(rule["health"] == "ok" for rule in rules()), process, "an evaluation of every alert")
        assert len(rules()) == len(alert_rules())
        assert asked('up{job="genevolve"} == 1')[0]["metric"]["run"] == "run"
    finally:
        prometheus.terminate()
        prometheus.wait(30)
