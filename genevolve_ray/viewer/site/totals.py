"""Totals over all indexed trajectories of a run: services, parts of a rollout, engines, and versions of the policy."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from genevolve_ray.viewer.site.entries import TRAINING


@dataclass(frozen=True)
class ServiceTotal:
    """Hold the use of a service. `seconds` are the time that calls were in flight, `money` what they cost."""

    service: str
    calls: int
    failed: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    images: int
    seconds: float
    money: float

    @property
    def latency(self) -> float | None:
        """Mean seconds of a call, None without calls."""
        return self.seconds / self.calls if self.calls and self.seconds else None


@dataclass(frozen=True)
class TimingTotal:
    """Hold the seconds that a part of rollouts took: over how many rollouts, in all, and the longest."""

    part: str
    count: int
    seconds: float
    longest: float

    @property
    def mean(self) -> float:
        """Mean seconds of a rollout."""
        return self.seconds / max(1, self.count)


@dataclass(frozen=True)
class EngineTotal:
    """Hold what an engine, or a worker outside of the cluster, has sampled; versions are those of the policy."""

    engine: str
    trajectories: int
    scored: int
    failed_outside: int
    oldest: int | None
    newest: int | None
    last_step: int
    seconds: float


@dataclass(frozen=True)
class VersionTokens:
    """Hold the tokens of one version that a step trained on; `step` is None for groups that wait for one."""

    step: int | None
    version: int
    tokens: int


def services(connection: sqlite3.Connection) -> list[ServiceTotal]:
    """Return the use of each service, the policy's own engine first."""
    rows = connection.execute(
        "SELECT service, sum(calls), sum(failed_calls), sum(cached), sum(prompt_tokens), sum(completion_tokens), sum(images), "
        "sum(seconds), sum(money) FROM usage GROUP BY service ORDER BY service != 'policy', service"
    )
    return [ServiceTotal(*row) for row in rows]


def timings(connection: sqlite3.Connection) -> list[TimingTotal]:
    """Return the parts of rollouts, the one with the most seconds first."""
    rows = connection.execute(
        "SELECT part, sum(count), sum(seconds), max(longest) FROM timings GROUP BY part ORDER BY sum(seconds) DESC"
    )
    return [TimingTotal(*row) for row in rows]


def engines(connection: sqlite3.Connection) -> list[EngineTotal]:
    """Return the engines, the one with the most trajectories first."""
    rows = connection.execute(
        "SELECT engine, count(*), sum(outcome = 'scored'), sum(outcome = 'infra_failure'), min(oldest), max(newest), "
        "max(step), avg(seconds) FROM trajectories GROUP BY engine ORDER BY count(*) DESC, engine"
    )
    return [EngineTotal(*row) for row in rows]


def versions(connection: sqlite3.Connection) -> list[VersionTokens]:
    """Return the sampled tokens of training groups by the step that trained on them and by version."""
    rows = connection.execute(
        "SELECT f.trained, k.version, sum(k.count) FROM tokens k JOIN files f ON f.id = k.file "
        "WHERE f.path LIKE 'steps/%/groups/%' GROUP BY f.trained, k.version ORDER BY f.trained, k.version"
    )
    return [VersionTokens(*row) for row in rows]


def waiting(connection: sqlite3.Connection) -> int:
    """Return the number of training trajectories that no step has trained on."""
    (count,) = connection.execute(
        "SELECT count(*) FROM trajectories t JOIN files f ON f.id = t.file WHERE t.part = ? AND f.trained IS NULL",
        (TRAINING,),
    ).fetchone()
    return int(count)
