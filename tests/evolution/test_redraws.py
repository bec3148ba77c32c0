"""Guided re-draws in the loop: which groups get them, what they may touch, and that a step with them can be repeated."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Recorder, Scene, evolve, make_config, make_trajectory
from test_loop_experience import FakeEmbedder, Numbered, make

from genevolve_ray.config import RunConfig
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.learner import trained_trajectories
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.ports import Parts, RolloutTask
from genevolve_ray.evolution.redraws import check_panel, comparable, draw_again, is_stuck, redraw_metrics
from genevolve_ray.evolution.store.lessons import stored_redraws
from genevolve_ray.evolution.teaching import ExperienceLeakError
from genevolve_ray.learning.redraw_config import RedrawConfig
from genevolve_ray.records.experience import Experience, Lesson
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.trajectory import GUIDED, Group, Outcome, SampleKey, Termination, Trajectory
from genevolve_ray.records.usage import Usage

EXPERIENCE = {"enabled": True, "key": {"masked": False}, "redraws": {"draws": 2}}


class GuidedRollouts(FakeRollouts):
    """Requests with an odd number have a wide pair; attempts at the others are equal, and a guide makes them better."""

    async def rollout(self, task: RolloutTask) -> Trajectory:
        await super().rollout(task)
        number = int(task.request.id.rpartition("-")[2])
        score = 0.2 + 0.6 * task.key.sample if number % 2 else 0.3
        if task.experience is not None:
            score = 0.9
        made = make_trajectory(task.key, self.outcome(task), score, self.version)
        made.provenance = made.provenance.model_copy(update={"split": task.split})
        made.usage = {"judge": Usage(calls=1, money=0.01)}
        return made


LONG = "prompt has 9 tokens, limit 8"


class TightRollouts(GuidedRollouts):
    """Has no room for the guide in some samples."""

    def __init__(self, samples: set[int]) -> None:
        super().__init__()
        self.samples = samples

    async def rollout(self, task: RolloutTask) -> Trajectory:
        made = await super().rollout(task)
        if task.experience is not None and task.key.sample in self.samples:
            made.outcome, made.reward, made.ledger = Outcome.INFRA_FAILURE, None, TokenLedger()
            made.termination, made.reason = Termination.PROMPT_TOO_LONG, LONG
        return made


class RedrawLearner(FakeLearner):
    """Its state covers re-draws as well."""

    def __init__(self) -> None:
        super().__init__()
        self.redrawn: list[list[Group]] = []

    async def step(
        self,
        groups: Sequence[Group],
        step: int,
        lessons: Sequence[Lesson] = (),
        parts: Parts = (),
        redraws: Sequence[Group] = (),
    ) -> dict[str, float]:
        self.redrawn.append(list(redraws))
        metrics = await super().step(groups, step, lessons, parts)
        drawn = [[str(t.key), group.scores(), t.provenance.split] for group in redraws for t in group.trajectories]
        self.state = hashlib.sha256(json.dumps([self.state, drawn]).encode()).hexdigest()
        return metrics


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def begin(
    scene: Scene, rollouts: FakeRollouts | None = None, learner: FakeLearner | None = None, **changes: Any
) -> Evolution:
    """A run in which a request recalls what the last request of its parity taught: none of the even ones has a pair."""
    config = make_config(experience=changes.pop("experience", EXPERIENCE), **changes)
    experience = make(embedder=FakeEmbedder(classes=1))
    evolution = scene.begin(config, rollouts or GuidedRollouts(), learner or RedrawLearner(), experience)
    evolution.requests = Numbered()
    return evolution


def group(*scores: float | None, name: str = "r") -> Group:
    keys = [SampleKey(step=1, request_id=name, sample=i) for i in range(len(scores))]
    return Group(
        name,
        1,
        [
            make_trajectory(k, Outcome.POLICY_FAILURE) if s is None else make_trajectory(k, Outcome.SCORED, s)
            for k, s in zip(keys, scores, strict=True)
        ],
    )


@pytest.mark.parametrize(
    ("scores", "stuck"),
    [
        ((0.3, 0.3, 0.4), {"no_pair"}),
        ((0.3, 0.3), {"no_pair", "zero_variance"}),
        ((None, None), {"no_pair", "zero_variance", "all_invalid"}),
        ((None, 0.1), {"no_pair"}),
        ((0.8, None, None, None), set()),  # the policy gradient prefers the success to the failures
        ((0.3, 0.5), set()),
        ((1.0, 1.0), set()),  # solved
        ((), set()),  # every sample failed from outside
    ],
)
def test_settings_say_which_groups_are_stuck(scores: tuple[float | None, ...], stuck: set[str]) -> None:
    kinds = ("no_pair", "zero_variance", "all_invalid")
    assert {k for k in kinds if is_stuck(group(*scores), RedrawConfig(draws=1, stuck=k), 0.2)} == stuck


def test_a_group_near_its_best_is_solved_where_the_settings_say_so() -> None:
    assert [is_stuck(group(0.8, 0.8), RedrawConfig(below=b), 0.2) for b in (0.8, 0.9)] == [False, True]


async def test_stuck_groups_are_drawn_again_with_the_guide_that_they_recalled(scene: Scene) -> None:
    rollouts, learner = GuidedRollouts(), RedrawLearner()
    evolution = begin(scene, rollouts, learner)
    await evolve(evolution)
    tasks = [task for task in rollouts.tasks if task.experience is not None]
    assert [str(t.key) for t in tasks if t.key.step == 1] == ["1/train-0/2/0", "1/train-0/3/0"]
    ordinary = {t.seed for t in rollouts.tasks if t.experience is None}
    assert len({t.seed for t in tasks}) == len(tasks) == 6 and not ordinary & {t.seed for t in tasks}
    own = {t.key.request_id: t.render_seed for t in rollouts.tasks if t.experience is None}
    assert all(t.render_seed == own[t.key.request_id] and t.alone for t in tasks)
    for step, drawn in enumerate(learner.redrawn, 1):
        lessons = {x.request_id: x for x in learner.lessons[step - 1]}
        assert [g.request_id for g in drawn] == [f"train-{2 * step - 2}"]
        for trajectory in drawn[0].trajectories:
            assert trajectory.provenance.guided == lessons[drawn[0].request_id].bundle
        assert stored_redraws(evolution.store, step) == drawn
        assert [g.request_id for g in evolution.store.groups(step)] == [f"train-{2 * step - i}" for i in (2, 1)]


async def test_their_rewards_count_nowhere_and_their_costs_do(scene: Scene) -> None:
    evolution = begin(scene, steps=1)
    await evolve(evolution)
    [row] = evolution.store.metrics()
    assert row["reward_mean"] == pytest.approx((0.3 + 0.3 + 0.2 + 0.8) / 4)
    assert (row["valid_fraction"], row["policy_tokens"]) == (1, 8)
    assert (row["redraw_stuck_groups"], row["redraw_groups"], row["redraw_samples"], row["redraw_winners"]) == (
        1,
        1,
        2,
        2,
    )
    assert (row["redraw_reward_mean"], row["redraw_gain"]) == (pytest.approx(0.9), pytest.approx(0.6))
    assert (row["service_calls"], row["money"]) == (6, pytest.approx(0.06))


async def test_without_them_nothing_is_drawn_or_logged(scene: Scene) -> None:
    rollouts = GuidedRollouts()
    evolution = begin(scene, rollouts, FakeLearner(), experience={**EXPERIENCE, "redraws": {"draws": 0}})
    await evolve(evolution)
    assert not any(task.experience for task in rollouts.tasks)
    assert not any(name.startswith(("redraw", "seconds_redraw")) for name in evolution.store.metrics()[0])
    assert "redraws" not in evolution.store.manifest(1).loop


async def test_engines_rest_after_the_redraws(scene: Scene) -> None:
    rollouts = GuidedRollouts()
    engine = {"kind": "vllm", "vllm": {"sleep": True}}
    await evolve(begin(scene, rollouts, engine=engine, steps=1))
    last = max(i for i, call in enumerate(rollouts.calls) if call == "rollout")
    assert rollouts.calls[last + 1 :] == ["rest", "update"]


async def test_a_redraw_that_fails_from_outside_is_repeated_and_then_left_out(scene: Scene) -> None:
    def outcome(task: RolloutTask) -> Outcome:
        down = task.experience is not None and (task.key.sample == 2 or task.key.attempt == 0)
        return Outcome.INFRA_FAILURE if down else Outcome.SCORED

    rollouts, learner = GuidedRollouts(outcome), RedrawLearner()
    evolution = begin(scene, rollouts, learner, steps=1, max_attempts=2)
    await evolve(evolution)
    [drawn] = learner.redrawn[0]
    assert [(t.key.sample, t.key.attempt, t.outcome is Outcome.SCORED) for t in drawn.trajectories] == [
        (2, 0, False),
        (2, 1, False),
        (3, 0, False),
        (3, 1, True),
    ]
    row = evolution.store.metrics()[0]
    assert (row["redraw_failures"], row["redraw_winners"], row["infra_failures"]) == (1, 1, 0)


@pytest.mark.parametrize("deterministic", [True, False])
async def test_a_run_that_stops_among_redraws_ends_as_one_that_did_not(
    scene: Scene, tmp_path: Path, deterministic: bool
) -> None:
    options = {"deterministic": True, "engine": {"kind": "transformers"}} if deterministic else {}

    class Stop(Exception):
        pass

    class Interrupted(GuidedRollouts):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            if task.experience is not None and task.key.step == 2 and task.key.sample == 3:
                raise Stop
            return await super().rollout(task)

    first = begin(scene, Interrupted(), **options)
    with pytest.raises(BaseExceptionGroup):
        await evolve(first)
    assert first.store.committed_steps() == [1]
    resumed = begin(scene, **options)
    await evolve(resumed)
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    whole = begin(other, **options)
    await evolve(whole)
    for step in (1, 2, 3):
        assert resumed.store.manifest(step).state_hash == whole.store.manifest(step).state_hash
        assert stored_redraws(resumed.store, step) == stored_redraws(whole.store, step) != []
    assert await begin(other, **options).start() == 3, "the stored batches and re-draws give the committed state"
    other.close()


def test_no_group_may_hold_a_redraw() -> None:
    mixed = group(0.2, 0.8)
    mixed.trajectories[1].provenance = mixed.trajectories[1].provenance.model_copy(update={"split": f"{GUIDED}7"})
    with pytest.raises(ExperienceLeakError, match="1/r/1/0 is a guided re-draw"):
        trained_trajectories([mixed])


def test_only_redraws_of_the_same_renderer_and_judge_compare() -> None:
    own, drawn = group(0.3, 0.3), group(0.9, 0.9)
    other = drawn.trajectories[1]
    other.provenance = other.provenance.model_copy(update={"renderer": "another"})
    assert comparable(own, drawn) == drawn.trajectories[:1]
    metrics = redraw_metrics([own], [drawn], RedrawConfig(draws=2), 0.2)
    assert (metrics["redraw_failures"], metrics["redraw_winners"]) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "async"}, "needs loop.mode=sync, got async"),
        ({"experience": {"redraws": {"draws": 2}}}, "experience.enabled=false"),
        ({"experience": {**EXPERIENCE, "redraws": {"draws": 1, "min_gap": 0.1}}}, "belongs to correction 'winners'"),
    ],
)
def test_settings_that_exclude_them_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**{"experience": EXPERIENCE, **changes})


def test_normalised_rewards_and_outside_workers_alone_exclude_them() -> None:
    values = make_config(experience=EXPERIENCE).model_dump()
    with pytest.raises(ValueError, match=r"reward\.normalise=none, got rank"):
        RunConfig.model_validate(values | {"reward": {"components": {"judge.a": 1.0}, "normalise": "rank"}})
    with pytest.raises(ValueError, match=r"gateway\.only=true"):
        RunConfig.model_validate(values | {"gateway": {"port": 1, "only": True}})


def test_judges_of_groups_exclude_them() -> None:
    class GroupPanel:
        group_judges = ("rank",)

    config = make_config(experience=EXPERIENCE)
    with pytest.raises(UserFault, match=r"judges\.rank judges the attempts of a group"):
        check_panel(config, GroupPanel())  # type: ignore[arg-type]


async def test_judges_of_groups_and_a_pool_beyond_the_source_are_refused_before_anything_is_restored(
    scene: Scene,
) -> None:
    class GroupPanel:
        group_judges = ("rank",)

    class Short(Numbered):
        def __len__(self) -> int:
            return 7

    first = begin(scene, curriculum={"pool": 8})
    first.panel = GroupPanel()  # type: ignore[assignment]
    with pytest.raises(UserFault, match=r"judges\.rank judges the attempts of a group"):
        await first.start()
    second = begin(scene, curriculum={"pool": 8})
    second.requests = Short()
    with pytest.raises(UserFault, match="exceeds the 7 training requests"):
        await second.start()


async def test_the_main_reason_of_failed_redraws_is_noted(scene: Scene) -> None:
    rollouts = GuidedRollouts(
        lambda task: Outcome.INFRA_FAILURE if task.experience is not None and task.key.sample == 2 else Outcome.SCORED
    )
    evolution = begin(scene, rollouts, steps=1)
    await evolve(evolution)
    assert isinstance(evolution.monitor, Recorder)
    [note] = [n for n in evolution.monitor.notes if "re-draws" in n]
    assert note.startswith("step 1: 1 re-draws failed from outside: infra_failure of 1/train-0/2/")


@pytest.mark.parametrize("samples", [{2}, {2, 3}])
async def test_one_whose_guide_makes_its_prompt_too_long_is_left_out_at_once_with_the_reason(
    scene: Scene, samples: set[int]
) -> None:
    rollouts, learner = TightRollouts(samples), RedrawLearner()
    evolution = begin(scene, rollouts, learner, steps=1, max_attempts=3)
    await evolve(evolution)
    assert [t.key.attempt for t in rollouts.tasks if t.experience is not None] == [0, 0]
    row = evolution.store.metrics()[0]
    left = 2 - len(samples)
    assert (row["redraw_too_long"], row["redraw_failures"], row["redraw_winners"]) == (len(samples), 0, left)
    assert row["infra_failures"] == 0
    assert stored_redraws(evolution.store, 1) == learner.redrawn[0]
    assert isinstance(evolution.monitor, Recorder)
    [note] = [n for n in evolution.monitor.notes if "re-draws" in n]
    assert note == f"step 1: {len(samples)} re-draws left out, because the guide makes the prompt too long: {LONG}"


async def test_progress_counts_them(scene: Scene) -> None:
    evolution = begin(scene, steps=1)
    await evolve(evolution)
    assert isinstance(evolution.monitor, Recorder)
    assert ("redraws", 2) in evolution.monitor.phases
    heard = [t for t in evolution.monitor.trajectories if t.provenance.guided is not None]
    assert [replace(t, timings={}) for t in heard] == [
        replace(t, timings={}) for t in evolution.monitor.trajectories[-2:]
    ]


async def test_no_more_of_them_run_at_once_than_samples_may(scene: Scene) -> None:
    rollouts = GuidedRollouts()
    running, most = 0, 0

    async def count(task: RolloutTask) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    rollouts.before = count
    await evolve(begin(scene, rollouts, steps=1, max_running=1))
    assert most == 1


async def test_a_bundle_that_says_nothing_is_no_guide() -> None:
    request, rollouts = Numbered().train(0), GuidedRollouts()
    lesson = Lesson(request_id=request.id, bundle=1, experience=Experience(), similarity=1.0, own=False)
    drawn = await draw_again(
        make_config(experience=EXPERIENCE),
        rollouts,
        [request],
        [group(0.3, 0.3, name=request.id)],
        [lesson],
        1,
        sampling=SamplingParams(),
        generations=RendererGenerations(),
        on_begin=lambda count: None,
        on_trajectory=lambda trajectory: None,
    )
    assert (drawn, rollouts.tasks) == ([], [])
