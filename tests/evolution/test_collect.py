"""From requests to judged groups."""

from __future__ import annotations

import asyncio

import pytest
from loop_fakes import FakeRequests, FakeRollouts

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.collect import collect_group, evaluate, gather_or_cancel
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory

SAMPLING = SamplingParams(temperature=0.9)


async def collect(rollouts: FakeRollouts, step: int = 1, **changes: int) -> Group:
    settings = {"run_seed": 5, "group_size": 3, "max_attempts": 2} | changes
    return await collect_group(FakeRequests().train(0), step, rollouts, sampling=SAMPLING, **settings)


async def test_a_group_has_one_render_seed_and_a_seed_a_sample() -> None:
    rollouts = FakeRollouts()
    group = await collect(rollouts)
    assert [t.key.sample for t in group.trajectories] == [0, 1, 2]
    assert len({task.render_seed for task in rollouts.tasks}) == 1
    assert len({task.seed for task in rollouts.tasks}) == 3
    assert {task.sampling for task in rollouts.tasks} == {SAMPLING}
    assert all(task.experience is None and task.split == "train" for task in rollouts.tasks)


async def test_seeds_depend_on_run_and_step() -> None:
    seeds = []
    for step, run_seed in ((1, 5), (2, 5), (1, 6)):
        rollouts = FakeRollouts()
        await collect(rollouts, step, run_seed=run_seed)
        seeds.append({task.seed for task in rollouts.tasks} | {task.render_seed for task in rollouts.tasks})
    assert len(set.union(*seeds)) == 3 * 4


async def test_only_infrastructure_failures_are_drawn_again() -> None:
    def outcome(task: RolloutTask) -> Outcome:
        return (Outcome.SCORED, Outcome.POLICY_FAILURE, Outcome.INFRA_FAILURE)[task.key.sample]

    group = await collect(FakeRollouts(outcome))
    assert [(t.key.sample, t.key.attempt) for t in group.trajectories] == [(0, 0), (1, 0), (2, 0), (2, 1)]
    assert group.samples == 3
    assert len(group.scores()) == 2


async def test_attempts_are_bounded_and_each_has_its_own_seed() -> None:
    rollouts = FakeRollouts(lambda task: Outcome.INFRA_FAILURE)
    group = await collect(rollouts, group_size=1, max_attempts=4)
    assert [t.key.attempt for t in group.trajectories] == [0, 1, 2, 3]
    assert len({task.seed for task in rollouts.tasks}) == 4
    assert group.scores() == []


async def test_the_first_error_cancels_the_rest() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(ExceptionGroup) as caught:
        await gather_or_cancel([endless(), fail()])
    assert caught.group_contains(KeyError)
    assert ended == ["cancelled"]


async def score(rollouts: FakeRollouts, count: int = 8, **changes: object) -> list[Trajectory]:
    settings: dict[str, object] = {"run_seed": 5, "sampling": SAMPLING, "split": "heldout"} | changes
    return await evaluate(FakeRequests().heldout(count), rollouts, **settings)  # type: ignore[arg-type]


async def test_an_evaluation_keeps_the_order_of_requests() -> None:
    trajectories = await score(FakeRollouts())
    assert [t.key.request_id for t in trajectories] == [f"heldout-{i}" for i in range(8)]


async def test_two_evaluations_meet_the_same_dice() -> None:
    first, second = FakeRollouts(), FakeRollouts()
    await score(first)
    await score(second, in_flight=2)
    dice = [{(t.request.id, t.seed, t.render_seed) for t in rollouts.tasks} for rollouts in (first, second)]
    assert dice[0] == dice[1]
    assert len(dice[0]) == 8


async def test_an_evaluation_is_not_wider_than_it_may_be() -> None:
    rollouts, inside, widest = FakeRollouts(), 0, 0

    async def count(task: RolloutTask) -> None:
        nonlocal inside, widest
        inside += 1
        widest = max(widest, inside)
        await asyncio.sleep(0)
        inside -= 1

    rollouts.before = count
    await score(rollouts, in_flight=3)
    assert widest == 3


async def test_an_evaluation_keeps_the_last_attempt() -> None:
    def second_try(task: RolloutTask) -> Outcome:
        return Outcome.SCORED if task.key.attempt == 1 else Outcome.INFRA_FAILURE

    trajectories = await score(FakeRollouts(second_try), count=2)
    assert [(t.key.attempt, t.outcome) for t in trajectories] == [(1, Outcome.SCORED)] * 2


async def test_tasks_can_be_adjusted() -> None:
    rollouts = FakeRollouts()
    await score(rollouts, adjust=lambda task: task.model_copy(update={"split": "bench"}))
    assert {task.split for task in rollouts.tasks} == {"bench"}


def test_a_training_rollout_that_carries_experience_is_refused() -> None:
    key = SampleKey(step=1, request_id="r", sample=0)
    task = {"request": FakeRequests().train(0), "key": key, "seed": 0, "render_seed": 0, "sampling": SAMPLING}
    guidance = Experience(search_strategy=("search facts",))
    assert RolloutTask(**task, experience=guidance, split="bench").experience == guidance
    with pytest.raises(ValueError, match="1/r/0/0 carries experience"):
        RolloutTask(**task, experience=guidance)
