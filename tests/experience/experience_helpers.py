"""Attempts, bundles and vectors of the experience tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.records.experience import Experience
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import Reward


def attempt(
    score: float, sample: int = 0, outcome: Outcome = Outcome.SCORED, request_id: str = "r", step: int = 1
) -> Trajectory:
    """A judged attempt without content."""
    key = SampleKey(step=step, request_id=request_id, sample=sample)
    made_by = Provenance(profile="release", engine="fake")
    reward = Reward(total=score, image=score, text=score) if outcome is Outcome.SCORED else None
    return Trajectory(key, "draw", TokenLedger(), made_by, outcome=outcome, reward=reward)


def group_of(scores: Sequence[float], request_id: str = "r", step: int = 1) -> Group:
    """A group of scored attempts."""
    attempts = [attempt(s, i, request_id=request_id, step=step) for i, s in enumerate(scores)]
    return Group(request_id, step, attempts)


def bundle(request_id: str, step: int = 1, gap: float = 0.5) -> Experience:
    """A bundle that says which request it is from."""
    return Experience(search_strategy=(f"search as {request_id}",), step=step, request_id=request_id, gap=gap)


def unit(*values: float) -> NDArray[np.float32]:
    """A vector of length 1 in this direction."""
    vector = np.array(values, dtype=np.float64)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def random_units(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Random vectors of length 1, float32[n, d]."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
