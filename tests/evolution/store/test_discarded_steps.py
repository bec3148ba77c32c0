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
