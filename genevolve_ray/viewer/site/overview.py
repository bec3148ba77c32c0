"""The first page of a run: where it is, its curves, its services, and which version of the policy sampled what."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.evolution.status import RunPhase, RunStatus, seconds_since
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.viewer.alarms import alarm_list, alarm_texts
from genevolve_ray.viewer.charts import ChartAxis, ChartSeries, Kind
from genevolve_ray.viewer.data import stated_parity_limit
from genevolve_ray.viewer.figures import Figure, column, figures, number, series_figure
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import duration
from genevolve_ray.viewer.site import totals
from genevolve_ray.viewer.site.index import IndexState, RunIndex
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.sources import RunSource

QUIET_SECONDS = 45.0
"""A run that goes on writes its status every ten seconds; after this long without one it is shown as silent."""
LANES = (("same version", 2), ("1 version behind", 0), ("2 versions behind", 1), ("3 or more behind", 4))
"""Labels and colors of tokens by their age."""
_RECENT = 5
"""Steps over which the present speed is taken."""


MAIN_CURVES = "reward valid tools hits failures outages seconds speed entropy gap parity queue".split()
"""Figures that the page shows at once; the others open on demand."""


@dataclass(frozen=True)
class RunHeadline:
    """Hold the state of a run in words, with the share that is done (None where it is not known).

    `tone` is `live`, `good`, `bad` or "" for the color of the state.
    """

    state: str
    tone: str
    detail: str
    step: int
    steps: int
    phase: str
    done: int
    total: int
    outcomes: str


def build_overview(request: PageRequest) -> dict[str, Any]:
    """Return what the overview of a run shows."""
    source = request.source
    assert isinstance(source, RunSource)
    index, status = source.index, source.status
    store = index.store
    steps = store.last_step
    rows = source.kept("rows", steps, store.metrics)
    drawn = source.kept("curves", steps, lambda: figures(rows, store.validations(), stated_parity_limit(store.config)))
    summary = source.kept("summary", (steps, status and status.state), store.summary)
    sums = source.kept("totals", index.revision, lambda: _totals(index))
    head = headline(store, status, summary)
    return {
        "title": source.name,
        "head": head,
        "origin": source.kept("origin", "", lambda: _origin(store)),
        "tiles": tiles(summary, rows, head, sum(s.money for s in sums.services)),
        "alarms": source.kept("alarms", steps, lambda: alarm_list(rows, alarm_texts(store.manifests()))),
        "figures": [*(f for f in drawn if f.name in MAIN_CURVES), *([sums.lanes] if sums.lanes else [])],
        "more_figures": [f for f in drawn if f.name not in MAIN_CURVES],
        "sums": sums,
        "notes": list(reversed(status.notes)) if status else [],
        "damage": [*filter(None, [source.fault]), *store.damage.values(), *sums.state.damaged],
    }


@dataclass(frozen=True)
class OverviewTotals:
    """Hold what is summed over all indexed trajectories, and how far the index is."""

    services: list[totals.ServiceTotal]
    timings: list[totals.TimingTotal]
    engines: list[totals.EngineTotal]
    lanes: Figure | None
    waiting: int
    state: IndexState


def _totals(index: RunIndex) -> OverviewTotals:
    with index.reading() as connection:
        return OverviewTotals(
            totals.services(connection),
            totals.timings(connection),
            totals.engines(connection),
            lanes(totals.versions(connection)),
            totals.waiting(connection),
            index.state,
        )


OVERVIEW = SitePage("overview", "overview.html.j2", build_overview, label="Overview")


def headline(store: RunStore, status: RunStatus | None, summary: Mapping[str, Any]) -> RunHeadline:
    """Return the state of a run, from what it says and what it has committed."""
    done = store.last_step
    steps = status.steps if status else int(number(_loop(store).get("steps")) or 0)
    if status is None:
        ended = bool(summary)
        state, tone = ("Finished", "good") if ended else ("No status", "")
        detail = "" if ended else "This run does not write what it is doing; its committed steps are followed."
        return RunHeadline(state, tone, detail, done, max(steps, done), "", 0, 0, "")
    silent = seconds_since(status.updated)
    state, tone, detail = {
        RunPhase.RUNNING: ("Running", "live", ""),
        RunPhase.FINISHED: ("Finished", "good", ""),
        RunPhase.STOPPED: ("Stopped", "bad", "It was ended by a signal; the same command resumes it."),
        RunPhase.ALARM: ("Stopped by an alarm", "bad", status.error),
        RunPhase.FAILED: ("Failed", "bad", status.error),
    }[status.state]
    if status.state is RunPhase.RUNNING and (silent is None or silent > QUIET_SECONDS):
        since = "an unknown time" if silent is None else duration(silent)
        state, tone = "Silent", "bad"
        detail = f"Nothing was heard of it for {since}; its process may be gone. The same command resumes it."
    outcomes = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(status.outcomes.items()))
    goes = tone == "live"
    return RunHeadline(
        state,
        tone,
        detail,
        done,
        max(steps, done),
        status.phase if goes else "",
        status.done if goes else 0,
        status.total if goes else 0,
        outcomes if goes else "",
    )


def tiles(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], head: RunHeadline, money: float) -> list[Tile]:
    """Return the headlines of a run; those without a value are left out."""
    last, first = (rows[-1], rows[0]) if rows else ({}, {})
    found = []

    def add(label: str, key: str, show: Any, note: str = "") -> None:
        if (value := number(last.get(key))) is not None:
            found.append(Tile(label, show(value), note=note))

    began = number(first.get("reward_mean"))
    add(
        "Mean reward",
        "reward_mean",
        "{:.3f}".format,
        f"{began:.3f} in step 1" if began is not None and len(rows) > 1 else "",
    )
    add("Valid programs", "valid_fraction", "{:.1%}".format, "of the last step")
    add("Tool calls", "tool_calls_mean", "{:.1f}".format, "of a rollout, mean")
    times = [t for t in column(rows[-_RECENT:], "seconds_step") if t is not None]
    if times:
        usual, left = statistics.median(times), head.steps - head.step
        note = (
            f"about {duration(usual * left)} to go" if head.tone == "live" and left > 0 else "median of the last steps"
        )
        found.append(Tile("Time of a step", _seconds(usual), note=note))
    add("Policy tokens", "tokens_per_second", lambda v: f"{v:,.0f}/s", "sampled, of the last step")
    if money:
        found.append(Tile("Cost", f"{money:,.4g}", note="in the currency of the prices"))
    before, after = (number(summary.get(f"heldout_reward_{side}")) for side in ("sft", "final"))
    if before is not None and after is not None:
        low, high = summary.get("heldout_gain_interval") or (None, None)
        note = f"gain {after - before:+.3f}" + (
            f" ({low:+.3f} to {high:+.3f})" if low is not None and high is not None else ""
        )
        found.append(Tile("Held-out reward", f"{before:.3f} → {after:.3f}", note=note))
    return found


def lanes(versions: Sequence[totals.VersionTokens]) -> Figure | None:
    """Return, for each step, the share of its tokens by how many versions behind the policy they were sampled."""
    by_step: dict[int, list[int]] = {}
    for found in versions:
        if found.step is not None:
            behind = min(max(found.step - 1 - found.version, 0), len(LANES) - 1)
            by_step.setdefault(found.step, [0] * len(LANES))[behind] += found.tokens
    steps = [float(step) for step in sorted(by_step)]
    shares = [[tokens / max(1, sum(by_step[step])) for tokens in by_step[step]] for step in sorted(by_step)]
    series = [
        ChartSeries(label, color, steps, [row[place] for row in shares], Kind.BAR)
        for place, (label, color) in enumerate(LANES)
        if any(row[place] for row in shares)
    ]
    caption = (
        "Sampled tokens that a step trained on, by how many versions older than the policy before the step they are."
    )
    axis = ChartAxis("share of tokens", percent=True, zero=True, top=1.0)
    return series_figure("staleness", "Staleness", caption, series, axis)


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def _loop(store: RunStore) -> Mapping[str, Any]:
    found = store.config.get("loop")
    return found if isinstance(found, Mapping) else {}


def _origin(store: RunStore) -> list[tuple[str, str]]:
    """Return where a run comes from, as (name, value)."""
    config, info = store.config, store.info

    def kind(role: str) -> str:
        spec = config.get(role)
        found = str(spec.get("type") or spec.get("kind") or "") if isinstance(spec, Mapping) else ""
        return found.rpartition(":")[2]

    policy = config.get("policy")
    found = {
        "started": info.created.replace("T", " ")[:19],
        "policy": str(policy.get("model", "")) if isinstance(policy, Mapping) else "",
        "engine": kind("engine"),
        "tools": kind("tools"),
        "renderer": kind("renderer"),
        "judge": kind("judge"),
        "seed": str(info.run_seed),
        "version": f"genevolve_ray {info.package_version}",
    }
    return [(name, value) for name, value in found.items() if value]
