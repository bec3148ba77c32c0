"""Experience snapshots in the run store: they count with their step, and damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_helpers import CONFIG, take_step

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.changes import encode_changes
from genevolve_ray.experience.memory import ExperienceMemory, MemoryPoint, SnapshotError
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


# --- changes ----------------------------------------------------------------------------------------------------------


def write(store: RunStore, steps: int, memory: ExperienceMemory) -> list[bytes]:
    """Commit steps with a bundle each, written as the loop does; return the snapshots of each."""
    snapshots = []
    rng = np.random.default_rng(store.last_step)
    for step in range(store.last_step + 1, store.last_step + steps + 1):
        mark = memory.mark
        vector = rng.standard_normal(512, np.float32)
        memory.insert(Experience(step=step, request_id=f"r{step}", gap=0.5), vector / np.linalg.norm(vector))
        snapshots.append(memory.snapshot())
        if store.whole_experience_due(step):
            store.put_experience(step, snapshots[-1])
        else:
            store.put_experience_changes(step, encode_changes(memory, mark))
        take_step(store, step)
    return snapshots


def whole(run: Path) -> list[int]:
    return sorted(int(file.name[:6]) for file in (run / "experience").iterdir() if ".changes" not in file.name)


def test_most_steps_write_changes_and_all_can_be_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunStore.open(str(run), CONFIG) as store:
        snapshots = write(store, 30, ExperienceMemory())
    written = whole(run)
    assert written[0] == 1 and 3 < len(written) < 12 and len(list((run / "experience").iterdir())) == 30
    store = RunStore.read(str(run))
    assert store.experience_steps() == list(range(1, 31))
    assert [store.get_experience(step) for step in range(1, 31)] == snapshots


def test_a_resumed_run_goes_on_with_changes(tmp_path: Path) -> None:
    run, memory = tmp_path / "run", ExperienceMemory()
    with RunStore.open(str(run), CONFIG) as store:
        snapshots = write(store, 20, memory)
    written = whole(run)
    again = ExperienceMemory.restore(snapshots[-1])
    with RunStore.open(str(run), CONFIG) as store:
        assert not store.whole_experience_due(21) or max(written) < 15
        snapshots += write(store, 5, again)
    assert [RunStore.read(str(run)).get_experience(step) for step in (20, 25)] == [snapshots[19], snapshots[24]]


def test_a_run_of_whole_snapshots_goes_on_with_changes(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        assert not store.whole_experience_due(3)
        memory = ExperienceMemory.restore(store.get_experience(2))
        store.put_experience_changes(3, encode_changes(memory, MemoryPoint(next_number=memory.next_number)))
        take_step(store, 3)
        assert store.get_experience(3) == store.get_experience(2)


def test_uncommitted_changes_are_removed(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        memory = ExperienceMemory.restore(store.get_experience(2))
        store.put_experience_changes(3, encode_changes(memory, MemoryPoint(next_number=memory.next_number)))
    RunStore.open(str(run), CONFIG).close()
    assert not list(run.glob("experience/000003*"))


def test_changes_need_what_they_follow(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunStore.open(str(run), CONFIG) as store:
        changes = encode_changes(ExperienceMemory(), MemoryPoint())
        with pytest.raises(StoreError, match="no experience of step 0"):
            store.put_experience_changes(1, changes)
        with pytest.raises(SnapshotError):
            store.put_experience_changes(1, snapshot(1))
        write(store, 12, ExperienceMemory())
    last = max(whole(run))
    later = next(step for step in range(1, 12) if step not in whole(run) and step + 1 not in whole(run))
    (run / f"experience/{later:06d}.changes.parquet").unlink()
    with pytest.raises(StoreError, match=rf"experience/{later:06d}.parquet"):
        RunStore.read(str(run)).get_experience(later + 1)
    assert RunStore.read(str(run)).get_experience(last)


def test_corrupt_changes_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunStore.open(str(run), CONFIG) as store:
        write(store, 12, ExperienceMemory())
    file = max(run.glob("experience/*.changes.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StoreError, match=f"{file.name} is corrupt"):
        RunStore.read(str(run)).get_experience(int(file.name[:6]))


def test_chains_of_changes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genevolve_ray.evolution.store.documents._LONGEST_CHAIN", 2)
    rng, memory = np.random.default_rng(1), ExperienceMemory()
    for number in range(20):
        vector = rng.standard_normal(512, np.float32)
        memory.insert(Experience(step=0, request_id=f"first{number}", gap=0.5), vector / np.linalg.norm(vector))
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        write(store, 8, memory)
    assert whole(tmp_path / "run") == [1, 4, 7]
