"""The learner as an actor, and the port that reaches it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.cluster.errors import arrive
from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.ports import Lesson, MovedToken
from genevolve_ray.records.trajectory import Group

if TYPE_CHECKING:
    from genevolve_ray.config import RunConfig
    from genevolve_ray.evolution.learner import LocalLearner


class LearnerWorker:
    """One learner in a process of its own; `start` loads the model."""

    def __init__(self, config: RunConfig, model_dir: str) -> None:
        """Keep the settings."""
        self._config, self._model_dir = config, model_dir
        self._learner: LocalLearner | None = None

    async def start(self) -> None:
        """Load policy and optimizer. Raises FileNotFoundError or ValueError for a model that cannot be trained."""
        from genevolve_ray.evolution.inprocess import start_learner
        from genevolve_ray.learning.policy import use_threads

        if not self._config.learner.threads:
            # Ray holds workers to one thread. In a synchronous step the engine is idle while the learner works.
            use_threads(len(os.sched_getaffinity(0)))
        self._learner = start_learner(self._config, Path(self._model_dir))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the learner port."""
        assert self._learner is not None, "start comes first"
        return await getattr(self._learner, method)(*arguments)


class RayLearner:
    """The learner port over a learner actor. What the learner raises arrives as itself."""

    def __init__(self, worker: Any) -> None:
        """Reach the learner through its actor."""
        self.worker = worker

    async def start(self) -> None:
        """Wait until the model is loaded."""
        await arrive(self.worker.start.remote())

    async def step(self, groups: Sequence[Group], step: int, lessons: Sequence[Lesson] = ()) -> dict[str, float]:
        """Take one optimisation step on judged groups, taught by lessons, and return its metrics."""
        metrics: dict[str, float] = await self._call("step", list(groups), step, list(lessons))
        return metrics

    async def moved(self) -> list[MovedToken]:
        """Return the tokens on which the teacher of the last step disagreed most."""
        tokens: list[MovedToken] = await self._call("moved")
        return tokens

    async def publish(self, folder: str) -> Probe:
        """Write the weights to `folder` and return the probe that engines must reproduce."""
        probe: Probe = await self._call("publish", folder)
        return probe

    async def save(self, folder: str) -> None:
        """Write a checkpoint."""
        await self._call("save", folder)

    async def load(self, folder: str) -> None:
        """Restore a checkpoint."""
        await self._call("load", folder)

    async def state_hash(self) -> str:
        """Return a hash over weights, optimizer and RNG."""
        digest: str = await self._call("state_hash")
        return digest

    async def _call(self, method: str, *arguments: Any) -> Any:
        return await arrive(self.worker.call.remote(method, *arguments))


def learner_environment(config: RunConfig) -> dict[str, str]:
    """Return the environment variables of the learner's process: OpenMP reads its number of threads once, at import."""
    threads = config.learner.threads
    return {"HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
