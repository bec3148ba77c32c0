"""Outages of outside services: whole steps, validations and lessons are tried again, until the run has no patience."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRequests, FakeRollouts, Recorder, Scene, evolve, make_config, make_trajectory

from genevolve_ray.errors import InfraFailure, OutageError, UserFault, as_ending
from genevolve_ray.evolution.experience import LocalExperience
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.outage import LONGEST_WAIT, Patience, is_lost
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.store.lessons import stored_lessons
from genevolve_ray.experience.config import ExperienceConfig
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Outcome, Pair, SampleKey, Termination, Trajectory
from genevolve_ray.remote.client import ServiceRefusal, UnusableAnswer


class Clock:
    """Seconds that pass only while a run waits."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(scene: Scene, clock: Clock, rollouts: FakeRollouts, *arguments: Any, **changes: Any) -> Evolution:
    """Begin a run whose waits take no time."""
    config = make_config(**changes)
    evolution = scene.begin(config, rollouts, *arguments)
    evolution.patience = Patience(config.loop.outage_limit, evolution.monitor, clock.now, clock.sleep)
    return evolution


def down_until(clock: Clock, seconds: float, since: float = 0.0) -> Callable[[RolloutTask], Outcome]:
    """Return an outcome of attempts: a service is down between two moments."""
    return lambda task: Outcome.INFRA_FAILURE if since <= clock.time < seconds else Outcome.SCORED


def notes(evolution: Evolution) -> list[str]:
    assert isinstance(evolution.monitor, Recorder)
    return evolution.monitor.notes


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_an_outage_of_20_seconds_delays_a_run_and_changes_nothing_else(
    scene: Scene, clock: Clock, mode: str
) -> None:
    learner = FakeLearner()
    evolution = begin(scene, clock, FakeRollouts(down_until(clock, 20)), learner, mode=mode, steps=4)
    await evolve(evolution)
    assert clock.waits[:5] == [1, 2, 4, 8, 16]
    assert [m.step for m in evolution.store.manifests()] == [1, 2, 3, 4]
    used = [g.request_id for m in evolution.store.manifests() for g in m.groups]
    assert len(used) == len(set(used)) == 8
    trained = [t for groups in learner.seen for g in groups for t in g.trajectories]
    assert {t.outcome for t in trained} == {Outcome.SCORED}
    for row in evolution.store.metrics():
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[p] for p in parts)
        assert row["samples_discarded"] == 0
    assert evolution.store.pending_groups() == []
    assert "all samples of step 1 failed from outside, next try in 1 s, the run stops in 3600 s" in notes(evolution)[0]
    assert "infra_failure of" in notes(evolution)[0]
    assert notes(evolution)[-1] == "the outage is over after 31 s"


async def test_a_run_that_is_out_of_patience_ends_with_its_own_code_and_resumes(scene: Scene, clock: Clock) -> None:
    always = down_until(clock, math.inf, since=0)
    evolution = begin(scene, clock, FakeRollouts(always), outage_limit=100)
    with pytest.raises(OutageError) as caught:
        await evolve(evolution)
    assert clock.waits == [1, 2, 4, 8, 16, 32, 37]
    line, code = as_ending(caught.value) or ("", 0)
    assert code == 75
    assert line.startswith("all samples of step 1 failed from outside for 100 s (loop.outage_limit=100)")
    again = begin(scene, Clock(), FakeRollouts())
    await evolve(again)
    used = [g.request_id for m in again.store.manifests() for g in m.groups]
    assert used == [f"train-{i}" for i in range(6)]


async def test_the_outage_of_a_later_step_has_a_limit_of_its_own(scene: Scene, clock: Clock) -> None:
    phase = {"down": 0.0}

    def outcome(task: RolloutTask) -> Outcome:
        return Outcome.INFRA_FAILURE if clock.time < phase["down"] else Outcome.SCORED

    class Learner(FakeLearner):
        async def step(self, *arguments: Any) -> dict[str, float]:
            phase["down"] = clock.time + 50
            return await super().step(*arguments)

    evolution = begin(scene, clock, FakeRollouts(outcome), Learner(), outage_limit=70)
    await evolve(evolution)
    assert evolution.store.last_step == 3
    assert clock.time > 100


