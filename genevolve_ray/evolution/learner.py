"""The learner port over one process's `Learner`: groups in, one optimisation step out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from genevolve_ray.engines.protocol import Probe
from genevolve_ray.records.trajectory import Group, Outcome

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.step import Learner


class LocalLearner:
    """A `Learner` behind the port that the loop knows; runs in process or inside an actor."""

    def __init__(self, learner: Learner, tolerance: float) -> None:
        """Wrap a learner; `tolerance` bounds the probe difference that engines may show after an update."""
        self._learner, self._tolerance = learner, tolerance

    async def step(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Take one step on judged groups; a group with fewer than two scores teaches nothing and is left out."""
        return self._learner.train_step(training_sequences(groups, self._learner), step)

    async def publish(self, folder: str) -> Probe:
        """Write the weights to `folder` and return the probe that engines must reproduce."""
        return self._learner.publish(folder, self._tolerance)

    async def save(self, folder: str) -> None:
        """Write a checkpoint."""
        self._learner.save(folder)

    async def load(self, folder: str) -> None:
        """Restore a checkpoint."""
        self._learner.load(folder)

    async def state_hash(self) -> str:
        """Return the hash over weights, optimizer and RNG."""
        return self._learner.state_hash()


def training_sequences(groups: Sequence[Group], learner: Learner) -> list[TrainSequence]:
    """Turn judged groups into sequences with group-relative advantages (PAPER section 3)."""
    raise AssertionError  # replaced below
