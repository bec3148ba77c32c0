"""Damaged files of a run: what can be done without is left out and named, and the rest still leads to the same state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from store_helpers import CONFIG, make_group, save_checkpoint, take_step

from genevolve_ray.evolution.store.files import TEMPORARY, StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.ledger import MediaSpan
from genevolve_ray.records.observation import ImageHit

Damage = Callable[[bytes], bytes]
DAMAGES: list[Damage] = [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:30] + bytes([d[30] ^ 1]) + d[31:]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def spoil(path: Path, damage: Damage = DAMAGES[0]) -> None:
    path.write_bytes(damage(path.read_bytes()))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_group_that_no_step_used_is_set_aside(run: Path, damage: Damage) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        sound, broken = make_group("a", 1), make_group("b", 1)
        store.put_group(sound, 0)
        path = run / store.put_group(broken, 0).path
        spoil(path, damage)
    notes: list[str] = []
    with RunStore.open(str(run), CONFIG) as store:
        assert store.pending_groups(notes.append) == [sound]
        assert store.pending_groups(notes.append) == [sound]
    [note] = notes
    assert note.startswith(f"{path} is corrupt") and note.endswith("its samples are drawn again")
    assert path.with_name(f"{path.name}.damaged").exists() and not path.exists()


def test_a_group_whose_picture_is_gone_is_drawn_again(run: Path) -> None:
    data = [b"first", b"second"]
    with RunStore.open(str(run), CONFIG) as store:
        refs = [store.images.put(one, width=4, height=4) for one in data]
        groups = [make_group(name, 1) for name in ("a", "b")]
        for group, ref in zip(groups, refs, strict=True):
            for trajectory in group.trajectories:
                trajectory.ledger.media = [MediaSpan(start=0, end=1, sha256=ref.sha256, grid=(1, 2, 2))]
                trajectory.images = {"IMG_001": ImageHit(title="", url="", image=ref, shown=ref)}
        paths = [run / store.put_group(group, 0).path for group in groups]
    next((run / "images").rglob(refs[1].file_name)).unlink()
    notes: list[str] = []
    with RunStore.open(str(run), CONFIG) as store:
        with pytest.raises(StoreError, match=f"{paths[1]} cannot be trained on: picture {refs[1].sha256[:12]}"):
            store.pending_groups()
        assert store.pending_groups(notes.append) == groups[:1]
        assert store.pending_groups(notes.append) == groups[:1]
    [note] = notes
    assert "which the policy saw, is missing or damaged" in note and note.endswith("its samples are drawn again")


def test_one_flipped_bit_in_a_number_of_a_group_is_found(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        path = run / store.put_group(make_group("a", 1), 0).path
        data = path.read_bytes()
        for place in range(8, len(data), 97):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(StoreError, match="is corrupt"):
                store.pending_groups()


@pytest.mark.parametrize("damage", DAMAGES[:2])
def test_a_damaged_manifest_of_an_earlier_step_does_not_block(run: Path, damage: Damage) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        for step in (1, 2, 3):
            take_step(store, step)
        save_checkpoint(store, 2)
    rows = (run / "metrics.jsonl").read_bytes()
    path = run / "steps/000001/manifest.json"
    spoil(path, damage)
    with RunStore.open(str(run), CONFIG) as store:
        assert (store.last_step, store.committed_steps()) == (3, [2, 3])
        assert list(store.damage) == ["steps/000001/manifest.json"]
        assert store.resume_plan().steps_to_reapply == (3,)
        assert (run / "metrics.jsonl").read_bytes() == rows
        with pytest.raises(StoreError, match=f"{path} is corrupt"):
            store.manifest(1)
        take_step(store, 4)
        assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert RunStore.read(str(run)).last_step == 4


@pytest.mark.parametrize("damage", DAMAGES[:2])
def test_a_damaged_manifest_of_a_checkpoint_is_no_checkpoint(run: Path, damage: Damage) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        save_checkpoint(store, 1)
        take_step(store, 2)
        save_checkpoint(store, 2)
    spoil(run / "checkpoints/000002.json", damage)
    with RunStore.open(str(run), CONFIG) as store:
        assert [p.checkpoint_step for p in store.resume_plans()] == [1, None]
        assert list(store.damage) == ["checkpoints/000002.json"]
        assert (run / "checkpoints/000002/model.bin").exists(), "its weights stay"


def test_plans_go_back_to_the_start(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        for step in (1, 2, 3):
            take_step(store, step)
            if step < 3:
                save_checkpoint(store, step)
        plans = [(p.checkpoint_step, p.steps_to_reapply, p.state_hash) for p in store.resume_plans()]
    assert plans == [(2, (3,), "hash-3"), (1, (2, 3), "hash-3"), (None, (1, 2, 3), "hash-3")]


def test_a_corrupt_checkpoint_does_not_push_a_sound_one_out(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        for step in (1, 2):
            take_step(store, step)
            save_checkpoint(store, step)
        spoil(run / "checkpoints/000002/model.bin")
        with pytest.raises(StoreError, match="is corrupt"), store.open_checkpoint(2):
            pass
        take_step(store, 3)
        save_checkpoint(store, 3)
        assert [c.step for c in store.checkpoints()] == [1, 2, 3]


def test_remains_of_failed_writes_go_wherever_they_are(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        ref = store.images.put(b"pixels", width=1, height=1)
    left = [
        run / folder / f"{TEMPORARY}rest"
        for folder in (
            "",
            "steps/000001",
            "steps/000001/groups",
            "validation",
            "trajectories",
            f"images/{ref.sha256[:2]}",
        )
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    with RunStore.open(str(run), CONFIG) as store:
        assert not any(path.exists() for path in left)
        assert store.images.get(ref) == b"pixels"


def test_committed_steps_without_a_description_of_the_run_are_named(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
    (run / "run.json").unlink()
    with pytest.raises(StoreError, match=f"{run}/run.json is missing, but 1 steps are committed"):
        RunStore.open(str(run), CONFIG)