@pytest.mark.parametrize("resumed", [False, True])
async def test_failures_of_the_policy_do_not_hide_an_outage(scene: Scene, clock: Clock, resumed: bool) -> None:
    def outcome(task: RolloutTask) -> Outcome:
        if task.key.sample < 2:
            return Outcome.POLICY_FAILURE  # needs no service
        return Outcome.INFRA_FAILURE if clock.time < 20 else Outcome.SCORED

    if resumed:
        with pytest.raises(OutageError):
            await evolve(begin(scene, clock, FakeRollouts(outcome), group_size=4, steps=1, outage_limit=0))
    evolution = begin(scene, clock, FakeRollouts(outcome), group_size=4, steps=1)
    await evolve(evolution)
    assert [len(g.scores()) for g in evolution.store.groups(1)] == [4, 4]


async def test_a_few_failures_beside_judged_samples_are_no_outage(scene: Scene, clock: Clock) -> None:
    def outcome(task: RolloutTask) -> Outcome:
        return Outcome.INFRA_FAILURE if task.key.request_id == "train-1" else Outcome.SCORED

    evolution = begin(scene, clock, FakeRollouts(outcome), steps=1)
    await evolve(evolution)
    assert clock.waits == []
    assert [len(g.scores()) for g in evolution.store.groups(1)] == [2, 0]


async def test_attempts_after_an_outage_have_keys_and_seeds_of_their_own(scene: Scene, clock: Clock) -> None:
    rollouts = FakeRollouts(down_until(clock, 1))
    await evolve(begin(scene, clock, rollouts, steps=1, max_attempts=2))
    assert sorted({t.key.attempt for t in rollouts.tasks}) == [0, 1, 2]
    assert len({t.seed for t in rollouts.tasks}) == len(rollouts.tasks) == 4 * 3


async def test_a_validation_waits_for_an_outage_and_keeps_its_seeds(scene: Scene, clock: Clock) -> None:
    def outcome(task: RolloutTask) -> Outcome:
        broken = task.split != "train" and clock.time < 20 and task.request.id != "validation-0"
        return Outcome.INFRA_FAILURE if broken else Outcome.SCORED

    rollouts = FakeRollouts(outcome)
    evolution = begin(scene, clock, rollouts, steps=1, validate_every=1, validation_requests=4)
    await evolve(evolution)
    [validation] = evolution.store.validations()
    assert (validation["infra_failures"], sum(clock.waits)) == (0, 31)
    assert "3 of 4 validation samples failed from outside" in notes(evolution)[0]
    played = [t for t in rollouts.tasks if t.split != "train"]
    assert sum(t.request.id == "validation-0" for t in played) == 1
    assert {t.key.attempt for t in played} == {0, 1, 2}


async def test_a_validation_without_some_of_its_samples_is_accepted_in_the_end(scene: Scene, clock: Clock) -> None:
    def outcome(task: RolloutTask) -> Outcome:
        return Outcome.INFRA_FAILURE if task.request.id == "validation-1" else Outcome.SCORED

    evolution = begin(scene, clock, FakeRollouts(outcome), steps=1, validate_every=1, validation_requests=4)
    await evolve(evolution)
    assert evolution.store.validations()[0]["infra_failures"] == 1
    assert clock.waits == [1, 2, 4, 8, 16]


class TightRollouts(FakeRollouts):
    """Some prompts are too long."""

    def __init__(self, *splits: str, requests: str = "") -> None:
        super().__init__()
        self.splits, self.requests = splits, requests

    async def rollout(self, task: RolloutTask) -> Trajectory:
        made = await super().rollout(task)
        if task.split in self.splits and task.request.id.endswith(self.requests):
            made.outcome, made.termination, made.reward = Outcome.INFRA_FAILURE, Termination.PROMPT_TOO_LONG, None
            made.reason = "prompt has 9 tokens, limit 8"
        return made


