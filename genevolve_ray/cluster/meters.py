"""Metrics of a rollout worker for Prometheus, by Ray's own metrics: every node serves those of its processes.

Ray adds the labels `WorkerId`, `NodeAddress` and `SessionName`, and the prefix `ray_`. The driver counts what trajectories
took (`evolution/telemetry`); here is what only the worker knows while it plays.
"""

from __future__ import annotations

from collections.abc import Sequence


class WorkerMeters:
    """Report the samples of a rollout worker and the version of its engine."""

    def __init__(self) -> None:
        """Define the metrics in this process, which must belong to Ray."""
        from ray.util.metrics import Counter, Gauge

        self._running = Gauge("genevolve_worker_running_samples", "Samples that a rollout worker plays")
        self._ended = Counter("genevolve_worker_ended_samples_total", "Samples that a rollout worker has played")
        self._version = Gauge("genevolve_worker_policy_version", "Version of the weights that its engine samples from")

    def running(self, samples: int) -> None:
        """Report the samples in play."""
        self._running.set(samples)

    def ended(self) -> None:
        """Count a sample that was played."""
        self._ended.inc()

    def loaded(self, version: int) -> None:
        """Report the version of the weights."""
        self._version.set(version)


class NullMeters(WorkerMeters):
    """Report nothing."""

    def __init__(self) -> None:
        """Define no metric."""

    def running(self, samples: int) -> None:
        """Do nothing."""

    def ended(self) -> None:
        """Do nothing."""

    def loaded(self, version: int) -> None:
        """Do nothing."""


def metrics_addresses(nodes: Sequence[dict[str, object]]) -> list[str]:
    """Return the addresses `host:port` at which live nodes serve Ray's metrics, in the order of `ray.nodes()`."""
    return [
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in nodes
        if node.get("Alive") and node.get("MetricsExportPort")
    ]
