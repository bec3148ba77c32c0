"""Metrics of workers and the dashboard, of a real Ray."""

from __future__ import annotations

import time
import urllib.request

import pytest
import ray

from genevolve_ray.cluster.config import ClusterConfig
from genevolve_ray.cluster.meters import metrics_addresses
from genevolve_ray.cluster.session import ray_session

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def body(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_the_dashboard_answers_and_each_node_serves_the_metrics_of_its_workers() -> None:
    with ray_session(ClusterConfig(dashboard=True, object_store_mib=80), "seen") as dashboard:
        assert dashboard.startswith("http://127.0.0.1:") and "Ray Dashboard" in body(dashboard)

        class Worker:
            """Reports as a rollout worker does."""

            def __init__(self) -> None:
                from genevolve_ray.cluster.meters import WorkerMeters

                self.meters = WorkerMeters()

            def play(self) -> None:
                self.meters.running(3)
                self.meters.ended()
                self.meters.loaded(7)

        worker = ray.remote(Worker).remote()  # Defined here, so that Ray sends it along.
        ray.get(worker.play.remote())
        (address,) = metrics_addresses(ray.nodes())
        wanted = {"genevolve_worker_running_samples": 3.0, "genevolve_worker_ended_samples_total": 1.0}
        wanted["genevolve_worker_policy_version"] = 7.0
        found: dict[str, float] = {}
        end = time.monotonic() + 120
        while found != wanted and time.monotonic() < end:
            lines = [
                line for line in body(f"http://{address}/metrics").splitlines() if line.startswith("ray_genevolve")
            ]
            found = {line.partition("{")[0].removeprefix("ray_"): float(line.rpartition(" ")[2]) for line in lines}
        assert found == wanted
