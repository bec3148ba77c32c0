"""W&B, MLflow and trackio behind the port: by fakes of their modules, and by themselves where they are installed."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_tensorboard import png
from tracker_fakes import RUN, Fed, Steps

from genevolve_ray.evolution.trackers import wandb
from genevolve_ray.evolution.trackers.mlflow import MlflowTracker, picture_page
from genevolve_ray.evolution.trackers.port import COLUMNS, PictureRow, Tracker
from genevolve_ray.evolution.trackers.trackio import TrackioTracker
from genevolve_ray.evolution.trackers.wandb import WandbTracker

ROW = PictureRow("<script>", png("red"), 0.75, None, 0.25, png("blue"), "because")
KEY = "f" * 40


class Pictured(Steps):
    def pictures(self, step: int) -> list[PictureRow]:
        return [ROW] if step == 2 else []


class Calls(list[tuple[str, Any]]):
    """Remembers calls: `calls.of("log")` is a function that adds ("log", its arguments)."""

    def of(self, name: str, result: Any = None) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.append((name, (*given, named) if named else given))
            return result

        return call

    def named(self, name: str) -> list[Any]:
        return [given for found, given in self if found == name]


# --- fakes -----------------------------------------------------------------------------------------------------------


def fake_wandb(calls: Calls, *, resumed: bool = False, starting_step: int = 0) -> SimpleNamespace:
    run = SimpleNamespace(
        id="demo-1a",
        url="https://wandb/demo-1a",
        resumed=resumed,
        starting_step=starting_step,
        summary=SimpleNamespace(update=calls.of("summary")),
        **{name: calls.of(name) for name in ("log", "alert", "finish")},
    )
    return SimpleNamespace(
        init=calls.of("init", run),
        Settings=lambda **settings: settings,
        Table=lambda columns, data: {"columns": columns, "data": data},
        Image=lambda image: ("image", image.size),
    )


def test_wandb_gets_id_configuration_and_nothing_that_may_hold_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    WandbTracker("p", "online", 15.0).begin(RUN)
    [(settings,)] = calls.named("init")
    assert {key: settings[key] for key in ("project", "id", "name", "resume", "mode", "config")} == {
        "project": "p",
        "id": "demo-1a",
        "name": "demo",
        "resume": "allow",
        "mode": "online",
        "config": RUN.config,
    }
    quiet = settings["settings"]
    assert (quiet["console"], quiet["x_disable_meta"], quiet["disable_git"], quiet["disable_code"]) == (
        "off",
        True,
        True,
        True,
    )
    assert (quiet["init_timeout"], quiet["finish_timeout"]) == (15.0, 15.0)


@pytest.mark.parametrize(("mode", "starting", "last"), [("online", 7, 6), ("online", 0, 0), ("offline", 7, None)])
def test_wandb_tells_its_last_step_where_it_knows(
    monkeypatch: pytest.MonkeyPatch, mode: str, starting: int, last: int | None
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(Calls(), resumed=True, starting_step=starting))
    assert WandbTracker("p", mode, 1.0).begin(RUN).last_step == last


class Service:
    """Stands for a process of W&B."""

    def __init__(self, label: str, killed: list[str]) -> None:
        self.kill = lambda: killed.append(label)

    def name(self) -> str:
        return "wandb-core"


def test_wandb_that_is_left_behind_ends_no_process_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    children, own = [Service("other", killed)], Service("own", killed)
    monkeypatch.setattr(wandb.psutil.Process, "children", lambda process: list(children))
    module = fake_wandb(Calls())
    begun = module.init

    def init(**settings: Any) -> Any:
        children.append(own)
        return begun(**settings)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = WandbTracker("p", "online", 1.0)
    tracker.abandon()
    assert killed == []
    tracker.begin(RUN)
    tracker.abandon()
    assert killed == ["own"]


def test_wandb_gets_steps_tables_alerts_and_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    fed(tmp_path, WandbTracker("p", "online", 1.0)).play(0, [1, 2], {"steps": 2, "parts": {"facts": 0.5}})
    logged = calls.named("log")
    assert logged[0] == ({"reward_mean": 0.1, "committed_step": 1.0}, {"step": 1})
    table, where = logged[2]
    assert where == {"step": 2}
    assert table["pictures"]["columns"] == list(COLUMNS)
    assert table["pictures"]["data"] == [
        ["<script>", ("image", (8, 4)), 0.75, None, 0.25, ("image", (8, 4)), "because"]
    ]
    assert calls.named("alert") == [({"title": "entropy", "text": "step 2: it falls"},)]
    assert calls.named("summary") == [({"summary/steps": 2.0, "summary/parts.facts": 0.5},)]
    assert calls.named("finish") == [({"exit_code": 0},)]


class FakeMlflow:
    """A server with one experiment; parameters of a run never change, as in MLflow."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}

    def client(self, tracking_uri: str | None) -> FakeMlflow:
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7")

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.rpartition("= ")[2].strip("'")
        found = [name for name, run in self.runs.items() if run["tags"]["genevolve.run_id"] == wanted]
        return [SimpleNamespace(info=SimpleNamespace(run_id=name)) for name in found]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        name = f"run-{len(self.runs)}"
        self.runs[name] = {"tags": tags, "points": [], "params": {}, "files": {}, "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def get_run(self, name: str) -> Any:
        latest = {key: value for key, value, _ in self.runs[name]["points"]}
        return SimpleNamespace(data=SimpleNamespace(metrics=latest))

    def log_batch(self, name: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[name]["points"] += [(m.key, m.value, m.step) for m in metrics]
        assert len(params) <= 100
        self.runs[name]["params"] |= {p.key: p.value for p in params}

    def log_text(self, name: str, text: str, file: str) -> None:
        self.runs[name]["files"][file] = text

    def log_dict(self, name: str, tree: Any, file: str) -> None:
        self.runs[name]["files"][file] = json.dumps(tree)

    def set_tag(self, name: str, key: str, value: str) -> None:
        self.runs[name]["tags"][key] = value

    def update_run(self, name: str, status: str) -> None:
        self.runs[name]["status"] = status

    set_terminated = update_run


def entity(*names: str) -> Callable[..., Any]:
    return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    server = FakeMlflow()
    entities = SimpleNamespace(Metric=entity("key", "value", "timestamp", "step"), Param=entity("key", "value"))
    monkeypatch.setitem(
        sys.modules, "mlflow", SimpleNamespace(MlflowClient=server.client, get_tracking_uri=lambda: "file:here")
    )
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return server


def test_mlflow_finds_its_run_again_by_the_id_and_takes_no_step_twice(server: FakeMlflow, tmp_path: Path) -> None:
    fed(tmp_path / "one", MlflowTracker("e", "http://server")).play(0, [1, 2])
    [run] = server.runs.values()
    assert run["status"] == "KILLED"
    fed(tmp_path / "two", MlflowTracker("e", "http://server")).play(1, [2, 3], {"steps": 3, "gain": 0.25})
    [run] = server.runs.values()
    assert [(value, step) for key, value, step in run["points"] if key == "committed_step"] == [(1, 1), (2, 2), (3, 3)]
    assert run["points"][-1] == ("summary.gain", 0.25, 3)
    assert run["params"] == {"seed": "1", "loop.steps": "4"}
    assert run["tags"]["alert.entropy"] == "step 2: it falls"
    assert sorted(run["files"]) == [
        "alerts/step_000002_entropy.txt",
        "config.yaml",
        "pictures/step_000002.html",
        "summary.json",
    ]
    assert run["status"] == "FINISHED"


def test_two_runs_of_one_name_are_two_runs_of_mlflow(server: FakeMlflow) -> None:
    for own in ("demo-1a", "demo-2b"):
        MlflowTracker("e", "").begin(replace(RUN, id=own))
    assert [run["tags"]["genevolve.run_id"] for run in server.runs.values()] == ["demo-1a", "demo-2b"]


def test_a_picture_page_holds_its_pictures_and_no_markup_of_others() -> None:
    page = picture_page(2, [ROW])
    assert "<script" not in page and "&lt;script&gt;" in page
    assert f"data:image/png;base64,{base64.b64encode(png('red')).decode()}" in page
    assert page.count("<img") == 2


def test_trackio_gets_steps_tables_alerts_and_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = Calls()
    run = SimpleNamespace(**{name: calls.of(name) for name in ("log", "alert", "finish")})
    module = SimpleNamespace(
        init=calls.of("init", run),
        Table=lambda columns, data: {"columns": columns, "data": data},
        Image=lambda image: ("image", image.size),
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    fed(tmp_path, TrackioTracker("p")).play(0, [1, 2], {"steps": 2, "gain": 0.5})
    [(settings,)] = calls.named("init")
    assert (settings["project"], settings["name"], settings["resume"]) == ("p", "demo-1a", "allow")
    logged = calls.named("log")
    assert logged[1] == ({"reward_mean": 0.2, "committed_step": 2.0}, {"step": 2})
    assert logged[2][0]["pictures"]["data"][0][:2] == [r"\<script\>", ("image", (8, 4))]
    assert logged[3] == ({"summary/steps": 2.0, "summary/gain": 0.5}, {"step": 2})
    assert calls.named("alert") == [({"title": "entropy", "text": "it falls", "step": 2},)]


# --- the packages themselves, without a network ------------------------------------------------------------------------


def fed(folder: Path, tracker: Tracker) -> Fed:
    return Fed(folder, tracker, Pictured())  # type: ignore[arg-type]


def play_twice(folder: Path, make: Callable[[], Tracker]) -> None:
    """Two starts of one run; the second commits step 2 again."""
    for before, steps, summary in ((0, [1, 2], None), (1, [2, 3], {"steps": 3, "gain": 0.25})):
        one = fed(folder, make())
        one.thread.begin(before)
        for step in steps:
            one.thread.committed(step)
        one.end(summary, 120.0)
        assert one.thread.failures == 0, one.notes


@pytest.mark.slow
def test_the_real_wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    play_twice(tmp_path, lambda: WandbTracker("p", "offline", 15.0))
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".wandb"]) == 2
    assert not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.slow
def test_the_real_mlflow_on_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = f"file:{tmp_path / 'mlruns'}"
    play_twice(tmp_path, lambda: MlflowTracker("e", store))
    client = mlflow.MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    points = client.get_metric_history(run.info.run_id, "reward_mean")
    assert [(point.step, point.value) for point in points] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert (run.info.status, run.data.params["seed"], run.data.metrics["summary.gain"]) == ("FINISHED", "1", 0.25)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "alerts",
        "config.yaml",
        "pictures",
        "summary.json",
    }


@pytest.mark.slow
def test_the_real_trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    project = tmp_path.name.replace("_", "-")
    play_twice(tmp_path, lambda: TrackioTracker(project))
    [run] = trackio.Api().runs(project)
    assert (run.name, run.config["seed"]) == ("demo-1a", 1)
    assert [alert["title"] for alert in trackio.Api().alerts(project)] == ["entropy"]
