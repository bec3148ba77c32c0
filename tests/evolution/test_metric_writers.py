"""Metrics go to the writers that were asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from genevolve_ray.evolution.metric_writers import MetricsConfig, MetricWriterError, open_writers, scalars


def test_no_writer_by_default() -> None:
    writers = open_writers(MetricsConfig(), "demo", "demo-1", {})
    writers.write(1, {"loss": 1.0})
    writers.close()


def test_scalars_are_the_finite_numbers() -> None:
    metrics = {"loss": 1, "kl": 0.5, "nan": float("nan"), "none": None, "text": "x", "flag": True}
    assert scalars(metrics) == {"loss": 1.0, "kl": 0.5, "flag": 1.0}


def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    writers = open_writers(MetricsConfig(tensorboard=str(tmp_path)), "demo", "demo-1", {})
    for step in (1, 2):
        writers.write(step, {"reward_mean": step / 4, "note": "text"})
    writers.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["tensors"] == ["reward_mean"]
    points = [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors("reward_mean")]
    assert points == [(1, 0.25), (2, 0.5)]


def test_wandb_resumes_under_the_id_of_the_run_and_shows_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int) -> None:
            calls.append(("log", (step, metrics)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**options: object) -> Run:
        calls.append(
            ("init", (options["id"], options["name"], options["resume"], options["project"], options["config"]))
        )
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    writers = open_writers(MetricsConfig(wandb_project="p", wandb_mode="offline"), "demo", "demo-1a", {"seed": 1})
    writers.write(3, {"loss": 1.0, "note": "x"})
    writers.close()
    assert calls == [
        ("init", ("demo-1a", "demo", "allow", "p", {"seed": 1})),
        ("log", (3, {"loss": 1.0})),
        ("finish", None),
    ]


@pytest.mark.parametrize(
    ("module", "config"),
    [("wandb", MetricsConfig(wandb_project="p")), ("tensorboard.summary", MetricsConfig(tensorboard="folder"))],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, config: MetricsConfig) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MetricWriterError, match=f"{module.split('.')[0]} is not installed: pip install"):
        open_writers(config, "demo", "demo-1", {})


def test_store_and_metrics_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, tensorboard.summary, genevolve_ray.evolution.store.run, genevolve_ray.evolution.metric_writers;"
        "sys.exit(bool({'torch', 'ray', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
