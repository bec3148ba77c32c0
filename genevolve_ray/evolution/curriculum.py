"""Curriculum by pass rate: requests are drawn by how well the policy does on them, those of middle difficulty first.

GRPO learns from the differences within a group. A request that the policy always or never solves has none, so that its
rollouts are spent for nothing. The curriculum keeps a running mean of the reward of each request in a pool, and draws
the requests of a round without replacement by weights that prefer means near a target.

A round is planned when its first lease begins, from the means of the committed steps alone. Plans that have open leases
are part of the state, which every step's manifest holds. A resumed run therefore draws the same requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from operator import length_hint
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.flow import FlowState
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Group

if TYPE_CHECKING:
    from genevolve_ray.evolution.config import EvolutionConfig
    from genevolve_ray.evolution.ports import RequestSource
    from genevolve_ray.evolution.store.run import RunStore


class RequestCurriculumConfig(Config):
    """Configure the curriculum: a request with running mean m has weight max(floor, exp(-((m - target) / width)^2 / 2)).

    A request that was not drawn yet has weight 1.
    """

    pool: int = Field(default=0, ge=0)
    """Requests to choose from: the first ones of the training source. 0 takes all requests in the order of the source."""
    target: float = Field(default=0.5, ge=0, le=1)
    """Mean reward, or share of attempts that pass, of the requests that are preferred."""
    width: float = Field(default=0.2, gt=0)
    """Distance from the target over which the weight falls to 0.61."""
    floor: float = Field(default=0.05, gt=0, le=1)
    """Least weight, so that every request is drawn again and its mean stays of use."""
    pass_at: float | None = Field(default=None, gt=0, le=1)
    """Reward from which an attempt passes; the mean is then over passes. None takes the rewards themselves."""
    newest: float = Field(default=0.5, gt=0, le=1)
    """Weight of the newest group in the running mean; the rest is that of the groups before."""

    def measure(self, scores: Sequence[float]) -> float:
        """Return the mean reward of a group, or the share of its attempts that pass."""
        return fmean(scores if self.pass_at is None else (float(s >= self.pass_at) for s in scores))

    def weight(self, mean: float | None) -> float:
        """Return the weight of a request with a running mean, None before its first draw."""
        if mean is None:
            return 1.0
        # Far beyond the floor; the square of a greater number would overflow.
        distance = min(abs(mean - self.target) / self.width, 1e9)
        return max(self.floor, math.exp(-(distance**2) / 2))


class CurriculumState(Record):
    """Record a curriculum at the end of a step: running means and plans, which name requests by place in the pool."""

    means: dict[int, float] = {}
    planned: int = 0
    """The last round that was planned; rounds count from 1."""
    plans: dict[int, tuple[int, ...]] = {}
    """Plans of the rounds with leases that are open or still to begin."""


class CurriculumRequests:
    """Serve the requests of a source in the order of a curriculum; validation and held-out requests stay the source's."""

    def __init__(
        self,
        source: RequestSource,
        config: RequestCurriculumConfig,
        *,
        seed: int,
        size: int,
        state: CurriculumState | None = None,
    ) -> None:
        """Begin, or resume from a state.

        Args:
            source: poses the requests.
            config: the settings, with a pool.
            seed: the run's seed.
            size: requests of a round.
            state: that of the last committed step.

        Raises:
            UserFault: for a pool of more requests than the source says that it has.
        """
        check_pool(source, config)
        state = state or CurriculumState()
        self._source, self._config, self._seed, self._size = source, config, seed, size
        self._means, self._plans, self._planned = dict(state.means), dict(state.plans), state.planned
        self._heard = 0
        """The last step whose groups were taken; a step that is learned again is not heard twice."""

    def train(self, index: int) -> Request:
        """Return the request of lease `index`. Raises KeyError for a round whose leases are all closed."""
        return self._source.train(self._place(index))

    def validation(self, count: int) -> list[Request]:
        """Return the first `count` validation requests of the source."""
        return self._source.validation(count)

    def heldout(self, count: int) -> list[Request]:
        """Return the first `count` held-out requests of the source."""
        return self._source.heldout(count)

    def hear(self, step: int, drawn: Mapping[int, Group]) -> dict[str, float]:
        """Take the groups of a step, by lease, into the running means, once; groups without a reward say nothing.

        Returns:
            The share of the pool that was drawn so far, and the mean of the running means.
        """
        for number, group in sorted(drawn.items() if step > self._heard else ()):
            if scores := group.scores():
                place, value = self._place(number), self._config.measure(scores)
                before = self._means.get(place, value)
                self._means[place] = before + self._config.newest * (value - before)
        self._heard = step
        means = list(self._means.values())
        drawn_fraction = len(means) / self._config.pool
        return {"curriculum_drawn_fraction": drawn_fraction, "curriculum_mean": fmean(means) if means else 0.0}

    def state(self, flow: FlowState) -> CurriculumState:
        """Return the state, and forget the plans of rounds that have no open lease and none to begin."""
        first = min([*flow.open, flow.next_lease]) // self._size + 1
        self._plans = {number: plan for number, plan in self._plans.items() if number >= first}
        return CurriculumState(means=dict(sorted(self._means.items())), planned=self._planned, plans=self._plans)

    def _place(self, number: int) -> int:
        """Return the place in the pool of a lease, after planning all rounds up to its own in their order."""
        wanted = number // self._size + 1
        while self._planned < wanted:
            self._planned += 1
            self._plans[self._planned] = self._plan(self._planned)
        return self._plans[wanted][number % self._size]

    def _plan(self, number: int) -> tuple[int, ...]:
        """Draw the places of a round by weight, without replacement.

        The smallest of independent exponential variables with these rates is each place with its share of the weights, and
        so on among the others. Requests of open rounds are left out where enough others remain: a step takes one group of
        a request. A source may have one request at two places, so places with equal requests are drawn as one.
        """
        taken = {place for plan in self._plans.values() for place in plan}
        rng = np.random.default_rng(derive_seed(self._seed, "curriculum", number))
        uniform = rng.random(self._config.pool)
        # One number for each place of the pool, so that the draw of a place does not depend on which others are left out.
        pool = range(self._config.pool)
        arrival = [-math.log1p(-uniform[p]) / self._config.weight(self._means.get(p)) for p in pool]
        order = sorted(pool, key=lambda place: (arrival[place], place))
        posed = {self._source.train(place).id for place in taken}
        drawn = self._different([place for place in order if place not in taken], posed)
        if len(drawn) < self._size:
            drawn = self._different(order, set())
        # A round that is still short repeats requests, which is an error when its first lease begins.
        return tuple([*drawn, *(place for place in order if place not in drawn)][: self._size])

    def _different(self, order: Sequence[int], posed: Set[str]) -> list[int]:
        """Return the first places of a round whose requests differ from each other and from those in `posed`."""
        drawn: dict[str, int] = {}
        for place in order:
            if len(drawn) == self._size:
                break
            if (name := self._source.train(place).id) not in posed:
                drawn.setdefault(name, place)
        return list(drawn.values())


def check_pool(source: RequestSource, config: RequestCurriculumConfig) -> None:
    """Check that a source has the requests of a pool. Raises UserFault where it says that it has fewer."""
    length = length_hint(source, config.pool)
    if config.pool > length:
        raise UserFault(f"loop.curriculum.pool={config.pool} exceeds the {length} training requests of the source")


def follow_curriculum(
    requests: RequestSource, config: EvolutionConfig, store: RunStore, version: int
) -> RequestSource | CurriculumRequests:
    """Return the requests of a run in the order of its curriculum after a committed step; the source itself without one."""
    loop = config.loop
    if not loop.curriculum.pool:
        return requests
    kept = store.manifest(version).loop.get("curriculum") if version else None
    state = CurriculumState.model_validate(kept) if kept else None
    return CurriculumRequests(requests, loop.curriculum, seed=config.seed, size=loop.requests_per_step, state=state)
