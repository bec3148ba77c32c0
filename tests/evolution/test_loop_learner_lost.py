"""A learner that dies at any of its calls: another one takes its place, and nothing else is begun again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Recorder, Scene, evolve, make_config

from genevolve_ray.evolution.ports import LearnerLost


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


class Mortal(FakeLearner):
    """Dies at its n-th call, counted over all its lives; its state is gone then."""

    def __init__(self, *deaths: int) -> None:
        super().__init__()
        self.deaths, self.calls = set(deaths), 0
        for name in ("step", "publish", "save", "load", "state_hash"):
            setattr(self, name, self._mortal(name))

    def _mortal(self, name: str) -> Any:
        method = getattr(FakeLearner, name)

        async def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls in self.deaths:
                self.state = "lost"
                raise LearnerLost(f"died in {name}")
            return await method(self, *arguments)

        return call


CONFIG = {"steps": 4, "checkpoint_every": 2}


async def whole(folder: Path) -> tuple[list[str], int]:
    scene = Scene(folder)
    learner = Mortal()
    evolution = scene.begin(make_config(**CONFIG), learner=learner)
    await evolve(evolution)
    scene.close()
    return [m.state_hash for m in evolution.store.manifests()], learner.calls


async def test_wherever_it_dies_the_run_ends_as_one_in_which_it_did_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    expected, calls = await whole(tmp_path / "whole")
    # The very first call gives the engines the policy that the run starts from: without a learner there is no run yet.
    for death in range(2, calls + 1):
        (folder := tmp_path / f"{death}").mkdir()
        scene, rollouts, learner = Scene(folder), FakeRollouts(), Mortal(death)
        evolution = scene.begin(make_config(**CONFIG), rollouts, learner)
        await evolve(evolution)
        assert [m.state_hash for m in evolution.store.manifests()] == expected, f"died at call {death}"
        assert learner.restarts == 1
        assert len(rollouts.tasks) == 4 * 4, "rollouts were begun again"
        assert any("died in" in note for note in evolution.monitor.notes)
        scene.close()


async def test_a_second_death_on_the_way_back_is_survived(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    expected, _ = await whole(tmp_path / "other")
    learner = Mortal(12, 13, 14)
    evolution = scene.begin(make_config(**CONFIG), learner=learner)
    await evolve(evolution)
    assert isinstance(evolution.monitor, Recorder)
    assert [m.state_hash for m in evolution.store.manifests()] == expected
    assert learner.restarts == 3
