"""Worlds of an ablation: the one that arms train in, and those that they are tested on.

Shape legend: S seeds, M requests, T validated steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.ports import RequestSource
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.teaching import TeacherPatch
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Trajectory

NO_LIMIT = 1 << 31
"""Tokens of a context that is only checked."""
_CURVE = re.compile(r"ablation-curve-world(\d+)-requests\d+-step(\d+)")
"""A name of `tested_name`, of trajectories of a validation."""


@dataclass(frozen=True)
class WorldSources:
    """Provide the training requests of one world, and held-out requests of others by their seeds."""

    training: RequestSource
    tested: Mapping[int, RequestSource]
    curves: bool = False
    """Whether validation requests are those of the tested worlds, instead of the training world's."""

    def train(self, index: int) -> Request:
        """Return the index-th training request."""
        return self.training.train(index)

    def __len__(self) -> int:
        """Return the number of training requests. Raises TypeError where the training world does not say it."""
        return len(self.training)  # type: ignore[arg-type]

    def validation(self, count: int) -> list[Request]:
        """Return validation requests: `count`, or as many of each tested world, one world after the other."""
        if not self.curves:
            return self.training.validation(count)
        return [request for source in self.tested.values() for request in source.validation(count)]

    def heldout(self, count: int) -> list[Request]:
        """Return held-out requests of every tested world, one world after the other."""
        return [request for source in self.tested.values() for request in source.heldout(count)]


def tested_worlds(config: EvolutionConfig, seeds: Sequence[int], store: RunStore) -> dict[int, RequestSource]:
    """Return the request sources of worlds with other seeds than that of the run."""
    found: dict[int, RequestSource] = {}
    for seed in seeds:
        world = {"config": config.requests.config | {"seed": seed}}
        found[seed] = config.requests.model_copy(update=world).build(store.images)
    return found


def tested_name(kind: str, world: int, requests: int, step: int) -> str:
    """Return the name under which trajectories of a world are kept.

    Other requests or another number of steps are another measurement, so the name contains them.
    """
    return f"ablation-{kind}-world{world}-requests{requests}-step{step:06d}"


@dataclass
class CurveEvolution(Evolution):
    """Run an evolution and keep the trajectories of its validations by world, for areas with intervals over requests."""

    worlds: Sequence[int] = ()
    """Worlds whose requests a validation consists of, in equal parts; none: nothing is kept."""
    check: Callable[[Trajectory], None] = field(default=lambda trajectory: None)
    """Raises for a student that saw experience."""

    async def evaluate(self, requests: Sequence[Request], split: str) -> list[Trajectory]:
        """Evaluate as the loop does, check that no student saw experience, and keep validations.

        Raises:
            UserFault: when the worlds have other numbers of validation requests than the run asks for.
        """
        kept = split == "validation" and bool(self.worlds)
        count = self.config.loop.validation_requests
        if kept and len(requests) != count * len(self.worlds):
            raise UserFault(
                f"{len(requests)} validation requests of {len(self.worlds)} test worlds: each needs "
                f"loop.validation_requests={count}"
            )
        found = await super().evaluate(requests, split)
        for trajectory in found:
            self.check(trajectory)
        if kept:
            for place, world in enumerate(self.worlds):
                name = tested_name("curve", world, count, self.store.last_step + 1)
                self.store.put_trajectories(name, found[place * count : (place + 1) * count])
        return found


def student_check(config: EvolutionConfig, model: Path) -> Callable[[Trajectory], None]:
    """Return a function that raises ExperienceLeakError for a student whose context holds experience."""
    from genevolve_ray.evolution.inprocess import load_chat

    return TeacherPatch(load_chat(model, config.date), config.protocol, NO_LIMIT).check_student


def scores_of(trajectories: Sequence[Trajectory], requests: Sequence[Request]) -> NDArray[np.float64]:
    """Return the score of each request, [M]; NaN where its sample failed from outside."""
    found = {t.key.request_id: _score(t) for t in trajectories}
    return np.array([found.get(request.id, math.nan) for request in requests], dtype=np.float64)


def curve_of(store: RunStore, world: int, count: int) -> tuple[list[int], NDArray[np.float64]] | None:
    """Return the validated steps of a run and the scores of a world's requests at them, [T, M].

    None where the run was not validated on that world at every step.

    Raises:
        StoreError: when trajectories of a validation are corrupt.
    """
    steps = [int(validation["step"]) for validation in store.validations()]
    names = [tested_name("curve", world, count, step) for step in steps]
    if not set(names) <= set(store.trajectory_names()):
        return None
    rows = [store.get_trajectories(name) for name in names]
    return (steps, np.array([[_score(t) for t in row] for row in rows], dtype=np.float64)) if rows else None


def validated_elsewhere(store: RunStore, worlds: Sequence[int]) -> bool:
    """Return whether a validation of a run had requests of other worlds than these; none stands for the training world."""
    found: dict[int, set[int]] = {int(validation["step"]): set() for validation in store.validations()}
    for match in filter(None, map(_CURVE.fullmatch, store.trajectory_names())):
        found.get(int(match[2]), set()).add(int(match[1]))
    return any(each != set(worlds) for each in found.values())


def areas(steps: Sequence[float], values_T_M: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the mean height of the curve of each request by the trapezoid rule, [M], None for fewer than two steps."""
    if len(steps) < 2:
        return None
    height = np.trapezoid(values_T_M, np.asarray(steps, dtype=float), axis=0) / (steps[-1] - steps[0])
    return np.asarray(height, dtype=np.float64)


def _score(trajectory: Trajectory) -> float:
    scored = trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)
    return trajectory.score if scored else math.nan
