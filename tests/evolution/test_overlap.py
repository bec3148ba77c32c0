"""The learner adds complete groups while the last rollouts run; what it was given is recorded and applied again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Recorder, Scene, evolve, make_config, make_trajectory

from genevolve_ray.cluster.config import PlacedConfig
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.outage import Patience
from genevolve_ray.evolution.overlap import Overlap, stored_parts
from genevolve_ray.evolution.ports import ExperienceStep, LearnerLost, RolloutTask
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory

SMALL = {"token_budget": 10}
"""The two samples of one group of these tests have ten tokens."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


class WaitingLearner(FakeLearner):
    """Sets `worked` when it has added a first part of a step; `fault` is raised by that part."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__()
        self.worked, self.fault = asyncio.Event(), fault

    async def accumulate(self, groups: Sequence[Group], step: int) -> None:
        await super().accumulate(groups, step)
        self.worked.set()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault


class LastRollouts(FakeRollouts):
    """The requests with odd numbers wait until the learner has worked on a part of the step."""

    def __init__(self, learner: WaitingLearner, outcome: Any = lambda task: Outcome.SCORED) -> None:
        super().__init__(outcome)
        self.learner = learner

    async def rollout(self, task: RolloutTask) -> Trajectory:
        if int(task.key.request_id.split("-")[1]) % 2:
            await self.learner.worked.wait()
        return await super().rollout(task)

    async def update(self, weights: Any) -> float:
        self.learner.worked.clear()
        return await super().update(weights)


def begin(scene: Scene, learner: WaitingLearner | None = None, **changes: Any) -> tuple[Evolution, WaitingLearner]:
    learner = learner or WaitingLearner()
    config = make_config(overlap=True, learner=SMALL, **changes)
    return scene.begin(config, LastRollouts(learner), learner), learner


async def test_a_complete_group_is_added_before_the_last_rollout_ends(scene: Scene) -> None:
    evolution, learner = begin(scene)
    async with asyncio.timeout(10):
        await evolve(evolution)
    assert learner.early == [(1, ["train-0"]), (2, ["train-2"]), (3, ["train-4"])]
    assert learner.parts == [(("train-0",),), (("train-2",),), (("train-4",),)]
    assert [[g.request_id for g in groups] for groups in learner.seen][0] == ["train-0", "train-1"]
    assert [stored_parts(evolution.store, step) for step in (1, 2, 3)] == learner.parts
    rows = evolution.store.metrics()
    assert all(row["seconds_overlapped"] >= 0 for row in rows)


@pytest.mark.parametrize(
    "changes",
    [{"overlap": False}, {"experience": {"enabled": True}}, {"learner": {"token_budget": 100}}],
    ids=["off", "experience", "too few tokens"],
)
async def test_the_learner_waits_for_the_whole_batch(scene: Scene, changes: dict[str, Any]) -> None:
    learner = FakeLearner()
    evolution = scene.begin(make_config(**{"overlap": True, "learner": SMALL} | changes), learner=learner)
    await evolve(evolution)
    assert (learner.early, set(learner.parts)) == ([], {()})
    assert "parts" not in evolution.store.manifest(1).loop


async def test_a_resumed_run_applies_the_same_parts_again(scene: Scene) -> None:
    evolution, _ = begin(scene, steps=2)
    await evolve(evolution)
    (first,) = [m.state_hash for m in evolution.store.manifests()][-1:]
    scene.close()
    # The last step wrote a checkpoint: without it both steps are applied again.
    for kept in (scene.folder / "run" / "checkpoints").glob("*.json"):
        kept.unlink()
    again, learner = begin(scene, steps=2)
    await again.start()
    assert learner.early == []
    assert learner.parts == [(("train-0",),), (("train-2",),)]
    assert learner.state == first


async def test_steps_without_a_record_were_learned_as_a_whole(scene: Scene) -> None:
    evolution = scene.begin(make_config(steps=1))
    await evolve(evolution)
    assert stored_parts(evolution.store, 1) == ()


async def test_a_group_that_is_drawn_again_after_an_outage_drops_what_was_added(scene: Scene) -> None:
    learner = WaitingLearner()
    down = True

    def outcome(task: RolloutTask) -> Outcome:
        # Two failures of the policy can be compared, and the third sample waits for its judge.
        if task.key.request_id == "train-0" and task.key.sample < 2:
            return Outcome.POLICY_FAILURE
        return Outcome.INFRA_FAILURE if down else Outcome.SCORED

    async def mend(seconds: float) -> None:
        nonlocal down
        down = False

    config = make_config(overlap=True, learner=SMALL, group_size=3, max_attempts=1, steps=1)
    evolution = scene.begin(config, LastRollouts(learner, outcome), learner)
    evolution.patience = Patience(100, evolution.monitor, sleep=mend)
    async with asyncio.timeout(10):
        await evolve(evolution)
    assert learner.early == [(1, ["train-0"])]
    assert learner.parts == [()], "the batch has other samples of the request"
    assert [len(g.scores()) for g in learner.seen[0]] == [3, 3]


async def test_a_learner_lost_in_a_part_learns_the_whole_batch(scene: Scene) -> None:
    evolution, learner = begin(scene, WaitingLearner(LearnerLost("died in a part")))
    async with asyncio.timeout(10):
        await evolve(evolution)
    assert learner.restarts == 1
    assert learner.parts == [(), (("train-2",),), (("train-4",),)]
    assert evolution.store.last_step == 3
    assert isinstance(evolution.monitor, Recorder)
    assert any("died in a part" in note for note in evolution.monitor.notes)


async def test_a_learner_lost_after_its_step_learns_the_same_parts_again(scene: Scene) -> None:
    class LostOnce(WaitingLearner):
        async def publish(self, version: int) -> Any:
            if version == 1 and not self.restarts:
                raise LearnerLost("died")
            return await super().publish(version)

    evolution, learner = begin(scene, LostOnce(), steps=1)
    async with asyncio.timeout(10):
        await evolve(evolution)
    assert learner.parts == [(("train-0",),)] * 2, "engines may hold the weights of the first try"


async def test_what_the_learner_raises_in_a_part_ends_the_run(scene: Scene) -> None:
    evolution, _ = begin(scene, WaitingLearner(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        async with asyncio.timeout(10):
            await evolve(evolution)
    assert evolution.store.last_step == 0


async def test_groups_that_complete_while_the_learner_works_are_its_next_part() -> None:
    class Slow(FakeLearner):
        gate = asyncio.Event()

        async def accumulate(self, groups: Sequence[Group], step: int) -> None:
            await super().accumulate(groups, step)
            await self.gate.wait()

    learner = Slow()
    groups = [make_group(name) for name in "abcd"]
    overlap = Overlap(learner, tokens=10)
    overlap.begin(4)
    for count in (1, 2, 3):
        overlap.offer(groups[:count])
        await asyncio.sleep(0)
    learner.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert learner.early == [(4, ["a"]), (4, ["b", "c"])]
    assert await overlap.settle(groups) == (("a",), ("b", "c"))


async def test_a_group_without_a_comparison_is_left_to_the_rest() -> None:
    learner = FakeLearner()
    overlap = Overlap(learner, tokens=1)
    overlap.offer([make_group("a", Outcome.INFRA_FAILURE)])
    await asyncio.sleep(0)
    assert learner.early == []
    assert await overlap.settle([]) == ()


def make_group(name: str, outcome: Outcome = Outcome.SCORED) -> Group:
    keys = [SampleKey(step=1, request_id=name, sample=i) for i in range(2)]
    return Group(name, 1, [make_trajectory(key, outcome) for key in keys])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "async"}, "loop.overlap=true needs loop.mode=sync"),
        (
            {"deterministic": True, "engine": {"kind": "transformers"}},
            "deterministic=true needs .*without .*loop.overlap",
        ),
    ],
)
def test_modes_in_which_nothing_may_overlap_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(overlap=True, **changes)


class Gauge:
    """An experience port that says which groups it has compared, in turn."""

    def __init__(self) -> None:
        self.compared, self.calls = asyncio.Event(), list[tuple[str, list[str], int]]()
        self.fault: Exception | None = None

    async def prepare(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> None:
        assert [r.id for r in requests] == [g.request_id for g in groups]
        self.calls.append(("prepare", [g.request_id for g in groups], step))
        self.compared.set()
        if self.fault is not None:
            raise self.fault

    async def learn(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> ExperienceStep:
        self.calls.append(("learn", [g.request_id for g in groups], step))
        self.compared.clear()
        return ExperienceStep()

    async def snapshot(self) -> bytes:
        return ExperienceMemory().snapshot()


def with_experience(scene: Scene, gauge: Gauge, max_pairs: int = 8) -> Evolution:
    """Begin a step of three requests, of which the last waits for a comparison where one may come early."""
    rollouts = FakeRollouts()

    async def wait(task: RolloutTask) -> None:
        if max_pairs == 8 and task.key.request_id == "train-2":
            await gauge.compared.wait()

    rollouts.before = wait
    experience = {"enabled": True, "max_pairs": max_pairs}
    config = make_config(overlap=True, steps=1, requests_per_step=3, experience=experience)
    return scene.begin(config, rollouts, experience=gauge)  # type: ignore[arg-type]


async def test_groups_are_compared_before_the_last_rollout_ends(scene: Scene) -> None:
    gauge = Gauge()
    async with asyncio.timeout(10):
        await evolve(with_experience(scene, gauge))
    assert gauge.calls == [
        ("prepare", ["train-0"], 1),
        ("prepare", ["train-1"], 1),
        ("learn", ["train-0", "train-1", "train-2"], 1),
    ]


async def test_nothing_is_compared_early_that_might_be_left_out(scene: Scene) -> None:
    gauge = Gauge()
    await evolve(with_experience(scene, gauge, max_pairs=2))
    assert [name for name, *_ in gauge.calls] == ["learn"]


async def test_what_a_comparison_raises_ends_the_run(scene: Scene) -> None:
    gauge = Gauge()
    gauge.fault = RuntimeError("wrong token")
    evolution = with_experience(scene, gauge)
    with pytest.raises(RuntimeError, match="wrong token"):
        await evolve(evolution)
    assert evolution.store.last_step == 0


def test_each_rank_of_the_learner_begins_with_a_micro_batch() -> None:
    config = make_config(overlap=True, learner=SMALL)
    placed = PlacedConfig.model_validate(config.model_dump(mode="json") | {"cluster": {"learner_ranks": 4}})
    assert (config.part_tokens, placed.part_tokens) == (10, 40)
