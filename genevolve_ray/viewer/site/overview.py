"""The first page of a run: where it is, its curves, its services, and which version of the policy sampled what."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.evolution.status import RunPhase, RunStatus, seconds_since
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.viewer.figures import PHASES, column, number
from genevolve_ray.viewer.page import duration
from genevolve_ray.viewer.site import totals
from genevolve_ray.viewer.site.charts import (
    Chart,
    Series,
    columns,
    curves,
    plain,
    seconds,
    share,
    thinned_steps,
)
from genevolve_ray.viewer.site.index import IndexState, RunIndex
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.sources import RunSource

QUIET_SECONDS = 45.0
"""A run that goes on writes its status every ten seconds; after this long without one it is shown as silent."""
LANES = ("same version", "1 version behind", "2 versions behind", "3 or more behind")
_RECENT = 5
"""Steps over which the present speed is taken."""


@dataclass(frozen=True)
class Curve:
    """Describe a chart of metrics over steps; `zero` begins its vertical axis at 0."""

    name: str
    title: str
    caption: str
    series: tuple[Series, ...]
    show: Callable[[float], str] = plain
    zero: bool = True


CURVES = (
    Curve(
        "reward",
        "Reward",
        "Mean over the rollouts of a step that have a reward.",
        (
            Series("reward_mean", "mean", 0),
            Series("reward_image", "image part", 1),
            Series("reward_text", "text part", 2),
            Series("validation", "validation", 3),
        ),
        zero=False,
    ),
    Curve(
        "shares",
        "Shares",
        "Programs that can be rendered, and requests that recalled an experience.",
        (Series("valid_fraction", "valid programs", 0), Series("experience_hit_rate", "recalled", 2)),
        share,
    ),
    Curve(
        "turns",
        "Turns",
        "Of a rollout, mean.",
        (Series("turns_mean", "turns", 0), Series("tool_calls_mean", "tool calls", 1)),
    ),
    Curve(
        "failures",
        "Failures",
        "Rollouts without a program, failures from outside, and tool calls that failed, each per step.",
        (
            Series("policy_failures", "no program", 4),
            Series("infra_failures", "from outside", 3),
            Series("tool_outages", "tool outages", 1),
            Series("service_failed_calls", "failed calls", 5),
        ),
    ),
    Curve("speed", "Speed", "Sampled tokens per second.", (Series("tokens_per_second", "tokens/s", 0),)),
    Curve("entropy", "Entropy", "Of the policy, nats per token, mean.", (Series("entropy", "entropy", 0),)),
    Curve(
        "gap",
        "Teacher gap",
        "Mean absolute difference of log-probs with and without experience, over taught tokens.",
        (Series("ved_gap_abs", "gap", 0),),
    ),
    Curve(
        "parity",
        "Parity of engine and learner",
        "Mean absolute difference of the log-probs that both give to the same tokens; it should stay far below the limit.",
        (Series("parity", "parity", 0),),
    ),
)
"""The charts of metrics, in their order; that of the seconds of a step follows the fourth."""


@dataclass(frozen=True)
class OverviewTile:
    """Hold a headline: what it is, its value, and a word on it."""

    label: str
    value: str
    note: str = ""


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
    curves = source.kept("curves", steps, lambda: charts(rows, store.validations()))
    summary = source.kept("summary", (steps, status and status.state), store.summary)
    sums = source.kept("totals", index.revision, lambda: _totals(index))
    head = headline(store, status, summary)
    return {
        "title": source.name,
        "head": head,
        "origin": source.kept("origin", "", lambda: _origin(store)),
        "tiles": tiles(summary, rows, head, sum(s.money for s in sums.services)),
        "charts": [c for c in (*curves, sums.lanes) if c is not None],
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
    lanes: Chart | None
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


def tiles(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], head: RunHeadline, money: float
) -> list[OverviewTile]:
    """Return the headlines of a run; those without a value are left out."""
    last, first = (rows[-1], rows[0]) if rows else ({}, {})
    found = []

    def add(label: str, key: str, show: Any, note: str = "") -> None:
        if (value := number(last.get(key))) is not None:
            found.append(OverviewTile(label, show(value), note))

    began = number(first.get("reward_mean"))
    add(
        "Mean reward",
        "reward_mean",
        "{:.3f}".format,
        f"{began:.3f} in step 1" if began is not None and len(rows) > 1 else "",
    )
    add("Valid programs", "valid_fraction", share, "of the last step")
    add("Tool calls", "tool_calls_mean", "{:.1f}".format, "of a rollout, mean")
    times = [t for t in column(rows[-_RECENT:], "seconds_step") if t is not None]
    if times:
        usual, left = statistics.median(times), head.steps - head.step
        note = (
            f"about {duration(usual * left)} to go" if head.tone == "live" and left > 0 else "median of the last steps"
        )
        found.append(OverviewTile("Time of a step", seconds(usual), note))
    add("Policy tokens", "tokens_per_second", lambda v: f"{v:,.0f}/s", "sampled, of the last step")
    if money:
        found.append(OverviewTile("Cost", f"{money:,.4g}", "in the currency of the prices"))
    before, after = (number(summary.get(f"heldout_reward_{side}")) for side in ("sft", "final"))
    if before is not None and after is not None:
        low, high = summary.get("heldout_gain_interval") or (None, None)
        note = f"gain {after - before:+.3f}" + (
            f" ({low:+.3f} to {high:+.3f})" if low is not None and high is not None else ""
        )
        found.append(OverviewTile("Held-out reward", f"{before:.3f} → {after:.3f}", note))
    return found


def charts(rows: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> list[Chart | None]:
    """Return the curves of a run; None for those without a value."""
    checked = {row["step"]: row.get("reward_mean") for row in validations}
    rows = [{**row, "validation": checked.get(row["step"])} for row in rows]
    drawn = [curves(c.name, c.title, c.caption, rows, c.series, c.show, zero=c.zero) for c in CURVES]
    return [*drawn[:4], _phases(rows), *drawn[4:], _queue(rows)]


def lanes(versions: Sequence[totals.VersionTokens]) -> Chart | None:
    """Return, for each step, the share of its tokens by how many versions behind the policy they were sampled."""
    by_step: dict[int, list[int]] = {}
    for found in versions:
        if found.step is not None:
            behind = min(max(found.step - 1 - found.version, 0), len(LANES) - 1)
            by_step.setdefault(found.step, [0] * len(LANES))[behind] += found.tokens
    steps = thinned_steps(sorted(by_step))
    parts = [
        (label, (2, 0, 1, 4)[i], [by_step[s][i] / max(1, sum(by_step[s])) for s in steps])
        for i, label in enumerate(LANES)
    ]
    return columns(
        "staleness",
        "Staleness",
        "Sampled tokens that a step trained on, by how many versions older than the policy before the step they are.",
        steps,
        parts,
        share,
    )


def _phases(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    chosen = {row["step"]: row for row in rows}
    steps = thinned_steps(sorted(chosen))
    parts = [
        (label, color, [number(chosen[s].get(f"seconds_{name}")) or 0.0 for s in steps])
        for name, label, color in (*PHASES, ("validation", "validation", 5))
    ]
    return columns("seconds", "Time of a step", "Seconds by what the step did.", steps, parts, seconds)


def _queue(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return the samples in progress between steps; a run in which rollouts and learner take turns has none."""
    keys = ("samples_running", "samples_buffered")
    if not any(number(row.get(key)) for row in rows for key in keys):
        return None
    series = [Series("samples_running", "running", 0), Series("samples_buffered", "finished, waiting", 1)]
    return curves("queue", "Samples in progress", "At the end of a step.", rows, series, plain, zero=True)


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
