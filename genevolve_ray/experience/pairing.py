"""Best-worst pairs of a step (PAPER section 4, item 1)."""

from __future__ import annotations

from collections.abc import Sequence

from genevolve_ray.records.trajectory import Group, Outcome, Pair, Trajectory

_ROUNDING = 1e-9
"""0.7 - 0.5 is a gap of 0.2 although the floating-point result is slightly less."""


def best_worst(group: Group) -> Pair | None:
    """Return the best and the worst judged attempt of a group, the first of equals; None with fewer than two.

    Only SCORED attempts count: neither an outage nor a protocol violation teaches anything about drawing.
    """
    judged = [t for t in group.trajectories if t.outcome is Outcome.SCORED and t.reward is not None]
    if len(judged) < 2:
        return None
    judged.sort(key=_sample)
    best, worst = max(judged, key=_score), min(judged, key=_score)
    return Pair(group.request_id, group.step, best, worst, best.score - worst.score)


def best_worst_pairs(groups: Sequence[Group], *, min_gap: float = 0.20, max_pairs: int = 8) -> list[Pair]:
    """Return the pairs of a step that are worth a comparison, in the order of the groups.

    Args:
        groups: the groups of one step, in request order.
        min_gap: least difference of rewards.
        max_pairs: most pairs; the largest gaps are kept, among equals the earlier request.
    """
    found = [pair for group in groups if (pair := best_worst(group)) and _wide(pair, min_gap)]
    widest = sorted(range(len(found)), key=lambda i: (-round(found[i].gap, 9), i))[:max_pairs]
    return [found[i] for i in sorted(widest)]


def _wide(pair: Pair, min_gap: float) -> bool:
    """Return whether a gap counts; attempts with equal scores teach nothing, regardless of the limit."""
    return pair.gap >= min_gap - _ROUNDING and pair.gap > _ROUNDING


def _score(trajectory: Trajectory) -> float:
    return trajectory.score


def _sample(trajectory: Trajectory) -> tuple[int, int]:
    return trajectory.key.sample, trajectory.key.attempt
