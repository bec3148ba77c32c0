"""A run over Ray's actors, seen by a collector of traces and by a reader of its metrics."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from collector import attributes, collecting

from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.evolution.telemetry.server import TARGETS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
STEPS, REQUESTS, SAMPLES = 3, 2, 2


def config_of(endpoint: str) -> RunConfig:
    environment = f"{{env_vars: {{PYTHONPATH: '{ROOT}'}}}}"
    parts = {"tools": "Tools", "renderer": "Renderer", "judge": "Judge"}
    return load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.01, tool_calls: 1}",
            f"loop={{steps: {STEPS}, requests_per_step: {REQUESTS}, group_size: {SAMPLES}, validate_every: 0, parity_limit: 1.0}}",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            *(f"{role}={{type: 'benchmarks.null_parts:{name}'}}" for role, name in parts.items()),
            *(f"{role}.runtime_env={environment}" for role in parts),
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "heldout.requests=0",
            "cluster.object_store_mib=80",
            "cluster.start_timeout=400",
            "cluster.metrics=true",
            f"logging={{prometheus: {{port: 0}}, traces: {{endpoint: '{endpoint}'}}}}",
        ],
    )


class Reader:
    """Reads the metrics of a run again and again, and keeps the last answer."""

    def __init__(self, run: Path) -> None:
        self.last, self._run, self._over = "", run, threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(0.1):
            try:
                (target,) = json.loads((self._run / TARGETS).read_text())[0]["targets"]
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                    self.last = answer.read().decode()
            except OSError:
                continue


def test_a_trajectory_over_actors_is_one_trace_and_the_driver_serves_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with collecting() as received, Reader(tmp_path / "run") as reader:
        evolve_run(config_of(received.url), tmp_path / "run", in_process=False)
    trees = defaultdict(list)
    for span in received.spans:
        trees[span.trace_id].append(span)
    assert len(trees) == STEPS * REQUESTS * SAMPLES
    keys = set()
    for spans in trees.values():
        (root,) = [span for span in spans if not span.parent_span_id]
        parts = sorted((span for span in spans if span.parent_span_id), key=lambda span: span.start_time_unix_nano)
        assert [span.name for span in parts] == ["chat", "execute_tool image_search", "chat", "render", "judge"]
        assert {span.parent_span_id for span in parts} == {root.span_id}
        assert root.start_time_unix_nano <= parts[0].start_time_unix_nano
        assert max(span.end_time_unix_nano for span in parts) <= root.end_time_unix_nano
        keys.add(attributes(root)["gen_ai.conversation.id"])
    assert len(keys) == len(trees)
    assert "genevolve_render_seconds_count" in reader.last
    assert 'genevolve_trajectories_total{outcome="scored",split="train"}' in reader.last
    said = capsys.readouterr().out
    assert "Ray's metrics for Prometheus at " in said
    assert f"traces: {len(received.spans)} spans exported, 0 spans failed, 0 spans dropped" in said
