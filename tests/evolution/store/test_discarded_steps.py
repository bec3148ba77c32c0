"""Steps that are discarded: the run continues from the step before, also where the discarding was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from store_helpers import CONFIG, Crash, Fuse, FusedFiles, contents, make_group, save_checkpoint, take_step

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four steps, a checkpoint of the second, and a group of a fifth that no step has used yet."""
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        for step in (1, 2, 3, 4):
            if step == 2:
                save_checkpoint(store, 2)
            take_step(store, step, validation={"reward_mean": 0.1})
        store.put_group(make_group("c", 5), 4)
    return tmp_path / "run"


def test_the_run_is_as_before_them(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        assert store.discard_steps(2) == [3, 4]
        assert store.committed_steps() == [1, 2]
        assert [entry["step"] for entry in store.validations()] == [1, 2]
        assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_bytes().splitlines()] == [1, 2]
        assert not [name for name in contents(run) if name.startswith(("steps/000004", "steps/000005"))]
    with RunStore.open(str(run), CONFIG) as store:
        plan = store.resume_plan()
        assert (plan.checkpoint_step, plan.steps_to_reapply, plan.state_hash) == (2, (), "hash-2")


def test_the_groups_of_the_next_step_are_used_again(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        store.discard_steps(2)
        kept = store.pending_groups()
        assert [(group.request_id, group.step) for group in kept] == [("a", 3), ("b", 3)]
        store.commit_step(3, kept, {}, "another hash")
        assert store.committed_steps() == [1, 2, 3]


def test_nothing_is_left_where_no_checkpoint_is(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        assert store.discard_steps(0) == [1, 2, 3, 4]
        assert (store.committed_steps(), store.checkpoints(), store.last_step) == ([], [], 0)


def test_a_reader_discards_nothing(run: Path) -> None:
    before = contents(run)
    with pytest.raises(StoreError, match="reading only"):
        RunStore.read(str(run)).discard_steps(2)
    assert contents(run) == before


@pytest.mark.parametrize("operations", range(8))
def test_an_interruption_at_any_point_leaves_a_run_that_continues(run: Path, operations: int) -> None:
    fuse = Fuse(1_000)
    files = pafs.PyFileSystem(FusedFiles(pafs.LocalFileSystem(), fuse))
    with RunStore.open(str(run), CONFIG, filesystem=files) as store:
        fuse.left = operations
        with pytest.raises(Crash):
            store.discard_steps(2)
        fuse.left = 1_000
    with RunStore.open(str(run), CONFIG) as store:
        assert store.resume_plan().checkpoint_step == 2
        store.discard_steps(2)
        assert store.committed_steps() == [1, 2]


def test_groups_of_later_rounds_that_an_earlier_step_was_trained_on_stay(tmp_path: Path) -> None:
    address = str(tmp_path / "run")
    with RunStore.open(address, CONFIG) as store:
        take_step(store, 1)
        ahead, other = make_group("ahead", 5, 1), make_group("other", 5, 1)
        for group in (ahead, other):
            store.put_group(group, 1)
        store.commit_step(2, [ahead], {}, "hash-2")
        save_checkpoint(store, 2)
        take_step(store, 3)
        store.commit_step(4, [other], {}, "hash-4")
        assert store.discard_steps(2) == [3, 4]
    with RunStore.open(address, CONFIG) as store:
        assert store.groups(2) == [ahead]
        assert [group.request_id for group in store.pending_groups()] == ["a", "b"]


def test_redraws_of_discarded_steps_are_deleted(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        for step in (1, 2, 3):
            store.put_redraws(step, make_group("r", step))
            take_step(store, step)
        store.discard_steps(1)
        assert [name for name in contents(tmp_path / "run") if "/redraws/" in name] == [
            store.put_redraws(1, make_group("r", 1)).path
        ]


def test_a_group_that_was_forgotten_is_never_pending_again(tmp_path: Path) -> None:
    address = str(tmp_path / "run")
    with RunStore.open(address, CONFIG) as store:
        dropped = make_group("dropped", 1)
        store.put_group(dropped, 0)
        store.forget_group(dropped)
        assert len(store.pending_groups()) == 1, "no manifest names it yet"
        store.forget_group(store.pending_groups()[0])
        take_step(store, 1, loop={"cursor": 3})
        assert store.pending_groups() == []
        take_step(store, 2)
    with RunStore.open(address, CONFIG) as store:
        assert store.pending_groups() == []
        assert [sorted(manifest.loop) for manifest in store.manifests()] == [["cursor", "dropped"], []]
        store.discard_steps(0)
        assert "dropped" in [group.request_id for group in store.pending_groups()], "its step is not committed any more"
