"""The loop over fake ports and a real run store: what a step does, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Recorder, Scene, evolve, make_config

from genevolve_ray.evolution.flow import FlowError
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.metrics import ParityError
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.trajectory import Outcome, Trajectory


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def watched(evolution: Evolution) -> Recorder:
    assert isinstance(evolution.monitor, Recorder)
    return evolution.monitor


async def test_each_step_commits_one_version_further(scene: Scene) -> None:
    rollouts, learner = FakeRollouts(), FakeLearner()
    evolution = scene.begin(make_config(), rollouts, learner)
    await evolve(evolution)
    assert rollouts.updates == [0, 1, 2, 3]
    assert learner.steps == [1, 2, 3]
    manifests = evolution.store.manifests()
    assert [(m.step, m.policy_before, m.policy_after) for m in manifests] == [(1, 0, 1), (2, 1, 2), (3, 2, 3)]
    assert [[g.policy_version for g in m.groups] for m in manifests] == [[0, 0], [1, 1], [2, 2]]
    assert manifests[-1].state_hash == learner.state
    assert [step for step, _ in watched(evolution).steps] == [1, 2, 3]


async def test_engines_rest_between_the_last_rollout_and_the_next_version(scene: Scene) -> None:
    rollouts = FakeRollouts()
    config = make_config(steps=2, engine={"vllm": {"sleep": True}})
    await evolve(scene.begin(config, rollouts))
    step = ["rollout"] * 4 + ["rest", "update"]
    assert rollouts.calls == ["update", *step, *step]
    awake = FakeRollouts()
    await evolve(scene.begin(config.model_copy(update={"engine": make_config().engine}), awake))
    assert "rest" not in awake.calls


def test_engines_that_sample_during_the_learner_step_cannot_rest() -> None:
    with pytest.raises(
        ValueError, match=r"engine\.vllm\.sleep=true needs loop\.mode=sync and loop\.overlap=false, got async"
    ):
        make_config(mode="async", engine={"vllm": {"sleep": True}})


async def test_a_step_trains_on_all_groups_in_request_order(scene: Scene) -> None:
    learner = FakeLearner()
    evolution = scene.begin(make_config(), learner=learner)
    await evolve(evolution)
    assert [[g.request_id for g in groups] for groups in learner.seen] == [
        ["train-0", "train-1"],
        ["train-2", "train-3"],
        ["train-4", "train-5"],
    ]
    assert evolution.store.groups(2) == learner.seen[1]


async def test_tokens_carry_the_version_that_sampled_them(scene: Scene) -> None:
    learner = FakeLearner()
    await evolve(scene.begin(make_config(), learner=learner))
    versions = [{t.ledger.oldest_version for g in groups for t in g.trajectories} for groups in learner.seen]
    assert versions == [{0}, {1}, {2}]


async def test_the_metrics_row_has_rewards_learner_and_times(scene: Scene) -> None:
    evolution = scene.begin(make_config(steps=1))
    await evolve(evolution)
    [row] = evolution.store.metrics()
    scores = [score for group in evolution.store.groups(1) for score in group.scores()]
    assert row["reward_mean"] == pytest.approx(sum(scores) / 4)
    assert (row["parity"], row["loss"], row["probe_difference"]) == (1e-6, 0.25, 1e-7)
    assert row["policy_tokens"] == 8
    assert row["tokens_per_second"] == pytest.approx(8 / row["seconds_rollout"])
    phases = [row[f"seconds_{name}"] for name in ("rollout", "learn", "sync", "commit")]
    assert row["seconds_step"] >= sum(phases) > 0


@pytest.mark.parametrize("parity", [2e-4, math.nan])
async def test_parity_beyond_its_limit_stops_before_anything_is_committed(scene: Scene, parity: float) -> None:
    learner, rollouts = FakeLearner(), FakeRollouts()
    learner.parity = parity
    evolution = scene.begin(make_config(parity_limit=1e-4), rollouts, learner)
    with pytest.raises(ParityError, match=f"step 1.* is {parity:.3g}.*0.0001"):
        await evolve(evolution)
    assert evolution.store.last_step == 0
    assert rollouts.updates == [0]


async def test_parity_at_its_limit_goes_on(scene: Scene) -> None:
    learner = FakeLearner()
    learner.parity = 1e-4
    evolution = scene.begin(make_config(parity_limit=1e-4), learner=learner)
    await evolve(evolution)
    assert evolution.store.last_step == 3


async def test_failed_samples_are_drawn_again_and_kept_apart(scene: Scene) -> None:
    def first_try_fails(task: RolloutTask) -> Outcome:
        return Outcome.INFRA_FAILURE if (task.key.sample, task.key.attempt) == (1, 0) else Outcome.SCORED

    rollouts, learner = FakeRollouts(first_try_fails), FakeLearner()
    evolution = scene.begin(make_config(steps=1), rollouts, learner)
    await evolve(evolution)
    for group in evolution.store.groups(1):
        assert [(t.key.sample, t.key.attempt) for t in group.trajectories] == [(0, 0), (1, 0), (1, 1)]
        assert len(group.scores()) == 2
    assert evolution.store.metrics()[0]["infra_failures"] == 2
    assert len({task.seed for task in rollouts.tasks}) == 6


async def test_validations_come_at_their_steps_and_at_the_end(scene: Scene) -> None:
    evolution = scene.begin(make_config(steps=5, validate_every=2, validation_requests=3))
    await evolve(evolution)
    found = evolution.store.validations()
    assert [v["step"] for v in found] == [2, 4, 5]
    assert [step for step, validation in watched(evolution).steps if validation] == [2, 4, 5]
    assert watched(evolution).phases.count(("validating", 3)) == 3


async def test_validation_requests_meet_the_same_seeds_each_time(scene: Scene) -> None:
    rollouts = FakeRollouts()
    await evolve(scene.begin(make_config(steps=2, validate_every=1, validation_requests=3), rollouts))
    seeds = [(task.seed, task.render_seed) for task in rollouts.tasks if task.split == "validation"]
    assert len(seeds) == 6
    assert seeds[:3] == seeds[3:]


async def test_zero_switches_validations_off(scene: Scene) -> None:
    evolution = scene.begin(make_config(validate_every=0))
    await evolve(evolution)
    assert evolution.store.validations() == []


async def test_checkpoints_come_at_their_steps_and_at_the_end(scene: Scene) -> None:
    config = make_config(steps=5, checkpoint_every=2, checkpoints={"keep_last": 9, "keep_best": 0})
    evolution = scene.begin(config)
    await evolve(evolution)
    checkpoints = evolution.store.checkpoints()
    assert [c.step for c in checkpoints] == [2, 4, 5]
    hashes = {m.step: m.state_hash for m in evolution.store.manifests()}
    assert [c.state_hash for c in checkpoints] == [hashes[2], hashes[4], hashes[5]]


async def test_only_the_current_weights_stay(scene: Scene, tmp_path: Path) -> None:
    await evolve(scene.begin(make_config()))
    assert [folder.name for folder in (tmp_path / "weights").iterdir()] == ["v000003"]


async def test_samples_must_add_up(scene: Scene) -> None:
    class Forgetful(FakeRollouts):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            trajectory = await super().rollout(task)
            trajectory.key = task.key.model_copy(update={"sample": 0})
            return trajectory

    evolution = scene.begin(make_config(), Forgetful())
    with pytest.raises(FlowError, match="lease 0 has 2 samples, but its group accounts for 1"):
        await evolve(evolution)
    assert evolution.store.last_step == 0
