"""Dynamic sampling: groups without variance give way to further requests, within a bound, and every step can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRequests, FakeRollouts, Scene, evolve, make_config, make_trajectory

from genevolve_ray.evolution.flow import DynamicSamplingConfig
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Termination, Trajectory
from genevolve_ray.records.usage import Usage


class Flat(FakeRollouts):
    """Every attempt at a request whose number is even has one reward; each costs a cent."""

    async def rollout(self, task: RolloutTask) -> Trajectory:
        trajectory = await super().rollout(task)
        number = int(task.request.id.rpartition("-")[2])
        trajectory.usage = {"judge": Usage(calls=1, money=0.01)}
        if number % 2 == 0:
            return make_trajectory_like(trajectory, 0.5)
        return make_trajectory_like(trajectory, 0.1 + 0.8 * task.key.sample)


def make_trajectory_like(trajectory: Trajectory, score: float) -> Trajectory:
    version = trajectory.ledger.versions[-1]
    made = make_trajectory(trajectory.key, Outcome.SCORED, score, version)
    made.usage = trajectory.usage
    return made


class Cycle(FakeRequests):
    """A source of few requests, which begins again."""

    def __init__(self, length: int) -> None:
        self.length = length

    def train(self, index: int) -> Request:
        return super().train(index % self.length)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def dynamic(rounds: int = 3, **changes: Any) -> Any:
    return make_config(dynamic_sampling={"rounds": rounds}, **changes)


def batches(evolution: Evolution) -> list[list[str]]:
    return [[g.request_id.removeprefix("train-") for g in m.groups] for m in evolution.store.manifests()]


async def test_a_step_takes_the_first_groups_with_variance(scene: Scene) -> None:
    evolution = scene.begin(dynamic(), Flat())
    await evolve(evolution)
    # Every second request teaches nothing: a step of two ends with the second odd request, and the next begins after it.
    assert batches(evolution) == [["1", "3"], ["5", "7"], ["9", "11"]]
    assert not evolution.store._persisted


async def test_what_is_dropped_counts_in_metrics_and_costs(scene: Scene) -> None:
    evolution = scene.begin(dynamic(steps=1), Flat())
    await evolve(evolution)
    [row] = evolution.store.metrics()
    assert (row["dynamic_groups_drawn"], row["dynamic_groups_dropped"], row["dynamic_groups_equal"]) == (4, 2, 0)
    assert (row["samples_consumed"], row["samples_dropped"], row["samples_leased"]) == (4, 4, 8)
    assert (row["samples_discarded"], row["discarded_fraction"]) == (0, 0)
    assert row["tokens_per_second"] * row["seconds_rollout"] == pytest.approx(row["policy_tokens"] + 8)
    assert (row["service_calls"], row["money"]) == (8, pytest.approx(0.08))
    assert (row["zero_variance_groups"], row["zero_variance_fraction"]) == (0, 0.5)
    assert (row["reward_mean"], row["drawn_reward_mean"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (row["samples_given_up"], row["dynamic_tokens_dropped"]) == (0, 8)


async def test_the_bound_completes_a_step_with_the_earliest_groups(scene: Scene) -> None:
    class AllFlat(Flat):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            return make_trajectory_like(await super().rollout(task), 0.5)

    evolution = scene.begin(dynamic(rounds=2, steps=2), AllFlat())
    await evolve(evolution)
    assert batches(evolution) == [["0", "1"], ["6", "7"]]
    assert [row["dynamic_groups_equal"] for row in evolution.store.metrics()] == [2, 2]
    assert [row["dynamic_groups_drawn"] for row in evolution.store.metrics()] == [6, 6]


async def test_a_source_without_new_requests_ends_the_refill(scene: Scene) -> None:
    evolution = scene.begin(dynamic(steps=2), Flat())
    evolution.requests = Cycle(3)  # one request of three teaches something
    await evolve(evolution)
    assert [("1" in batch, len(set(batch))) for batch in batches(evolution)] == [(True, 2), (True, 2)]
    rows = evolution.store.metrics()
    assert [row["dynamic_groups_equal"] for row in rows] == [1, 1]
    # A request that is open already is never played, so its samples are in no count.
    assert isinstance(evolution.rollouts, Flat)
    assert rows[-1]["samples_leased"] == len(evolution.rollouts.tasks)


async def test_too_few_requests_are_a_fault_with_the_key(scene: Scene) -> None:
    evolution = scene.begin(dynamic(steps=2, requests_per_step=3), Flat())
    evolution.requests = Cycle(2)
    with pytest.raises(StoreError, match=r"loop\.requests_per_step=3 is too many"):
        await evolve(evolution)


async def test_a_group_that_failed_from_outside_is_not_dropped() -> None:
    keys = [SampleKey(step=1, request_id="r", sample=i) for i in range(3)]
    settings = DynamicSamplingConfig(rounds=1)
    equal = Group("r", 1, [make_trajectory(key, Outcome.SCORED, 0.5) for key in keys])
    failed = Group("r", 1, [*equal.trajectories[:2], make_trajectory(keys[2], Outcome.INFRA_FAILURE)])
    assert (settings.drops(equal), settings.drops(failed)) == (True, False)
    near = Group("r", 1, [make_trajectory(k, Outcome.SCORED, 0.5 + 0.01 * k.sample) for k in keys])
    assert [DynamicSamplingConfig(rounds=1, spread=s).drops(near) for s in (0.0, 0.05)] == [False, True]


def too_long(key: SampleKey) -> Trajectory:
    made = make_trajectory(key, Outcome.INFRA_FAILURE)
    made.termination = Termination.PROMPT_TOO_LONG
    return made


@pytest.mark.parametrize(("rewards", "dropped"), [((), True), ((0.5,), True), ((0.5, 0.5), True), ((0.1, 0.9), False)])
def test_a_group_whose_prompts_do_not_fit_is_judged_by_its_other_samples(
    rewards: tuple[float, ...], dropped: bool
) -> None:
    keys = [SampleKey(step=1, request_id="r", sample=i) for i in range(3)]
    judged = [make_trajectory(key, Outcome.SCORED, reward) for key, reward in zip(keys, rewards, strict=False)]
    group = Group("r", 1, [*judged, *(too_long(key) for key in keys[len(rewards) :])])
    assert DynamicSamplingConfig(rounds=1).drops(group) is dropped
    assert not DynamicSamplingConfig(rounds=0).drops(group)


async def test_a_request_whose_prompt_does_not_fit_gives_way_to_another(scene: Scene) -> None:
    class Long(Flat):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            return too_long(task.key) if task.request.id == "train-1" else await super().rollout(task)

    evolution = scene.begin(dynamic(steps=1), Long())
    await evolve(evolution)
    assert batches(evolution) == [["3", "5"]]


@pytest.mark.parametrize("deterministic", [True, False])
async def test_an_interrupted_run_ends_as_one_that_was_not(scene: Scene, tmp_path: Path, deterministic: bool) -> None:
    options = {"deterministic": True, "engine": {"kind": "transformers"}} if deterministic else {}

    class Stop(Exception):
        pass

    class Interrupted(Flat):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            if task.request.id == "train-6":  # step 2: the group of request 5 is judged, that of 4 was dropped
                raise Stop
            return await super().rollout(task)

    first = scene.begin(dynamic(**options), Interrupted())
    with pytest.raises(BaseExceptionGroup):
        await evolve(first)
    assert first.store.committed_steps() == [1]
    resumed = scene.begin(dynamic(**options), Flat())
    await evolve(resumed)
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    whole = other.begin(dynamic(**options), Flat())
    await evolve(whole)
    assert [m.state_hash for m in resumed.store.manifests()] == [m.state_hash for m in whole.store.manifests()]
    assert batches(resumed) == batches(whole)
    replayed = other.begin(dynamic(**options), Flat(), FakeLearner())
    assert await replayed.start() == 3, "the stored batches give the committed state"
    other.close()


async def test_rollouts_beside_the_learner_are_replaced_too(scene: Scene) -> None:
    evolution = scene.begin(dynamic(mode="async", steps=6), Flat())
    await evolve(evolution)
    assert all(int(number) % 2 for batch in batches(evolution) for number in batch)
    for row in evolution.store.metrics():
        parts = [f"samples_{name}" for name in ("consumed", "discarded", "dropped", "buffered", "running")]
        assert row["samples_leased"] == sum(row[p] for p in parts)
