"""Collapse alarms of a run as pages list them: when each was raised, what happens, and what to try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.evolution.alarms import alarm_periods
from genevolve_ray.evolution.store.manifest import StepManifest


@dataclass(frozen=True)
class AlarmPeriod:
    """Hold the steps in which an alarm was raised; `last` is None for one that is still raised.

    `text` says what was measured, what it means and what to try; it is "" where the run does not keep it.
    """

    name: str
    first: int
    last: int | None
    text: str = ""


def alarm_texts(manifests: Iterable[StepManifest]) -> dict[tuple[int, str], str]:
    """Return the words of each alarm by the step that raised it and its name."""
    return {
        (manifest.step, str(alarm.get("name"))): str(alarm.get("text", ""))
        for manifest in manifests
        for alarm in manifest.loop.get("alarms", ())
    }


def alarm_list(metrics: Sequence[Mapping[str, Any]], texts: Mapping[tuple[int, str], str]) -> list[AlarmPeriod]:
    """Return the alarms of a run in the order in which they were raised, from its metrics and its `alarm_texts`."""
    return [
        AlarmPeriod(name.replace("_", " "), first, last, texts.get((first, name), ""))
        for name, first, last in alarm_periods(metrics)
    ]
