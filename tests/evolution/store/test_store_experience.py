"""Experience snapshots in the run store: they count with their step, and damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_helpers import CONFIG, take_step

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.memory import ExperienceMemory, SnapshotError
from genevolve_ray.records.experience import Experience


def snapshot(step: int) -> bytes:
    memory = ExperienceMemory()
    memory.insert(Experience(step=step, request_id="r", gap=0.5), np.array([0.6, 0.8], np.float32))
    return memory.snapshot()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two committed steps with their snapshots, and one of a step that never happened."""
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        for step in (1, 2):
            store.put_experience(step, snapshot(step))
            take_step(store, step)
        store.put_experience(3, snapshot(3))
    return tmp_path / "run"


def test_snapshots_come_back_as_they_were(run: Path) -> None:
    store = RunStore.read(str(run))
    assert store.experience_steps() == [1, 2]
    assert [store.get_experience(step) for step in (1, 2)] == [snapshot(1), snapshot(2)]


def test_a_snapshot_counts_once_its_step_is_committed(run: Path) -> None:
    with pytest.raises(StoreError, match="step 3 is not committed"):
        RunStore.read(str(run)).get_experience(3)
    assert (run / "experience/000003.parquet").exists()
    RunStore.open(str(run), CONFIG).close()
    assert not (run / "experience/000003.parquet").exists()


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        take_step(store, 1)
        assert store.experience_steps() == []
        with pytest.raises(StoreError, match=r"experience/000001.parquet"):
            store.get_experience(1)


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:40] + b"\0\xff" + d[42:]])
def test_a_corrupt_snapshot_is_told(run: Path, damage: object) -> None:
    file = run / "experience/000002.parquet"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(StoreError, match=r"experience/000002.parquet is corrupt"):
        RunStore.read(str(run)).get_experience(2)


def test_only_snapshots_are_kept(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store, pytest.raises(SnapshotError):
        store.put_experience(3, b"weights")
    with pytest.raises(StoreError, match="reading only"):
        RunStore.read(str(run)).put_experience(3, snapshot(3))
