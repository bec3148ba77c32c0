"""What the gateway counts, for people and for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from genevolve_ray.gateway.reasons import RefusalReason

_ALIVE_SECONDS = 60.0


@dataclass
class WorkerMeter:
    """One worker, as the gateway has seen it."""

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
    """Counts since the gateway started."""

    def __init__(self) -> None:
        """Start at 0."""
        self.started = time.monotonic()
        self.workers: dict[str, WorkerMeter] = {}
        self.refused: Counter[str] = Counter()
        self.accepted = self.tokens = self.bytes_in = self.bytes_out = self.requests = 0
        self.base_bytes_out = 0
        """Of `bytes_out`, what workers loaded of the base."""
        self.version_bytes_out: Counter[int] = Counter()
        """Of `bytes_out`, what they loaded of each version."""

    def worker(self, name: str) -> WorkerMeter:
        """Return a worker's meter; asking is seeing."""
        meter = self.workers.setdefault(name, WorkerMeter())
        meter.seen = time.monotonic()
        return meter

    def refuse(self, reason: RefusalReason, worker: str | None) -> None:
        """Count a refusal."""
        self.refused[reason.value] += 1
        if worker is not None:
            self.workers.setdefault(worker, WorkerMeter()).refused[reason.value] += 1

    def alive(self) -> list[str]:
        """Return the workers that were seen a short while ago."""
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

    def prometheus(self, lease_table: dict[str, int], versions: list[int], out: list[str]) -> str:
        """Return the metrics in Prometheus's text format."""
        gauges: dict[str, float] = {
            "genevolve_gateway_workers_alive": len(self.alive()),
            "genevolve_gateway_workers_quarantined": len(out),
            "genevolve_gateway_version": max(versions, default=-1),
            "genevolve_gateway_samples_waiting": lease_table["waiting"],
            "genevolve_gateway_leases_open": lease_table["leased"],
        }
        counters: dict[str, float] = {
            "genevolve_gateway_trajectories_accepted_total": self.accepted,
            "genevolve_gateway_tokens_accepted_total": self.tokens,
            "genevolve_gateway_leases_granted_total": lease_table["granted"],
            "genevolve_gateway_leases_expired_total": lease_table["expired"],
            "genevolve_gateway_leases_returned_total": lease_table["returned"],
            "genevolve_gateway_requests_total": self.requests,
            "genevolve_gateway_received_bytes_total": self.bytes_in,
            "genevolve_gateway_sent_bytes_total": self.bytes_out,
            "genevolve_gateway_base_sent_bytes_total": self.base_bytes_out,
            "genevolve_gateway_weights_sent_bytes_total": self.version_bytes_out.total(),
        }
        lines = [f"# TYPE {name} gauge\n{name} {value:g}" for name, value in gauges.items()]
        lines += [f"# TYPE {name} counter\n{name} {value:.0f}" for name, value in counters.items()]
        name = "genevolve_gateway_refused_total"
        lines.append(f"# TYPE {name} counter")
        lines += [f'{name}{{reason="{reason}"}} {count}' for reason, count in sorted(self.refused.items())]
        return "\n".join(lines) + "\n"