@pytest.mark.parametrize(("split", "work"), [("train", "step 1"), ("validation", "the validation requests")])
async def test_waiting_makes_no_prompt_shorter(scene: Scene, clock: Clock, split: str, work: str) -> None:
    rollouts = TightRollouts(split)
    evolution = begin(scene, clock, rollouts, steps=1, validate_every=1, validation_requests=4, max_attempts=3)
    with pytest.raises(UserFault, match=f"{work}: no prompt fits: prompt has 9 tokens, limit 8"):
        await evolve(evolution)
    assert clock.waits == []
    assert {t.key.attempt for t in rollouts.tasks} == {0}


async def test_requests_whose_prompt_is_too_long_are_left_out_without_a_second_try(scene: Scene, clock: Clock) -> None:
    rollouts = TightRollouts("train", "validation", requests="-1")
    evolution = begin(scene, clock, rollouts, steps=1, validate_every=1, validation_requests=4, max_attempts=3)
    await evolve(evolution)
    assert (clock.waits, evolution.store.validations()[0]["infra_failures"]) == ([], 1)
    assert [len(g.scores()) for g in evolution.store.groups(1)] == [2, 0]
    assert {t.key.attempt for t in rollouts.tasks} == {0}


class Summariser:
    """Writes a bundle, or fails as `fault` says."""

    identity = "fake"

    def __init__(self, fault: Callable[[], Exception | None] = lambda: None) -> None:
        self.fault, self.calls = fault, 0

    async def compare(self, request: Request, pair: Pair) -> Experience:
        self.calls += 1
        if (error := self.fault()) is not None:
            raise error
        return Experience(search_strategy=("look",), step=pair.step, request_id=request.id, gap=pair.gap)


class Embedder:
    """Gives every text one vector, or fails as `fault` says."""

    identity = "fake"

    def __init__(self, fault: Callable[[], Exception | None] = lambda: None) -> None:
        self.fault = fault

    async def embed(self, texts: Any) -> Any:
        import numpy as np

        if (error := self.fault()) is not None:
            raise error
        return np.ones((len(texts), 4), dtype=np.float32) / 2


def broken_until(clock: Clock, seconds: float, error: Exception) -> Callable[[], Exception | None]:
    return lambda: error if clock.time < seconds else None


def with_experience(summariser: Summariser, embedder: Embedder) -> LocalExperience:
    settings = ExperienceConfig.model_validate({"enabled": True, "key": {"masked": False}, "min_gap": 0.01})
    return LocalExperience(settings, summariser, embedder)


@pytest.mark.parametrize("part", ["summariser", "embedder"])
async def test_experience_waits_for_an_outage_and_is_remembered_once(scene: Scene, clock: Clock, part: str) -> None:
    fault = broken_until(clock, 20, InfraFailure("connection refused"))
    summariser = Summariser(fault if part == "summariser" else lambda: None)
    embedder = Embedder(fault if part == "embedder" else lambda: None)
    memory = with_experience(summariser, embedder)
    evolution = begin(scene, clock, FakeRollouts(), FakeLearner(), memory, steps=1)
    await evolve(evolution)
    assert sum(clock.waits) == 31
    assert "the experience of step 1 failed from outside" in notes(evolution)[0]
    row = evolution.store.metrics()[0]
    assert row["experience_memory"] == row["experience_pairs"] > 0
    assert len(stored_lessons(evolution.store, 1)) == 2
    if part == "embedder":
        assert summariser.calls == row["experience_pairs"], "bundles that were written are not paid twice"


