"""Restoration from what a damaged run still has: the same state, or one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Recorder, Scene, evolve, make_config

from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.restore import ResumeError, revive
from genevolve_ray.evolution.store.files import StoreError


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


async def four_steps(scene: Scene) -> str:
    """Run four steps with checkpoints of steps 2 and 4, and return the state."""
    evolution = scene.begin(make_config(steps=4, checkpoint_every=2))
    await evolve(evolution)
    return evolution.store.manifest(4).state_hash


def resumed(scene: Scene, learner: FakeLearner, steps: int = 5) -> Evolution:
    return scene.begin(make_config(steps=steps, checkpoint_every=2), FakeRollouts(), learner)


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize(("broken", "applied"), [((4,), [3, 4]), ((4, 2), [1, 2, 3, 4])])
async def test_an_earlier_checkpoint_and_the_stored_batches_give_the_same_state(
    scene: Scene, broken: tuple[int, ...], applied: list[int]
) -> None:
    state = await four_steps(scene)
    for step in broken:
        flip(scene.folder / f"run/checkpoints/{step:06d}/state")
    learner = FakeLearner()
    evolution = resumed(scene, learner)
    assert await evolution.start() == 4
    assert (learner.state, learner.steps) == (state, applied)
    assert isinstance(evolution.monitor, Recorder)
    said = "state is corrupt: its content does not match its manifest; an earlier state and the stored batches replace"
    assert said in evolution.monitor.notes[0]
    await evolution.run(4)
    assert evolution.store.last_step == 5


async def test_a_new_learner_of_a_running_run_does_without_a_corrupt_checkpoint_too(scene: Scene) -> None:
    state = await four_steps(scene)
    flip(scene.folder / "run/checkpoints/000004/state")
    learner = FakeLearner()
    evolution = resumed(scene, learner)
    await revive(evolution.store, learner, evolution.monitor)
    assert learner.state == state


async def test_without_the_batches_the_damage_is_named_in_one_line(scene: Scene) -> None:
    await four_steps(scene)
    for step in (2, 4):
        flip(scene.folder / f"run/checkpoints/{step:06d}/state")
    (scene.folder / "run/steps/000001/manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"000004/state is corrupt.*, and .*000001/manifest.json is corrupt"):
        await resumed(scene, FakeLearner()).start()


async def test_a_damaged_file_that_nothing_needs_is_noted(scene: Scene) -> None:
    await four_steps(scene)
    (scene.folder / "run/steps/000001/manifest.json").write_text("{")
    evolution = resumed(scene, FakeLearner())
    assert await evolution.start() == 4
    assert isinstance(evolution.monitor, Recorder)
    assert "000001/manifest.json is corrupt" in evolution.monitor.notes[0]
    await evolution.run(4)


async def test_another_state_is_one_line_that_says_what_to_do(scene: Scene) -> None:
    from genevolve_ray.errors import as_ending

    await four_steps(scene)
    flip(scene.folder / "run/checkpoints/000004/state")
    with pytest.raises(ResumeError) as caught:
        await resumed(scene, FakeLearner(noise="other")).start()
    line, code = as_ending(caught.value) or ("", 0)
    assert code == 1 and "Resume it where it was started" in line


async def test_a_hash_of_an_earlier_kind_is_not_compared(scene: Scene) -> None:
    class Later(FakeLearner):
        async def state_hash(self) -> str:
            return f"later:{self.state}"

    await four_steps(scene)
    evolution = resumed(scene, Later())
    assert await evolution.start() == 4
    assert isinstance(evolution.monitor, Recorder)
    assert "committed by an earlier version" in evolution.monitor.notes[0]


INEXACT = {"steps": 4, "checkpoint_every": 2, "learner": {"device": "cuda"}}
"""A run whose learner does not compute a step again bit for bit."""


async def interrupted(scene: Scene, committed: int) -> None:
    """Run such a run and lose the process when so many steps are committed."""
    evolution = scene.begin(make_config(**INEXACT), learner=FakeLearner(noise="first"))
    version = await evolution.start()
    commit = evolution.store.commit_step

    def commit_and_die(step: int, *arguments: Any, **options: Any) -> object:
        manifest = commit(step, *arguments, **options)
        if step == committed:
            raise KeyboardInterrupt
        return manifest

    evolution.store.commit_step = commit_and_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await evolution.run(version)


async def test_a_learner_that_does_not_repeat_bits_continues_from_its_checkpoint(scene: Scene) -> None:
    await interrupted(scene, 3)
    learner, rollouts = FakeLearner(noise="second"), FakeRollouts()
    evolution = scene.begin(make_config(**INEXACT), rollouts, learner)
    assert await evolution.start() == 2
    assert learner.steps == []
    assert isinstance(evolution.monitor, Recorder)
    assert evolution.monitor.notes[0].startswith("discarded step 3: the learner's device does not compute a step again")
    assert evolution.monitor.notes[0].endswith("The run continues from its checkpoint of step 2")
    await evolution.run(2)
    assert evolution.store.committed_steps() == [1, 2, 3, 4]
    # The policy of step 2 sampled the batch of step 3, which is therefore learned from again and not drawn anew.
    assert {task.key.step for task in rollouts.tasks} == {4}


async def test_without_a_checkpoint_it_continues_from_the_start(scene: Scene) -> None:
    await interrupted(scene, 1)
    evolution = scene.begin(make_config(**INEXACT), learner=FakeLearner(noise="second"))
    assert await evolution.start() == 0
    assert isinstance(evolution.monitor, Recorder)
    assert "discarded step 1" in evolution.monitor.notes[0]
    assert evolution.monitor.notes[0].endswith("The run continues from the policy that it started from")


async def test_with_nothing_to_compute_again_nothing_is_discarded(scene: Scene) -> None:
    await interrupted(scene, 2)
    evolution = scene.begin(make_config(**INEXACT), learner=FakeLearner(noise="second"))
    assert await evolution.start() == 2
    assert isinstance(evolution.monitor, Recorder)
    assert evolution.monitor.notes == []


async def test_a_deterministic_learner_on_a_gpu_computes_steps_again(scene: Scene) -> None:
    exact = INEXACT | {"learner": {"device": "cuda", "deterministic": True}}
    evolution = scene.begin(make_config(**exact | {"steps": 3, "checkpoint_every": 100}))
    await evolve(evolution)
    (scene.folder / "run/checkpoints/000003.json").unlink()
    with pytest.raises(ResumeError, match="was committed with state"):
        await scene.begin(
            make_config(**exact | {"steps": 3, "checkpoint_every": 100}), learner=FakeLearner(noise="other")
        ).start()


async def test_a_new_learner_of_a_running_run_needs_the_checkpoint_of_its_last_step(scene: Scene) -> None:
    await interrupted(scene, 3)
    evolution = scene.begin(make_config(**INEXACT))
    with pytest.raises(LearnerLost, match="does not compute step 3 again bit for bit: the same command resumes"):
        await revive(evolution.store, FakeLearner(), evolution.monitor, exact=False)
    assert evolution.store.last_step == 3
