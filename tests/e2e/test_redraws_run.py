"""Guided re-draws of a real policy: the engine samples with the guide, the learner trains without it, bit for bit again."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.evolution.inprocess import in_process, load_chat
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.ports import RolloutPort, RolloutTask
from genevolve_ray.evolution.sources import open_source
from genevolve_ray.evolution.store.lessons import stored_lessons, stored_redraws
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.teaching import TeacherPatch
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.records.trajectory import Trajectory

POLICY = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (POLICY / "config.json").is_file(), reason="the cold start is not in this checkout"),
    pytest.mark.timeout(900),
]
STEPS = 2


class Stopped(Exception):
    """Ends a run from inside a rollout."""


class Stopping:
    """Rollouts that end the run when a re-draw of a step begins."""

    def __init__(self, inside: RolloutPort, step: int) -> None:
        self._inside, self._step = inside, step

    async def rollout(self, task: RolloutTask) -> Trajectory:
        if task.experience is not None and task.key.step == self._step:
            raise Stopped
        return await self._inside.rollout(task)

    async def rest(self) -> None:
        await self._inside.rest()

    async def update(self, weights: PublishedWeights) -> float:
        return await self._inside.update(weights)


def settings() -> RunConfig:
    """Few groups have a pair, and the others recall the nearest bundle however far it is."""
    values = {
        "policy.model": POLICY,
        "deterministic": "true",
        "engine.kind": "transformers",
        "loop.steps": STEPS,
        "loop.requests_per_step": 3,
        "loop.group_size": 4,
        "loop.validate_every": 0,
        "loop.checkpoint_every": 1,
        "checkpoints.keep_last": STEPS,
        "experience.memory.threshold": -1,
        "experience.min_gap": 0.4,
        "experience.redraws.draws": 2,
        "learner.ved.coefficient": 0,
    }
    return load_config("atlas", [f"{key}={value}" for key, value in values.items()])


async def run(config: RunConfig, folder: Path, stop_in: int | None = None) -> RunStore:
    """Begin or resume a run, and return its store; with `stop_in` it ends among the re-draws of that step."""
    with RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store:
        async with in_process(config, POLICY, store.images) as ports:
            rollouts = ports.rollouts if stop_in is None else Stopping(ports.rollouts, stop_in)
            source = open_source(config, store, NullMonitor().note)
            evolution = Evolution(
                config, source, rollouts, ports.learner, store, NullMonitor(), ports.experience, panel=ports.panel
            )
            await evolution.run(await evolution.start())
    return RunStore.read(str(folder))


async def test_a_real_run_stops_among_redraws_and_ends_as_a_whole_one(tmp_path: Path) -> None:
    config = settings()
    whole = await run(config, tmp_path / "whole")
    with pytest.raises(BaseExceptionGroup):
        await run(config, tmp_path / "stopped", stop_in=STEPS)
    resumed = await run(config, tmp_path / "stopped")
    hashes = [manifest.state_hash for manifest in whole.manifests()]
    assert [manifest.state_hash for manifest in resumed.manifests()] == hashes

    # Without a checkpoint, the stored batches with their re-draws give the same weights.
    shutil.rmtree(tmp_path / "whole" / "checkpoints")
    again = await run(config, tmp_path / "whole")
    assert [manifest.state_hash for manifest in again.manifests()] == hashes

    patch, drawn = TeacherPatch(load_chat(POLICY), config.protocol, 10_000), 0
    for step in range(1, STEPS + 1):
        row, guides = whole.metrics()[step - 1], {x.request_id: x.experience for x in stored_lessons(whole, step)}
        for trajectory in (t for group in stored_redraws(whole, step) for t in group.trajectories):
            assert trajectory.provenance.guided is not None
            patch.check_student(patch.unguided(trajectory, guides[trajectory.key.request_id]))
            drawn += 1
        assert all(t.provenance.guided is None for group in whole.groups(step) for t in group.trajectories)
        assert row["redraw_parity"] < config.loop.parity_limit
        assert abs(row["redraw_ratio_mean"] - 1) > 10 * row["redraw_parity"], "the guide changes what is likely"
    assert drawn >= 2 * STEPS
