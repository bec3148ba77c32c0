"""Live metrics: names, what counts when, bounds of labels, and the endpoint that Prometheus reads."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from loop_fakes import make_trajectory
from prometheus_client.parser import text_string_to_metric_families

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.telemetry import server
from genevolve_ray.evolution.telemetry.config import PrometheusConfig
from genevolve_ray.evolution.telemetry.meters import MOST_NAMES, RunMeters
from genevolve_ray.evolution.telemetry.server import TARGETS, serving
from genevolve_ray.evolution.telemetry.step_gauges import STEP_GAUGES
from genevolve_ray.evolution.telemetry.watching import UNHEARD, Watched, WatchedRun, watched
from genevolve_ray.evolution.trackers.port import LoggingConfig
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory, Turn, TurnKind
from genevolve_ray.records.usage import Usage

KEY = SampleKey(step=1, request_id="r", sample=0)
DEMO = WatchedRun("demo", "1a", steps=10)
NESTED = WatchedRun("a/b", "2b", steps=1)


def value(meters: RunMeters, name: str, **labels: str) -> float | None:
    return meters.registry.get_sample_value(name, labels)


def trajectory(tool: str = "search", service: str = "serper", engine: str = "fake") -> Trajectory:
    """A scored attempt with one tool call that met an outage, and the use of one service."""
    made = make_trajectory(KEY)
    made.provenance = made.provenance.model_copy(update={"engine": engine})
    call = Turn(kind=TurnKind.TOOL_CALL, text="", tool=tool, error="down", seconds_policy=0.2, seconds_tool=3.0)
    made.turns = [call, Turn(kind=TurnKind.ANSWER, text="", seconds_policy=0.2)]
    made.timings = {"render": 7.0, "judge": 0.02, "began_render": 1.0}
    made.usage = {service: Usage(calls=3, failed_calls=1, prompt_tokens=10, money=0.25)}
    return made


def test_an_attempt_counts_with_everything_that_it_took() -> None:
    meters = RunMeters(DEMO)
    meters.count(trajectory())
    assert value(meters, "genevolve_trajectories_total", split="train", outcome="scored") == 1
    assert value(meters, "genevolve_reward_sum", split="train") == 0.5
    assert value(meters, "genevolve_policy_tokens_total") == 2
    assert value(meters, "genevolve_policy_turn_seconds_count") == 2
    assert value(meters, "genevolve_policy_turn_seconds_sum") == pytest.approx(0.4)
    assert value(meters, "genevolve_tool_call_seconds_sum", tool="search") == 3
    assert value(meters, "genevolve_tool_outages_total", tool="search") == 1
    assert value(meters, "genevolve_render_seconds_sum") == 7
    assert value(meters, "genevolve_judge_seconds_count") == 1
    assert value(meters, "genevolve_group_judge_seconds_count") == 0
    assert value(meters, "genevolve_service_calls_total", service="serper") == 3
    assert value(meters, "genevolve_service_failures_total", service="serper") == 1
    assert value(meters, "genevolve_service_cost_total", service="serper") == 0.25


def test_the_turns_of_a_worker_outside_have_no_latency_here() -> None:
    meters = RunMeters(DEMO)
    meters.count(trajectory(engine="gateway:ann"))
    assert value(meters, "genevolve_policy_turn_seconds_count") == 0
    assert value(meters, "genevolve_turns_total", kind="answer") == 1


def test_names_from_outside_are_bounded() -> None:
    meters = RunMeters(DEMO)
    for number in range(MOST_NAMES + 5):
        meters.count(trajectory(tool=f"tool {number}", service=f"service {number}"))
    assert value(meters, "genevolve_tool_outages_total", tool="other") == 5
    assert value(meters, "genevolve_service_calls_total", service="other") == 15


def test_runs_of_one_process_share_nothing() -> None:
    first, second = RunMeters(WatchedRun("a")), RunMeters(WatchedRun("b", step=4))
    first.count(trajectory())
    assert value(second, "genevolve_policy_tokens_total") == 0
    assert (value(first, "genevolve_step"), value(second, "genevolve_step")) == (0, 4)


def test_the_numbers_of_a_committed_step_are_gauges_in_base_units() -> None:
    meters = RunMeters(DEMO)
    metrics = {
        "seconds_sync": 1.5,
        "valid_fraction": 0.75,
        "alarm_entropy": 1.0,
        "component_judge.kscore": 0.5,
        "ved_gap": 2.0,
    }
    meters.commit(3, {**metrics, "samples_running": 4.0, "parity": float("nan")}, {"reward_mean": 0.6})
    assert value(meters, "genevolve_step") == 3
    assert value(meters, "genevolve_step_weight_sync_seconds") == 1.5
    assert value(meters, "genevolve_step_valid_ratio") == 0.75
    assert value(meters, "genevolve_alarm", alarm="entropy") == 1
    assert value(meters, "genevolve_step_component_mean", component="judge.kscore") == 0.5
    assert value(meters, "genevolve_step_value", metric="ved_gap") == 2
    assert value(meters, "genevolve_samples", state="running") == 4
    assert value(meters, "genevolve_step_parity_nats") is None
    assert value(meters, "genevolve_validation", metric="reward_mean") == 0.6
    meters.commit(4, {}, None)
    assert value(meters, "genevolve_validation", metric="reward_mean") == 0.6
    assert value(meters, "genevolve_step_weight_sync_seconds") is None


def test_the_newest_counts_of_samples_win() -> None:
    meters = RunMeters(DEMO)
    meters.commit(3, {"samples_running": 4.0}, None)
    meters.queue({"running": 2})
    assert value(meters, "genevolve_samples", state="running") == 2
    meters.commit(4, {"samples_running": 3.0}, None)
    assert value(meters, "genevolve_samples", state="running") == 3


def test_a_resumed_run_shows_its_last_step_from_the_start(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as store:
        group = Group("r", 1, [make_trajectory(KEY)])
        store.put_group(group, 0)
        metrics = {"valid_fraction": 0.5, "alarm_entropy": 1.0}
        store.commit_step(1, [group], metrics, "hash", {"reward_mean": 0.25})
        run = WatchedRun.of(store, "demo", 10)
    meters = RunMeters(run)
    assert (run.id, run.step) == (store.info.run_id, 1)
    assert value(meters, "genevolve_step_valid_ratio") == 0.5
    assert value(meters, "genevolve_alarm", alarm="entropy") == 1
    assert value(meters, "genevolve_validation", metric="reward_mean") == 0.25


def test_one_phase_is_current() -> None:
    meters = RunMeters(DEMO)
    for name, current in (("learning", "learning"), ("a phase of later", "other")):
        meters.phase(name)
        on = [
            s.labels["phase"]
            for m in meters.registry.collect()
            for s in m.samples
            if s.name == "genevolve_phase" and s.value
        ]
        assert on == [current]


def test_names_say_their_unit() -> None:
    assert len({gauge.name for gauge in STEP_GAUGES.values()}) == len(STEP_GAUGES)
    for key, gauge in STEP_GAUGES.items():
        assert ("seconds" in key) <= ("seconds" in gauge.name)
        assert (key.endswith(("fraction", "rate"))) <= gauge.name.endswith("_ratio")


class Listener:
    """Stands for meters and traces: keeps what it is to count."""

    def __init__(self) -> None:
        self.counted: list[Trajectory] = []
        self.samples: object = None

    def count(self, trajectory: Trajectory) -> None:
        self.counted.append(trajectory)

    export = count

    def queue(self, samples: object) -> None:
        self.samples = samples


class Broken:
    """Stands for meters and traces that raise."""

    def count(self, trajectory: Trajectory) -> None:
        raise KeyError("a label of sk-1234567890abcdef")

    export = count

    def phase(self, name: str) -> None:
        raise ValueError(name)

    def commit(self, *given: object) -> None:
        raise ValueError


class Noted(NullMonitor):
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_meters_and_traces_that_fail_are_one_note_and_the_run_continues() -> None:
    monitor = Noted()
    heard = Watched(monitor, Broken(), Broken())  # type: ignore[arg-type]
    heard.trajectory(make_trajectory(KEY))
    heard.phase("learning", 0, 1)
    heard.step(1, {})
    heard.samples(lambda: {})
    heard.close()
    first, last = monitor.notes
    assert first.startswith("metrics of the run failed: KeyError: ") and "sk-1234567890abcdef" not in first
    assert last == "metrics and traces: 5 calls failed"


def test_an_attempt_that_waits_for_its_group_counts_once_it_is_judged() -> None:
    meters, traces = Listener(), Listener()
    heard = Watched(NullMonitor(), meters, traces)  # type: ignore[arg-type]
    waiting, failed = make_trajectory(KEY, Outcome.PENDING), make_trajectory(KEY, Outcome.POLICY_FAILURE)
    heard.trajectory(waiting)
    heard.trajectory(failed)
    assert meters.counted == traces.counted == [failed]
    waiting.outcome, waiting.timings["judge_group"] = Outcome.SCORED, 1.0
    heard.judged(Group("r", 1, [waiting, failed]))
    heard.samples(lambda: {"running": 3})
    assert meters.counted == traces.counted == [failed, waiting]
    assert meters.samples == {"running": 3}


def test_a_free_port_is_said_and_written_until_the_end(tmp_path: Path) -> None:
    meters, said = RunMeters(DEMO), []
    with serving(meters.registry, PrometheusConfig(port=0), Folder(str(tmp_path)), DEMO, said.append) as url:
        (target,) = json.loads((tmp_path / TARGETS).read_text())
        assert target["labels"] == {"job": "genevolve", "run": "demo"}
        assert url == f"http://{target['targets'][0]}/metrics" and url.startswith("http://127.0.0.1:")
        assert said == [f"metrics for Prometheus at {url}"]
        with urllib.request.urlopen(url) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    assert all(family.name.startswith("genevolve_") and family.documentation for family in families)
    assert not (tmp_path / TARGETS).exists()


def test_one_folder_may_hold_the_addresses_of_all_runs(tmp_path: Path) -> None:
    config = PrometheusConfig(port=0, targets=str(tmp_path / "all"))
    with serving(RunMeters(NESTED).registry, config, Folder(str(tmp_path / "run")), NESTED, print) as url:
        (found,) = (tmp_path / "all").glob("a_b-*.json")
        assert json.loads(found.read_text())[0]["targets"][0] in url
        assert found.read_text() == (tmp_path / "run" / TARGETS).read_text()
    assert list((tmp_path / "all").iterdir()) == []


def test_a_resumed_run_replaces_the_address_that_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / "all" / "a_b-2b.json"
    left.parent.mkdir()
    left.write_text("[]")
    config = PrometheusConfig(port=0, targets=str(tmp_path / "all"))
    with serving(RunMeters(NESTED).registry, config, Folder(str(tmp_path / "run")), NESTED, print):
        assert list(left.parent.iterdir()) == [left] and left.read_text() != "[]"
    assert not left.exists()


def test_a_folder_of_addresses_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "all").write_text("a file")
    config, said = PrometheusConfig(port=0, targets=str(tmp_path / "all")), []
    with serving(RunMeters(DEMO).registry, config, Folder(str(tmp_path / "run")), DEMO, said.append):
        assert (tmp_path / "run" / TARGETS).is_file()
    assert "cannot write" in said[0] and "The run continues" in said[0]
    assert said[1].startswith("metrics for Prometheus at ")


def test_an_address_that_cannot_be_removed_is_a_note_and_the_others_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = PrometheusConfig(port=0, targets=str(tmp_path / "all")), []
    folder = Folder(str(tmp_path / "run"))

    def refuse(name: str) -> None:
        raise StoreError(f"cannot delete {name}")

    with serving(RunMeters(DEMO).registry, config, folder, DEMO, said.append):
        monkeypatch.setattr(folder, "delete", refuse)
    assert f"cannot delete {TARGETS}" in said[-1]
    assert list((tmp_path / "all").iterdir()) == []


def test_a_silent_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 0.05)
    with serving(RunMeters(DEMO).registry, PrometheusConfig(port=0), Folder(str(tmp_path)), DEMO, print) as url:
        address = urlsplit(url)
        with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30) as silent:
            assert silent.recv(1) == b""


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserFault, match=rf"127\.0\.0\.1:{port} cannot be listened on: .*in use"),
            serving(RunMeters(DEMO).registry, PrometheusConfig(port=port), Folder(str(tmp_path)), DEMO, print),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_without_telemetry_the_loop_talks_to_the_monitor_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monitor = NullMonitor()
    with watched(monitor, LoggingConfig(), Folder(str(tmp_path)), pytest.fail) as (given, listener):
        assert given is monitor and listener is UNHEARD


def test_the_spans_of_traces_are_metrics_too(tmp_path: Path) -> None:
    counts = SimpleNamespace(by_result=lambda: {"exported": 5, "dropped": 2})
    meters = RunMeters(DEMO, counts.by_result)
    assert value(meters, "genevolve_trace_spans_total", result="dropped") == 2
