"""Rollouts beside the learner: what a step takes, what becomes too old, what is given up, and what a restart keeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Scene, evolve, make_config, make_trajectory

from genevolve_ray.evolution.flow import oldest_version
from genevolve_ray.evolution.ports import Parts, RolloutTask
from genevolve_ray.evolution.telemetry.watching import Unheard
from genevolve_ray.records.experience import Lesson
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


class Dice:
    """A simulated clock: everything takes a random number of turns of the event loop."""

    def __init__(self, seed: int, longest: int = 40) -> None:
        self.random, self.longest = random.Random(seed), longest

    async def wait(self) -> None:
        for _ in range(int(self.longest ** self.random.random())):
            await asyncio.sleep(0)


class SlowRollouts(FakeRollouts):
    """Two turns an attempt, each sampled by the version of its moment."""

    def __init__(self, dice: Dice) -> None:
        super().__init__()
        self.dice, self.running = dice, 0

    async def rollout(self, task: RolloutTask) -> Trajectory:
        self.tasks.append(task)
        self.running += 1
        await self.dice.wait()
        first = self.version
        await self.dice.wait()
        trajectory = make_trajectory(task.key, Outcome.SCORED, task.seed % 1000 / 1000, first)
        trajectory.ledger.versions[-1] = self.version
        await self.dice.wait()  # render and judge
        self.running -= 1
        return trajectory


class SlowLearner(FakeLearner):
    """Notes how much was under way while it worked, and how old its tokens were."""

    def __init__(self, dice: Dice, rollouts: SlowRollouts) -> None:
        super().__init__()
        self.dice, self.rollouts = dice, rollouts
        self.beside: list[int] = []
        self.ages: list[int] = []

    async def step(
        self,
        groups: Sequence[Group],
        step: int,
        lessons: Sequence[Lesson] = (),
        parts: Parts = (),
        redraws: Sequence[Group] = (),
    ) -> dict[str, float]:
        self.beside.append(self.rollouts.running)
        self.ages += [step - 1 - (oldest_version(*g.trajectories) or 0) for g in groups]
        await self.dice.wait()
        return await super().step(groups, step, lessons, parts, redraws)


@pytest.mark.parametrize("staleness", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
async def test_no_token_is_older_than_allowed(scene: Scene, staleness: int, seed: int) -> None:
    dice = Dice(seed)
    rollouts = SlowRollouts(dice)
    learner = SlowLearner(dice, rollouts)
    config = make_config(mode="async", max_staleness=staleness, steps=30, requests_per_step=3)
    evolution = scene.begin(config, rollouts, learner)
    await evolve(evolution)
    assert len(learner.ages) == 30 * 3
    assert 0 < max(learner.ages) <= staleness
    rows = evolution.store.metrics()
    for row in rows:
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[p] for p in parts)
        assert row["staleness_max"] <= staleness
    assert sum(bool(n) for n in learner.beside) > 20
    used = [path for m in evolution.store.manifests() for path in (g.path for g in m.groups)]
    assert len(used) == len(set(used)) == 90
    assert not evolution.store._persisted, "what is used or given up is let go"


async def test_the_synchronous_loop_draws_nothing_beside_the_learner(scene: Scene) -> None:
    dice = Dice(1)
    rollouts = SlowRollouts(dice)
    learner = SlowLearner(dice, rollouts)
    await evolve(scene.begin(make_config(), rollouts, learner))
    assert learner.beside == [0, 0, 0]
    assert set(learner.ages) == {0}
    assert [[g.request_id for g in groups] for groups in learner.seen] == [
        ["train-0", "train-1"],
        ["train-2", "train-3"],
        ["train-4", "train-5"],
    ]


class Ear(Unheard):
    """Keeps every count of samples that it hears."""

    def __init__(self) -> None:
        self.heard: list[dict[str, int]] = []

    def samples(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self.heard.append(dict(counts()))


async def test_telemetry_hears_of_samples_as_soon_as_they_run_and_until_a_step_has_them(scene: Scene) -> None:
    dice, ear = Dice(1), Ear()
    rollouts = SlowRollouts(dice)
    evolution = scene.begin(make_config(), rollouts, SlowLearner(dice, rollouts))
    evolution.listener = ear
    await evolve(evolution)
    first, last = ear.heard[0], evolution.store.metrics()[-1]
    assert first["running"] == first["leased"] > 0
    assert max(counts["buffered"] for counts in ear.heard) > 0
    assert {f"samples_{state}": count for state, count in ear.heard[-1].items()}.items() <= last.items()


async def test_a_straggler_holds_up_nobody(scene: Scene) -> None:
    rollouts, stuck = FakeRollouts(), asyncio.Event()

    async def hang(task: RolloutTask) -> None:
        if task.key.request_id == "train-1":
            await stuck.wait()

    rollouts.before = hang
    evolution = scene.begin(make_config(mode="async", max_staleness=2, steps=3), rollouts)
    async with asyncio.timeout(10):
        version = await evolution.start()
        running = asyncio.create_task(evolution.run(version))
        while len(evolution.store.committed_steps()) < 2:
            await asyncio.sleep(0)
        stuck.set()
        await running
    taken = [g.request_id for m in evolution.store.manifests()[:2] for g in m.groups]
    assert "train-1" not in taken


async def test_a_group_that_came_too_late_is_discarded_and_replaced(scene: Scene) -> None:
    rollouts, learner, stuck = FakeRollouts(), FakeLearner(), asyncio.Event()

    class Old(FakeRollouts):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            version = self.version
            if task.key.request_id == "train-1":
                await stuck.wait()
            trajectory = await super().rollout(task)
            trajectory.ledger.versions[3:] = [version, version]
            return trajectory

    rollouts = Old()
    config = make_config(mode="async", max_staleness=1, steps=6)
    evolution = scene.begin(config, rollouts, learner)
    async with asyncio.timeout(10):
        version = await evolution.start()
        running = asyncio.create_task(evolution.run(version))
        while len(evolution.store.committed_steps()) < 2:
            await asyncio.sleep(0)
        stuck.set()
        await running
    assert "train-1" not in {g.request_id for groups in learner.seen for g in groups}
    last = evolution.store.metrics()[-1]
    assert last["samples_discarded"] == 2
    assert last["discarded_fraction"] == pytest.approx(2 / last["samples_leased"])


async def test_a_sample_past_its_deadline_is_given_up_and_counted(scene: Scene) -> None:
    rollouts, learner = FakeRollouts(), FakeLearner()

    async def hang(task: RolloutTask) -> None:
        if (task.key.request_id, task.key.sample) == ("train-0", 1):
            await asyncio.Event().wait()

    rollouts.before = hang
    evolution = scene.begin(make_config(group_size=3, sample_deadline=0.05), rollouts, learner)
    await evolve(evolution)
    assert [len(g.trajectories) for g in learner.seen[0]] == [2, 3]
    assert evolution.store.metrics()[0]["samples_discarded"] == 1


async def test_a_group_goes_on_without_its_stragglers_before_it_would_be_too_old(scene: Scene) -> None:
    rollouts, learner = FakeRollouts(), FakeLearner()

    async def hang(task: RolloutTask) -> None:
        if (task.key.request_id, task.key.sample) == ("train-1", 0):
            await asyncio.Event().wait()

    rollouts.before = hang
    evolution = scene.begin(make_config(mode="async", group_size=3, max_staleness=2, steps=5), rollouts, learner)
    async with asyncio.timeout(10):
        await evolve(evolution)
    seen = {
        g.request_id: (step, [t.key.sample for t in g.trajectories])
        for step, groups in enumerate(learner.seen, 1)
        for g in groups
    }
    assert seen["train-1"] == (3, [1, 2])
    assert evolution.store.metrics()[-1]["samples_discarded"] == 1


async def test_a_sample_that_ends_too_old_is_left_out_of_its_group(scene: Scene) -> None:
    learner, stuck = FakeLearner(), asyncio.Event()

    class Mixed(FakeRollouts):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            begun = self.version
            if task.key.request_id == "train-1":
                await stuck.wait()
            trajectory = await super().rollout(task)
            if (task.key.request_id, task.key.sample) == ("train-1", 0):
                trajectory.ledger.versions[3:] = [begun, begun]
            return trajectory

    evolution = scene.begin(make_config(mode="async", group_size=3, max_staleness=1, steps=6), Mixed(), learner)
    async with asyncio.timeout(10):
        version = await evolution.start()
        running = asyncio.create_task(evolution.run(version))
        while len(evolution.store.committed_steps()) < 3:
            await asyncio.sleep(0)
        stuck.set()
        await running
    [late] = [g for groups in learner.seen for g in groups if g.request_id == "train-1"]
    assert [t.key.sample for t in late.trajectories] == [1, 2]
    assert evolution.store.metrics()[-1]["samples_discarded"] == 1


async def test_a_rollouts_own_time_out_is_no_lateness(scene: Scene) -> None:
    rollouts = FakeRollouts()

    async def fail(task: RolloutTask) -> None:
        raise TimeoutError("the engine's own")

    rollouts.before = fail
    with pytest.raises(ExceptionGroup) as caught:
        await evolve(scene.begin(make_config(), rollouts))
    assert caught.group_contains(TimeoutError, match="the engine's own")


async def test_no_more_samples_run_than_there_are_slots(scene: Scene) -> None:
    rollouts, seen = FakeRollouts(), [0]
    running = 0

    async def count(task: RolloutTask) -> None:
        nonlocal running
        running += 1
        seen.append(running)
        await Dice(task.seed).wait()
        running -= 1

    rollouts.before = count
    await evolve(scene.begin(make_config(mode="async", max_running=3, requests_per_step=4), rollouts))
    assert max(seen) == 3


async def test_what_a_rollout_raises_ends_the_run(scene: Scene) -> None:
    rollouts = FakeRollouts()

    async def fail(task: RolloutTask) -> None:
        if task.key.request_id == "train-2":
            raise RuntimeError("no such thing")

    rollouts.before = fail
    with pytest.raises(ExceptionGroup) as caught:
        await evolve(scene.begin(make_config(mode="async"), rollouts))
    assert caught.group_contains(RuntimeError, match="no such thing")


class Killed(Exception):
    """The process died here."""


@pytest.mark.parametrize("seed", range(6))
async def test_a_run_that_dies_again_and_again_uses_every_judged_group_once(scene: Scene, seed: int) -> None:
    config = make_config(mode="async", max_staleness=2, steps=12, requests_per_step=3, checkpoint_every=3)
    dice = Dice(seed)
    for _ in range(40):
        rollouts = SlowRollouts(dice)
        learner = SlowLearner(dice, rollouts)
        left = dice.random.randrange(4, 60)

        class Mortal(SlowRollouts):
            async def rollout(self, task: RolloutTask) -> Trajectory:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return await super().rollout(task)

        mortal = Mortal(dice)
        learner.rollouts = mortal
        evolution = scene.begin(config, mortal, learner)
        try:
            await evolve(evolution)
            break
        except BaseExceptionGroup as error:
            assert error.subgroup(Killed) is not None
    else:
        pytest.fail("never came to its end")
    manifests = evolution.store.manifests()
    assert [m.step for m in manifests] == list(range(1, 13))
    used = [g.path for m in manifests for g in m.groups]
    assert len(used) == len(set(used)) == 36
    requests = [g.request_id for m in manifests for g in m.groups]
    assert len(set(requests)) == 36


async def test_groups_of_a_version_that_was_never_committed_are_discarded(scene: Scene) -> None:
    config = make_config(mode="async", max_staleness=2, steps=4)
    first = scene.begin(config)
    foreign = Group("train-0", 1, [make_trajectory(t.key, version=7) for t in _attempts("train-0")])
    known = Group("train-1", 1, [make_trajectory(t.key, version=0) for t in _attempts("train-1")])
    first.store.put_group(foreign, 7)
    first.store.put_group(known, 0)
    learner = FakeLearner()
    evolution = scene.begin(config, learner=learner)
    await evolve(evolution)
    seen = [g for groups in learner.seen for g in groups]
    assert known in seen
    assert foreign not in seen
    assert evolution.store.metrics()[-1]["samples_discarded"] == 2


def _attempts(request_id: str) -> list[Trajectory]:
    return [make_trajectory(SampleKey(step=1, request_id=request_id, sample=i)) for i in range(2)]
