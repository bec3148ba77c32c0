"""Normalization of components within a group, so that each moves the advantages by its weight alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genevolve_ray.records.rewards import share_of
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory
from genevolve_ray.records.verdict import Reward, RewardConfig


def normalise_group(group: Group, config: RewardConfig) -> None:
    """Set what the learner compares, `Reward.normalised`, for every trajectory of a group that has a score.

    A policy failure and a closed gate are worth 0 in every component. A component that is missing in one trajectory is
    normalized over the others.
    """
    scored = [t for t in group.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]
    if config.normalise == "none" or not scored:
        return
    parts = [_parts(t, config) for t in scored]
    columns = {}
    for name in config.components:
        there = [i for i, one in enumerate(parts) if name in one]
        values = [parts[i][name] for i in there]
        columns[name] = dict(zip(there, _normalised(values, config.normalise), strict=True))
    for i, trajectory in enumerate(scored):
        total = sum(weight * columns[name][i] for name, weight in config.components.items() if name in parts[i])
        raw = trajectory.reward or Reward(total=0.0, image=0.0, text=0.0)
        normalised = total * share_of(config.components, parts[i])
        trajectory.reward = raw.model_copy(update={"normalised": normalised})


def _parts(trajectory: Trajectory, config: RewardConfig) -> dict[str, float]:
    reward = trajectory.reward
    if trajectory.outcome is Outcome.POLICY_FAILURE or reward is None or reward.closed:
        return dict.fromkeys(config.components, 0.0)
    return reward.parts


def _normalised(values: Sequence[float], how: str) -> list[float]:
    """Return values as z-scores, or as ranks from 0 to 1; equal values have one rank.

    Values that are all equal have the mean of the others: a z-score of 0, or a rank of 0.5.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found) or found.max() == found.min():
        return [0.5 if how == "rank" else 0.0] * len(found)
    if how == "zscore":
        return list(((found - found.mean()) / found.std()).tolist())
    below = (found[None, :] < found[:, None]).sum(1)
    equal = (found[None, :] == found[:, None]).sum(1)
    return list(((below + (equal - 1) / 2) / (len(found) - 1)).tolist())
