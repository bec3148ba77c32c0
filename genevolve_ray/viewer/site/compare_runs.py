"""Two runs compared: curves over each other, held-out rewards in pairs, and what their configurations have different."""

from __future__ import annotations

from typing import Any

from genevolve_ray.records.differences import Difference, differences
from genevolve_ray.records.intervals import Interval, paired_interval
from genevolve_ray.records.secrets import masked
from genevolve_ray.viewer.charts import ChartAxis, ChartSeries
from genevolve_ray.viewer.data import AFTER
from genevolve_ray.viewer.figures import Figure, Rows, column, series_figure
from genevolve_ray.viewer.gallery import clip
from genevolve_ray.viewer.site.entries import LARGEST_PAGE, EntryFilter, EntryOrder
from genevolve_ray.viewer.site.index import RunIndex
from genevolve_ray.viewer.site.pages import PageMissing, PageRequest, SitePage
from genevolve_ray.viewer.site.sources import RunSource

COMPARED = (
    ("reward_mean", "Reward", "Mean over the rollouts of a step.", ChartAxis("reward")),
    ("valid_fraction", "Valid programs", "Of the rollouts of a step.", ChartAxis("share of rollouts", percent=True)),
    ("tool_calls_mean", "Tool calls", "Mean of a step.", ChartAxis("per rollout")),
    ("response_tokens_mean", "Tokens of the policy", "Mean of a step.", ChartAxis("tokens per rollout")),
    ("entropy", "Entropy", "Over the policy's own tokens.", ChartAxis("nats per token")),
    ("ved_gap_abs", "Gap to the teacher", "Mean |log π − log q| over taught tokens.", ChartAxis("nats per token")),
    ("grad_norm", "Gradient norm", "Before clipping.", ChartAxis("L2 norm")),
    ("seconds_step", "Time of a step", "Wall time.", ChartAxis("seconds", unit="s", zero=True)),
)
"""Metrics that are drawn: key, title, caption and axis."""
SEED, CONFIDENCE = 0, 0.95
LONGEST_VALUE = 300


def build_runs(request: PageRequest) -> dict[str, Any]:
    """Return what the comparison of two runs shows; without another run, the choice alone. Raises PageMissing."""
    own = request.source
    assert isinstance(own, RunSource)
    others = {slug: one for slug, one in request.others.items() if isinstance(one, RunSource) and one is not own}
    context: dict[str, Any] = {"title": "Compare two runs", "others": others, "other": None}
    if not (chosen := request.query.get("with", "")):
        return context
    if chosen not in others:
        raise PageMissing("no other run of this name is open")
    other = others[chosen]
    first, second = own.index.store, other.index.store
    return context | {
        "other": other,
        "figures": overlaid((own.name, other.name), (first.metrics(), second.metrics())),
        "heldout": heldout_pairs(own.index, other.index),
        "changes": [_shown(change) for change in differences(masked(first.config), masked(second.config))],
        "confidence": CONFIDENCE,
    }


def overlaid(names: tuple[str, str], metrics: tuple[Rows, Rows]) -> list[Figure]:
    """Return the curves of two runs over each other, by step; a metric that neither has is left out."""
    found = []
    for key, title, caption, axis in COMPARED:
        series = [
            ChartSeries(name, color, column(rows, "step"), column(rows, key))
            for color, (name, rows) in enumerate(zip(names, metrics, strict=True))
        ]
        found.append(series_figure(f"both-{key}", title, caption, series, axis, legend=True))
    return [figure for figure in found if figure is not None]


def heldout_pairs(first: RunIndex, second: RunIndex) -> tuple[int, float, float, Interval] | None:
    """Return (requests, mean of each run, mean difference with its interval) of the final policies on shared requests.

    None where the runs share no held-out request with a reward.
    """
    rewards = [_heldout(index) for index in (first, second)]
    shared = sorted(rewards[0].keys() & rewards[1].keys())
    if not shared:
        return None
    sides = [[of_run[request_id] for request_id in shared] for of_run in rewards]
    gain = paired_interval(sides[0], sides[1], seed=SEED, confidence=CONFIDENCE)
    return len(shared), sum(sides[0]) / len(shared), sum(sides[1]) / len(shared), gain


def _heldout(index: RunIndex) -> dict[str, float]:
    """Return the reward of the first sample with one of each held-out request, after the run."""
    found: dict[str, float] = {}
    number = 1
    while True:
        page = index.search(EntryFilter(set=AFTER), EntryOrder.OLDEST, number, LARGEST_PAGE)
        for entry in sorted(page.items, key=lambda entry: (entry.sample, entry.attempt)):
            if entry.reward is not None:
                found.setdefault(entry.request_id, entry.reward)
        if number >= page.count:
            return found
        number += 1


def _shown(change: Difference) -> Difference:
    return Difference(change.key, *(clip(str(value), LONGEST_VALUE) for value in (change.before, change.after)))


RUNS = SitePage("runs", "compare_runs.html.j2", build_runs)
