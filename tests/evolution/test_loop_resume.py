"""A loop that was interrupted goes on where the run store says, in the state that was committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Recorder, Scene, evolve, make_config

from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.restore import ResumeError
from genevolve_ray.records.trajectory import Group


class Interrupted(Exception):
    """The process died here."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def die_in_the_middle(evolution: Evolution, rollouts: FakeRollouts, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop die in a step, when the group of its first request is on disk and the second's is not."""
    kept = asyncio.Event()
    put = evolution.store.put_group

    def put_and_tell(group: Group, version: int) -> object:
        file = put(group, version)
        if group.step == step:
            kept.set()
        return file

    async def die(task: RolloutTask) -> None:
        if task.key.step == step and task.key.request_id == f"train-{2 * step - 1}":
            await kept.wait()
            raise Interrupted

    monkeypatch.setattr(evolution.store, "put_group", put_and_tell)
    rollouts.before = die


async def interrupt(scene: Scene, monkeypatch: pytest.MonkeyPatch, config: EvolutionConfig, step: int = 2) -> None:
    """Run until the middle of a step."""
    rollouts = FakeRollouts()
    evolution = scene.begin(config, rollouts)
    die_in_the_middle(evolution, rollouts, step, monkeypatch)
    with pytest.raises(ExceptionGroup) as caught:
        await evolve(evolution)
    assert caught.group_contains(Interrupted)
    assert evolution.store.last_step == step - 1


async def test_groups_of_an_interrupted_step_are_used_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await interrupt(scene, monkeypatch, make_config())
    rollouts, learner = FakeRollouts(), FakeLearner()
    evolution = scene.begin(make_config(), rollouts, learner)
    await evolve(evolution)
    assert {task.key.request_id for task in rollouts.tasks if task.key.step == 2} == {"train-3"}
    assert [g.request_id for g in learner.seen[1]] == ["train-2", "train-3"]
    assert evolution.store.last_step == 3


async def test_deterministic_runs_draw_an_interrupted_step_anew(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = make_config(deterministic=True, engine={"kind": "transformers"})
    await interrupt(scene, monkeypatch, exact)
    rollouts = FakeRollouts()
    evolution = scene.begin(exact, rollouts)
    await evolve(evolution)
    drawn = {task.key.request_id for task in rollouts.tasks if task.key.step == 2}
    assert drawn == {"train-2", "train-3"}
    assert [len(m.groups) for m in evolution.store.manifests()] == [2, 2, 2]


async def test_an_interrupted_run_ends_as_one_that_was_not(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupt(scene, monkeypatch, make_config())
    resumed = scene.begin(make_config())
    await evolve(resumed)
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    whole = other.begin(make_config())
    await evolve(whole)
    assert [m.state_hash for m in resumed.store.manifests()] == [m.state_hash for m in whole.store.manifests()]
    other.close()


async def test_resume_applies_the_batches_after_the_checkpoint_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=5, checkpoint_every=2)
    await interrupt(scene, monkeypatch, config, step=4)
    learner, rollouts = FakeLearner(), FakeRollouts()
    evolution = scene.begin(config, rollouts, learner)
    assert await evolution.start() == 3
    assert learner.steps == [3]
    assert learner.state == evolution.store.manifest(3).state_hash
    assert rollouts.updates == [3]
    await evolution.run(3)
    assert evolution.store.committed_steps() == [1, 2, 3, 4, 5]


async def test_without_a_checkpoint_every_step_is_applied_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await interrupt(scene, monkeypatch, make_config())
    learner = FakeLearner()
    evolution = scene.begin(make_config(), learner=learner)
    assert await evolution.start() == 1
    assert learner.steps == [1]
    assert isinstance(evolution.monitor, Recorder)
    assert evolution.monitor.notes == ["applying the stored batch of step 1 again"]


async def test_a_state_that_cannot_be_reproduced_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await interrupt(scene, monkeypatch, make_config())
    rollouts = FakeRollouts()
    evolution = scene.begin(make_config(), rollouts, FakeLearner(noise="another machine"))
    with pytest.raises(ResumeError, match="step 1 was committed with state"):
        await evolution.start()
    assert rollouts.updates == []


async def test_a_finished_run_takes_no_step_more(scene: Scene) -> None:
    await evolve(scene.begin(make_config()))
    rollouts = FakeRollouts()
    evolution = scene.begin(make_config(), rollouts)
    await evolve(evolution)
    assert rollouts.tasks == []
    assert evolution.store.last_step == 3
