"""A driver that is killed in the middle of a step: the same command ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

import genevolve_ray
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Trajectory

POLICY = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (POLICY / "config.json").is_file(), reason="the cold start is not in this checkout"),
    pytest.mark.timeout(900),
]

STEPS = 3
SETTINGS = {
    "policy.model": POLICY,
    "deterministic": "true",
    "engine.kind": "transformers",
    "loop.steps": STEPS,
    "loop.requests_per_step": 2,
    "loop.group_size": 2,
    "loop.validate_every": 2,
    "loop.validation_requests": 2,
    "loop.checkpoint_every": 2,
    "heldout.requests": 2,
}
PLAIN = "from genevolve_ray.cli import main; main()"
DYING = """
import os, signal
from genevolve_ray.evolution.store.run import RunStore
put = RunStore.put_group
def put_and_die(self, group, *rest):
    file = put(self, group, *rest)
    if group.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return file
RunStore.put_group = put_and_die
"""


@contextmanager
def evolving(run: Path, die_in: int | None = None) -> Iterator[int]:
    """Run the command to its end, beside what the block does; with `die_in` it is killed once a group of that step is on disk.

    Yields the process id.
    """
    code = PLAIN if die_in is None else DYING.format(step=die_in) + PLAIN
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    arguments = ["evolve", "atlas", "--in-process", "--run", str(run), *sets]
    environment = os.environ | {"PYTHONPATH": str(Path(genevolve_ray.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    output = run.with_name(f"{run.name}-{die_in}.log")
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            yield process.pid
            process.wait(timeout=600)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == (0 if die_in is None else -signal.SIGKILL), output.read_text()


SHARED, WEIGHTS = Path("/dev/shm"), "genevolve-weights-run-*"


def told(trajectories: list[Trajectory]) -> list[tuple[object, ...]]:
    """What is not a time of trajectories."""
    return [(t.key, t.ledger, t.program, t.rendered, t.verdict, t.reward, t.outcome) for t in trajectories]


def timeless(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Metrics without times and speeds."""
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, RunStore]:
    """A run that nothing interrupted, and the same run killed twice: before there is a checkpoint, and after that of step 2.

    They run side by side: each of them keeps one core busy.
    """
    root = tmp_path_factory.mktemp("runs")
    whole, run = root / "whole", root / "killed"
    with evolving(whole):
        for step in (2, 3):
            before = set(SHARED.glob(WEIGHTS))
            with evolving(run, die_in=step):
                pass
            dead = set(SHARED.glob(WEIGHTS)) - before
            store = RunStore.read(str(run))
            assert store.last_step == step - 1
            assert store.resume_plan().steps_to_reapply == ((1,) if step == 2 else ())
            assert len([group for group in store.pending_groups() if group.step == step]) == 1
        with evolving(run):
            pass
        assert not [folder for folder in dead if folder.exists()], "the next run removes what a killed one left"
    return RunStore.read(str(whole)), RunStore.read(str(run))


@pytest.fixture(scope="module")
def whole(runs: tuple[RunStore, RunStore]) -> RunStore:
    return runs[0]


@pytest.fixture(scope="module")
def killed(runs: tuple[RunStore, RunStore]) -> RunStore:
    return runs[1]


def test_every_state_is_the_same(whole: RunStore, killed: RunStore) -> None:
    hashes = [m.state_hash for m in killed.manifests()]
    assert hashes == [m.state_hash for m in whole.manifests()]
    assert len(set(hashes)) == STEPS


def test_every_metric_but_times_is_the_same(whole: RunStore, killed: RunStore) -> None:
    assert timeless(killed.metrics()) == timeless(whole.metrics())
    assert killed.validations() == whole.validations()
    assert [v["step"] for v in killed.validations()] == [2, 3]


def test_every_trajectory_is_the_same(whole: RunStore, killed: RunStore) -> None:
    for step in range(1, STEPS + 1):
        ours, theirs = killed.groups(step), whole.groups(step)
        assert [g.request_id for g in ours] == [g.request_id for g in theirs]
        assert [told(g.trajectories) for g in ours] == [told(g.trajectories) for g in theirs]
    for name in ("heldout-sft", "heldout-final"):
        assert told(killed.get_trajectories(name)) == told(whole.get_trajectories(name))


def test_the_runs_learn_from_real_rewards(whole: RunStore) -> None:
    """Equality would be cheap if every sample failed."""
    assert all(row["valid_fraction"] > 0 for row in whole.metrics())
    assert len({score for step in range(1, STEPS + 1) for g in whole.groups(step) for score in g.scores()}) > 2
