"""Whatever write is the last one, the run is found in the old state or in the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from store_helpers import CONFIG, Crash, Fuse, FusedFiles, contents, disk_full, make_group, save_checkpoint, take_step

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.manifest import CheckpointConfig
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Group

KEEP = CheckpointConfig(keep_last=1, keep_best=0)
Opened = Callable[[], RunStore]


class Progress:
    """What a run was told has happened."""

    def __init__(self) -> None:
        self.steps, self.groups = 0, list[Group]()


def run_two_steps(store: RunStore, seen: Progress) -> None:
    """Two steps with groups, checkpoints (the second prunes the first) and validations, from wherever the run stands."""
    for step in range(store.last_step + 1, 3):
        groups = [g for g in store.pending_groups() if g.step == step]
        if not groups:
            groups = [make_group("a", step)]
            store.put_group(groups[0], step - 1)
            seen.groups = groups
        save_checkpoint(store, step)
        store.commit_step(step, groups, {"reward_mean": 0.5}, f"hash-{step}", {"reward_mean": step})
        seen.steps, seen.groups = step, []


def check_after_crash(store: RunStore, seen: Progress) -> None:
    """The acknowledged state is there, at most one step further, and every part of it can be read."""
    assert seen.steps <= store.last_step <= seen.steps + 1
    plan = store.resume_plan()
    start = plan.checkpoint_step or 0
    assert plan.steps_to_reapply == tuple(range(start + 1, store.last_step + 1))
    assert store.last_step - start <= 1
    if plan.checkpoint_step is not None:
        with store.open_checkpoint(plan.checkpoint_step) as folder:
            assert (folder / "model.bin").read_bytes() == b"weights %d" % plan.checkpoint_step
    for step in store.committed_steps():
        assert store.groups(step) == [make_group("a", step)]
    assert [v["step"] for v in store.validations()] == store.committed_steps()
    kept = store.pending_groups() if store.last_step == seen.steps else store.groups(store.last_step)
    assert all(group in kept for group in seen.groups)


def survive_every_crash(fresh: Callable[[Fuse], tuple[Opened, Opened]]) -> int:
    """Crash at the first, second, ... write, look, and go on to the end. Returns the number of crashes."""
    for n in range(1000):
        fuse, seen = Fuse(n), Progress()
        opened, reopened = fresh(fuse)
        with contextlib.suppress(Crash):
            store = opened()
            with contextlib.ExitStack() as stack:
                stack.callback(abandon, store)
                run_two_steps(store, seen)
        if not fuse.burnt:
            return n
        fuse.left = 10**6
        with reopened() as store:
            check_after_crash(store, seen)
            run_two_steps(store, seen)
            check_after_crash(store, seen)
            assert store.last_step == 2
    raise AssertionError("the run never ended")


def abandon(store: RunStore) -> None:
    """What the death of a process does to its lock: flock is dropped, a heartbeat stops."""
    lock = store._lock
    if hasattr(lock, "_stop"):
        lock._stop.set()
    else:
        store.close()


@pytest.mark.timeout(600)  # seconds on a quiet machine
def test_every_write_on_a_remote_filesystem_may_be_the_last() -> None:
    def fresh(fuse: Fuse) -> tuple[Opened, Opened]:
        disk = pafs._MockFileSystem()
        files = pafs.PyFileSystem(FusedFiles(disk, fuse))

        def opened() -> RunStore:
            return RunStore.open("runs/demo", CONFIG, keep=KEEP, filesystem=files)

        def reopened() -> RunStore:
            if disk.get_file_info("runs/demo/.lease.json").type == pafs.FileType.File:
                disk.delete_file("runs/demo/.lease.json")  # as if it had expired
            return opened()

        return opened, reopened

    assert survive_every_crash(fresh) > 60


@pytest.mark.timeout(600)  # seconds on a quiet machine
def test_every_write_on_a_local_disk_may_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    fuses = [Fuse(10**6)]
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody cuts the power here
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (Folder, "delete"), (Folder, "append")):
        blow_before(monkeypatch, owner, name, fuses)

    def fresh(fuse: Fuse) -> tuple[Opened, Opened]:
        nonlocal count
        count += 1
        fuses[0] = fuse
        uri = str(tmp_path / f"{count}")

        def opened() -> RunStore:
            return RunStore.open(uri, CONFIG, keep=KEEP)

        return opened, opened

    assert survive_every_crash(fresh) > 40


def blow_before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, fuses: list[Fuse]) -> None:
    real = getattr(owner, name)

    def fused(*arguments: object, **options: object) -> object:
        fuses[0]()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, fused)


# --- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_on_commit_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        take_step(store, 1)
        group = make_group("a", 2)
        store.put_group(group, 1)
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            blow_before(patch, os, call, [Fuse(0, disk_full)])
            with pytest.raises(StoreError, match=r"cannot write .*manifest.json \(step manifest\): no space left"):
                store.commit_step(2, [group], {}, "h")
        assert contents(tmp_path) == before
        assert store.last_step == 1
        store.commit_step(2, [group], {}, "h")  # room was made
        assert store.last_step == 2


def test_a_full_disk_on_put_group_names_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        blow_before(monkeypatch, os, "fsync", [Fuse(0, disk_full)])
        with pytest.raises(StoreError, match=r"groups/a-.*\(group of request a\): no space left on the disk"):
            store.put_group(make_group("a", 1), 0)
        assert store.pending_groups() == []


def test_a_full_disk_on_a_checkpoint_keeps_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG, keep=KEEP) as store:
        take_step(store, 1)
        save_checkpoint(store, 1)
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            blow_before(patch, os, "rename", [Fuse(0, disk_full)])
            with pytest.raises(StoreError, match="checkpoint.*No space left"):
                save_checkpoint(store, 2)
        assert contents(tmp_path) == before


def test_a_full_remote_store_leaves_the_old_state() -> None:
    fuse = Fuse(10**6, disk_full)
    files = pafs.PyFileSystem(FusedFiles(pafs._MockFileSystem(), fuse))
    with RunStore.open("runs/demo", CONFIG, filesystem=files) as store:
        take_step(store, 1)
        group = make_group("a", 2)
        store.put_group(group, 1)
        fuse.left = 2
        with pytest.raises(StoreError, match=r"manifest.json \(step manifest\): no space left on the disk"):
            store.commit_step(2, [group], {}, "h")
        fuse.left = 10**6
        assert RunStore.read("runs/demo", filesystem=files).last_step == 1
        store.commit_step(2, [group], {}, "h")
        assert RunStore.read("runs/demo", filesystem=files).last_step == 2


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot open .*file/run/.lock"):
        RunStore.open(str(tmp_path / "file" / "run"), CONFIG)