@pytest.mark.parametrize("error", [UnusableAnswer("no JSON"), ServiceRefusal("content", 400, "content_policy")])
async def test_an_answer_that_cannot_be_used_is_no_outage_of_experience(
    scene: Scene, clock: Clock, error: Exception
) -> None:
    memory = with_experience(Summariser(lambda: error), Embedder())
    evolution = begin(scene, clock, FakeRollouts(), FakeLearner(), memory, steps=1)
    await evolve(evolution)
    assert clock.waits == []
    assert evolution.store.last_step == 1


async def test_recall_that_fails_after_the_insertion_inserts_nothing_twice(clock: Clock) -> None:
    calls = iter([None, InfraFailure("down"), None])
    memory = with_experience(Summariser(), Embedder(lambda: next(calls)))
    request = FakeRequests().train(0)
    keys = [SampleKey(step=1, request_id=request.id, sample=i) for i in range(2)]
    group = Group(request.id, 1, [make_trajectory(k, score=s) for k, s in zip(keys, (0.1, 0.9), strict=True)])
    first = await memory.learn([request], [group], 1)
    again = await memory.learn([request], [group], 1)
    assert (first.outage, again.outage) == ("down", "")
    assert (again.metrics["experience_memory"], len(again.lessons)) == (1, 1)


async def test_waits_double_up_to_a_minute_and_never_exceed_the_limit() -> None:
    clock = Clock()
    patience = Patience(400, now=clock.now, sleep=clock.sleep)
    with pytest.raises(OutageError, match="the work failed from outside for 400 s"):
        while True:
            await patience.wait("the work", "reason\nof two lines")
    assert clock.waits == [1, 2, 4, 8, 16, 32, LONGEST_WAIT, 60, 60, 60, 60, 37]


def test_a_step_is_lost_when_nothing_can_be_compared() -> None:
    def group(*outcomes: Outcome) -> Group:
        keys = [SampleKey(step=1, request_id="r", sample=i) for i in range(len(outcomes))]
        return Group("r", 1, [make_trajectory(k, o) for k, o in zip(keys, outcomes, strict=True)])

    scored, failed, broken = Outcome.SCORED, Outcome.INFRA_FAILURE, Outcome.POLICY_FAILURE
    assert is_lost([group(failed, failed), group(scored, failed)])
    assert is_lost([group(broken, broken, failed), group(broken, broken)])
    assert not is_lost([group(broken, broken), group(broken, broken)]), "the policy alone failed"
    assert not is_lost([group(failed, failed), group(scored, scored)])


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
async def test_samples_add_up_whatever_fails_and_whenever(
    scene: Scene, clock: Clock, seed: int, staleness: int
) -> None:
    dice = random.Random(seed)

    class Flapping(FakeRollouts):
        """A service that is down for whole stretches of time, and for single calls."""

        async def rollout(self, task: RolloutTask) -> Trajectory:
            version = self.version
            for _ in range(dice.randrange(20)):
                await asyncio.sleep(0)
            clock.time += dice.random()
            down = int(clock.time / 15) % 3 == 1 or dice.random() < 0.2
            self.tasks.append(task)
            outcome = Outcome.INFRA_FAILURE if down else dice.choice([Outcome.SCORED, Outcome.POLICY_FAILURE])
            return make_trajectory(task.key, outcome, task.seed % 1000 / 1000, version)

    learner = FakeLearner()
    mode = {"mode": "async", "max_staleness": staleness} if staleness else {}
    evolution = begin(scene, clock, Flapping(), learner, steps=12, max_attempts=2, group_size=3, **mode)
    async with asyncio.timeout(60):
        await evolve(evolution)
    manifests = evolution.store.manifests()
    used = [group.path for manifest in manifests for group in manifest.groups]
    assert len(used) == len(set(used)) == 24
    for row in evolution.store.metrics():
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[p] for p in parts)
    for groups in learner.seen:
        assert not is_lost(groups)
    keys = [task.key for task in evolution.rollouts.tasks]  # type: ignore[attr-defined]
    assert len(keys) == len(set(keys)), "no attempt is played twice under one key"
