"""Headline figures of a run: the most important results first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from genevolve_ray.evolution.alarms import alarm_periods
from genevolve_ray.viewer.data import ReportData, find_key
from genevolve_ray.viewer.figures import column, number
from genevolve_ray.viewer.page import duration, fixed, power, signed


@dataclass(frozen=True)
class Tile:
    """Hold one headline figure: `before` is shown as the start of an arrow, `note` below the value."""

    label: str
    value: str
    before: str = ""
    note: str = ""
    tone: str = ""


def tiles(data: ReportData) -> list[Tile]:
    """Return the headline figures that the summary (or else the metrics) can provide."""
    makers: list[Callable[[ReportData], Tile | None]] = [
        _heldout_tile,
        _gain_tile,
        _training_tile,
        _valid_tile,
        _size_tile,
        _parity_tile,
        _alarms_tile,
        _time_tile,
        _memory_tile,
    ]
    return [tile for make in makers if (tile := make(data)) is not None]


def _heldout_tile(data: ReportData) -> Tile | None:
    before, after = (number(data.summary.get(f"heldout_reward_{side}")) for side in ("sft", "final"))
    if after is None:
        return None
    count = f"mean over {len(data.requests):,} requests" if data.requests else ""
    return Tile("Held-out reward", fixed(after), before=fixed(before) if before is not None else "", note=count)


def _gain_tile(data: ReportData) -> Tile | None:
    before, after = (number(data.summary.get(f"heldout_reward_{side}")) for side in ("sft", "final"))
    if before is None or after is None:
        return None
    interval = data.summary.get("heldout_gain_interval")
    bounds = [number(v) for v in interval] if isinstance(interval, Sequence) and len(interval) == 2 else [None, None]
    low, high = bounds
    if low is None or high is None:
        return Tile("Paired gain", signed(after - before))
    tone = "good" if low > 0 else "bad" if high < 0 else ""
    confidence = number(find_key(data.config, "confidence"))
    name = f"{confidence:.0%} interval" if confidence else "interval"
    return Tile("Paired gain", signed(after - before), note=f"{name} {signed(low)} to {signed(high)}", tone=tone)


def _training_tile(data: ReportData) -> Tile | None:
    rewards = [v for v in column(data.metrics, "reward_mean") if v is not None]
    if not rewards:
        return None
    width = min(5, max(1, len(rewards) // 2))
    first, last = sum(rewards[:width]) / width, sum(rewards[-width:]) / width
    note = f"first and last {width} of {len(rewards)} steps" if width > 1 else f"{len(rewards)} steps"
    return Tile("Training reward", fixed(last), before=fixed(first), note=note)


def _size_tile(data: ReportData) -> Tile | None:
    if not data.metrics:
        return None
    shape = [number(find_key(data.config, key)) for key in ("requests_per_step", "group_size")]
    note = f"{shape[0]:.0f} requests × {shape[1]:.0f} rollouts each" if shape[0] and shape[1] else ""
    return Tile("Steps", f"{len(data.metrics):,}", note=note)


def _valid_tile(data: ReportData) -> Tile | None:
    before, after = (number(data.summary.get(f"valid_fraction_{side}")) for side in ("sft", "final"))
    if after is None and before is None:
        rates = [v for v in column(data.metrics, "valid_fraction") if v is not None]
        return Tile("Valid programs", f"{rates[-1]:.1%}", note="last training step") if rates else None
    if after is None or before is None:
        return Tile("Valid programs", f"{after if before is None else before:.1%}")
    return Tile("Valid programs", f"{after:.1%}", before=f"{before:.1%}", note="held-out episodes")


def _parity_tile(data: ReportData) -> Tile | None:
    known = [v for v in column(data.metrics, "parity") if v is not None]
    worst = number(data.summary.get("parity_max"))
    worst = max(known, default=None) if worst is None else worst
    if worst is None:
        return None
    limit = data.parity_limit
    tone = "" if limit is None else "good" if worst <= limit else "bad"
    return Tile("Parity, worst step", power(worst), note=f"limit {power(limit)}" if limit else "", tone=tone)


def _alarms_tile(data: ReportData) -> Tile | None:
    """Return the collapse alarms that were raised, None where there were none."""
    periods = alarm_periods(data.metrics)
    if not periods:
        return None
    said = [
        f"{name.replace('_', ' ')} from step {first}" + (f" to {last}" if last else "") for name, first, last in periods
    ]
    lasting = sum(last is None for _, _, last in periods)
    return Tile("Collapse alarms", str(len(periods)), note="; ".join(said), tone="bad" if lasting else "")


def _time_tile(data: ReportData) -> Tile | None:
    seconds = data.summary.get("seconds")
    seconds = seconds if isinstance(seconds, Mapping) else {}
    known = {k: v for k in ("setup", "evolve", "total") if (v := number(seconds.get(k))) is not None}
    total = known.pop("total", None)
    steps = [v for v in column(data.metrics, "seconds_step") if v is not None]
    if total is None:
        total = sum(steps) if steps else None
    if total is None:
        return None
    note = ", ".join(f"{k} {duration(v)}" for k, v in known.items())
    return Tile("Time", duration(total), note=note or f"{sum(steps) / len(steps):.1f} s a step" if steps else note)


def _memory_tile(data: ReportData) -> Tile | None:
    peak = number(data.summary.get("peak_memory_bytes"))
    known = [v for v in column(data.metrics, "peak_memory_bytes") if v is not None]
    peak = max(known, default=None) if peak is None else peak
    return Tile("Peak memory", f"{peak / 2**30:.1f} GiB", note="all processes") if peak else None
