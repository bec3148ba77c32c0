"""Counts of the gateway, for the status page and for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from genevolve_ray.gateway.reasons import RefusalReason

__all__ = ["CONTENT_TYPE", "Meters", "WorkerMeter"]

_ALIVE_SECONDS = 60.0
_PREFIX = "genevolve_gateway_"


@dataclass
class WorkerMeter:
    """Count the activity of one worker."""

    accepted: int = 0
    tokens: int = 0
    scored: int = 0
    forged: int = 0
    version: int = -1
    seen: float = 0.0
    """Seconds of the monotonic clock at its last request."""
    gap: float = 0.0
    """Mean log-prob gap of its last scored trajectory."""
    drift: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)


class Meters:
    """Hold the counts since the gateway started."""

    def __init__(self) -> None:
        """Start at 0."""
        self.started = time.monotonic()
        self.workers: dict[str, WorkerMeter] = {}
        self.refused: Counter[str] = Counter()
        self.accepted = self.tokens = self.bytes_in = self.bytes_out = self.requests = 0
        self.base_bytes_out = 0
        """Part of `bytes_out`: downloads of the base."""
        self.picture_bytes_out = 0
        """Part of `bytes_out`: pictures that policies outside see."""
        self.version_bytes_out: Counter[int] = Counter()
        """Part of `bytes_out`: downloads of each version."""

    def worker(self, name: str) -> WorkerMeter:
        """Return a worker's meter, and record that the worker was seen."""
        meter = self.workers.setdefault(name, WorkerMeter())
        meter.seen = time.monotonic()
        return meter

    def refuse(self, reason: RefusalReason, worker: str | None) -> None:
        """Count a refusal."""
        self.refused[reason.value] += 1
        if worker is not None:
            self.workers.setdefault(worker, WorkerMeter()).refused[reason.value] += 1

    def alive(self) -> list[str]:
        """Return the workers that were seen recently."""
        now = time.monotonic()
        return [name for name, meter in self.workers.items() if now - meter.seen < _ALIVE_SECONDS]

    def status(
        self, lease_table: dict[str, int], held: dict[str, int], versions: list[int], out: list[str]
    ) -> dict[str, object]:
        """Return everything, for `genevolve gateway status`."""
        seconds = time.monotonic() - self.started
        now = time.monotonic()
        return {
            "seconds": round(seconds, 1),
            "leases": lease_table,
            "versions": versions,
            "accepted": self.accepted,
            "tokens": self.tokens,
            "accepted_per_minute": round(60 * self.accepted / max(seconds, 1e-9), 2),
            "tokens_per_second": round(self.tokens / max(seconds, 1e-9), 2),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "base_bytes_out": self.base_bytes_out,
            "picture_bytes_out": self.picture_bytes_out,
            "version_bytes_out": {version: self.version_bytes_out[version] for version in versions},
            "requests": self.requests,
            "refused": dict(self.refused),
            "quarantined": out,
            "workers": {
                name: {
                    "seen_seconds_ago": round(now - m.seen, 1),
                    "leases": held.get(name, 0),
                    "accepted": m.accepted,
                    "tokens": m.tokens,
                    "scored": m.scored,
                    "version": m.version,
                    "logprob_gap": m.gap,
                    "drift": m.drift,
                    "refused": dict(m.refused),
                }
                for name, m in sorted(self.workers.items())
            },
        }

    def prometheus(self, lease_table: dict[str, int], versions: list[int], out: list[str]) -> bytes:
        """Return the metrics in Prometheus's text format (`CONTENT_TYPE`).

        The counts stay plain numbers of this object, because the status page shows them too. prometheus_client formats
        them on request, so that names, label values and numbers follow the format.
        """
        gauges = {
            "workers_alive": ("Workers seen within the last minute", len(self.alive())),
            "workers_quarantined": ("Workers that are shut out", len(out)),
            "version": ("Newest version of the weights, -1 before the first", max(versions, default=-1)),
            "samples_waiting": ("Samples that no worker has leased", lease_table["waiting"]),
            "leases_open": ("Samples that workers are playing", lease_table["leased"]),
        }
        counters = {
            "trajectories_accepted": ("Trajectories taken in", self.accepted),
            "tokens_accepted": ("Policy tokens of accepted trajectories", self.tokens),
            "leases_granted": ("Leases given out", lease_table["granted"]),
            "leases_expired": ("Leases that ran out", lease_table["expired"]),
            "leases_returned": ("Leases given back", lease_table["returned"]),
            "requests": ("Requests with or without a valid token", self.requests),
            "received_bytes": ("Bytes of bodies received", self.bytes_in),
            "sent_bytes": ("Bytes of files sent", self.bytes_out),
            "base_sent_bytes": ("Bytes sent of the base model", self.base_bytes_out),
            "pictures_sent_bytes": ("Bytes sent of pictures that the policy sees", self.picture_bytes_out),
            "weights_sent_bytes": ("Bytes sent of versions of the weights", self.version_bytes_out.total()),
        }
        families: list[Metric] = [GaugeMetricFamily(_PREFIX + n, text, value) for n, (text, value) in gauges.items()]
        families += [CounterMetricFamily(_PREFIX + n, text, value) for n, (text, value) in counters.items()]
        refused = CounterMetricFamily(f"{_PREFIX}refused", "Requests refused, by the reason", labels=["reason"])
        for reason, count in sorted(self.refused.items()):
            refused.add_metric([reason], count)
        registry = CollectorRegistry()
        registry.register(_Snapshot([*families, refused]))
        return generate_latest(registry)


class _Snapshot(Collector):
    """Pass counts to prometheus_client."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return the metrics."""
        return self._families
