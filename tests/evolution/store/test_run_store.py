"""The run store keeps what was committed, and says clearly what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from store_helpers import CONFIG, make_group, save_checkpoint, take_step

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.lock import RunLockedError
from genevolve_ray.evolution.store.manifest import CheckpointConfig
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.request import EvalType, Request


@pytest.fixture(params=["local", "subtree", "mock"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, pafs.FileSystem | None]:
    """A run's address on three kinds of filesystems."""
    if request.param == "local":
        return str(tmp_path / "runs" / "demo"), None
    if request.param == "subtree":
        return "runs/demo", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return "runs/demo", pafs._MockFileSystem()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "demo"


def test_a_run_is_read_back_as_it_was_written(place: tuple[str, pafs.FileSystem | None]) -> None:
    uri, fs = place
    with RunStore.open(uri, CONFIG, run_seed=7, filesystem=fs) as store:
        first = take_step(store, 1)
        second = take_step(store, 2, loop={"leased": 4})
        save_checkpoint(store, 2)
    for again in (RunStore.read(uri, filesystem=fs), RunStore.open(uri, CONFIG, run_seed=7, filesystem=fs)):
        assert (again.committed_steps(), again.last_step) == ([1, 2], 2)
        assert [again.groups(1), again.groups(2)] == [first, second]
        assert again.metrics() == [{"step": 1, "reward_mean": 0.1}, {"step": 2, "reward_mean": 0.2}]
        assert (again.config, again.info.run_seed) == (CONFIG, 7)
        assert (again.manifest(2).policy_before, again.manifest(2).policy_after) == (1, 2)
        assert (again.manifest(2).state_hash, again.manifest(2).loop) == ("hash-2", {"leased": 4})
        with again.open_checkpoint(2) as folder:
            assert (folder / "model.bin").read_bytes() == b"weights 2"
            assert (folder / "loop" / "state.json").read_text() == "{}"
        again.close()


def test_the_layout_is_the_documented_one(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        save_checkpoint(store, 1)
        take_step(store, 1, validation={"reward_mean": 0.5})
        store.put_summary({"reward": 1.0})
        store.put_trajectories("heldout/final", make_group("h", 0, 1).trajectories)
        store.images.put(b"png", width=1, height=1)
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    groups = {f for f in files if "/groups/" in f}
    images = {f for f in files if f.startswith("images/")}
    assert sorted(g.split("/")[-1][:2] for g in groups) == ["a-", "b-"]
    assert len(images) == 1
    assert files - groups - images == {
        ".lock",
        "checkpoints/000001.json",
        "checkpoints/000001/loop/state.json",
        "checkpoints/000001/model.bin",
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "steps/000001/manifest.json",
        "summary.json",
        "trajectories/heldout/final.parquet",
        "validation/000001.json",
    }
    manifest = json.loads((run / "steps/000001/manifest.json").read_text())
    assert manifest["checkpoint"] == "000001"
    assert [g["request_id"] for g in manifest["groups"]] == ["b", "a"]


def test_documents_come_back(place: tuple[str, pafs.FileSystem | None]) -> None:
    uri, fs = place
    trajectories = make_group("h", 0, 1).trajectories
    requests = [Request(id="r", prompt="p", eval_type=EvalType.QUALITY, meta={"scene": [1]})]
    with RunStore.open(uri, CONFIG, filesystem=fs) as store:
        assert store.summary() == {}
        store.put_trajectories("heldout_sft", trajectories)
        store.put_requests("heldout", requests)
        store.put_summary({"seconds": {"total": 1.5}})
        store.put_validation(0, {"reward_mean": 0.25})
        ref = store.images.put(b"data", width=1, height=2)
    again = RunStore.read(uri, filesystem=fs)
    assert again.get_trajectories("heldout_sft") == trajectories
    assert again.trajectory_names() == ["heldout_sft"]
    assert again.get_requests("heldout") == requests
    assert again.summary() == {"seconds": {"total": 1.5}}
    assert again.validations() == [{"step": 0, "reward_mean": 0.25}]
    assert again.images.get(ref) == b"data"


def test_the_image_store_can_be_opened_elsewhere_by_its_uri(run: Path) -> None:
    with RunStore.open(run.as_uri(), CONFIG) as store:
        ref = store.images.put(b"data", width=1, height=1)
        assert FilesystemImages(store.images.uri).get(ref) == b"data"


def test_remote_addresses_keep_their_options() -> None:
    folder = Folder("mock:///runs/demo/?seed=1")
    assert folder.address("images") == "mock:///runs/demo/images?seed=1"


def test_names_cannot_leave_the_run(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store, pytest.raises(ValueError, match=r"'\.\./x' is not a valid name"):
        store.put_trajectories("../x", [])


def test_non_finite_metrics_become_null(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        store.commit_step(1, [], {"loss": float("nan"), "kl": float("inf"), "n": 3, "note": "x"}, "h")
        rows = store.metrics()
    assert rows == [{"step": 1, "loss": None, "kl": None, "n": 3, "note": "x"}]
    assert json.loads((run / "metrics.jsonl").read_text()) == rows[0]


def test_a_reader_sees_new_steps_after_refresh_and_cannot_write(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        reader = RunStore.read(str(run))
        take_step(store, 1)
        assert reader.last_step == 0
        reader.refresh()
        assert reader.last_step == 1
        with pytest.raises(StoreError, match="open for reading only"):
            reader.commit_step(2, [], {}, "h")


def test_no_run_is_begun_unless_asked(run: Path) -> None:
    with pytest.raises(StoreError, match=f"no run found at {run}"):
        RunStore.open(str(run), CONFIG, create=False)
    with pytest.raises(StoreError, match=f"no run found at {run}"):
        RunStore.read(str(run))
    assert not run.exists()


def test_an_unknown_uri_is_named() -> None:
    with pytest.raises(StoreError, match="nosuch://bucket/run"):
        RunStore.open("nosuch://bucket/run", CONFIG)


# --- what a step may be ------------------------------------------------------------------------------------------------


def test_steps_follow_each_other(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        with pytest.raises(StoreError, match="step 2 cannot be committed after step 0"):
            store.commit_step(2, [], {}, "h")
        take_step(store, 1)
        with pytest.raises(StoreError, match="step 1 cannot be committed after step 1"):
            store.commit_step(1, [], {}, "h")


def test_a_group_must_be_persisted_before_it_is_committed(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store, pytest.raises(StoreError, match="request x was never persisted"):
        store.commit_step(1, [make_group("x", 1)], {}, "h")


def test_a_group_is_used_once(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        group = make_group("a", 1)
        store.put_group(group, 0)
        with pytest.raises(StoreError, match="would use steps/000001/groups/a-.*twice"):
            store.commit_step(1, [group, group], {}, "h")
        store.commit_step(1, [group], {}, "h")
        with pytest.raises(StoreError, match="never persisted, or is already used"):
            store.commit_step(2, [group], {}, "h")
        with pytest.raises(StoreError, match="is committed already: the group of a was generated twice"):
            store.put_group(group, 0)


def test_request_ids_are_made_safe_for_file_names(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        group = make_group("../../a b/ü" + "x" * 300, 1)
        file = store.put_group(group, 0)
        assert file.path.startswith("steps/000001/groups/.._.._a_b__xxx")
        assert store.pending_groups() == [group]


def test_the_same_group_twice_is_one_file(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        files = [store.put_group(make_group("a", 1), 0) for _ in range(2)]
        assert files[0] == files[1]
        assert len(store.pending_groups()) == 1


def test_a_group_that_vanished_is_not_committed(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        group = make_group("a", 1)
        file = store.put_group(group, 0)
        (run / file.path).unlink()
        with pytest.raises(StoreError, match=f"{file.path} should have {file.size} bytes, it has None"):
            store.commit_step(1, [group], {}, "h")
        assert store.last_step == 0


def test_a_group_that_was_given_up_is_not_committed_and_its_file_stays(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        group = make_group("a", 1)
        store.put_group(group, 0)
        store.forget_group(group)
        with pytest.raises(StoreError, match="never persisted"):
            store.commit_step(1, [group], {}, "h")
        assert store.pending_groups() == [group]


# --- resume ------------------------------------------------------------------------------------------------------------


def test_groups_that_no_manifest_names_are_pending_whatever_their_round(run: Path) -> None:
    early, late = make_group("a", 2), make_group("b", 5, 0)
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        store.put_group(late, 0)
        store.put_group(early, 1)
    with RunStore.open(str(run), CONFIG) as store:
        assert store.pending_groups() == [early, late]
        [_, again] = store.pending_groups()
        store.commit_step(2, [again], {}, "h")
        assert store.groups(2) == [late]
        assert store.pending_groups() == [early]


def test_the_plan_re_applies_what_the_last_checkpoint_lacks(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        plan = store.resume_plan()
        assert (plan.checkpoint_step, plan.steps_to_reapply, plan.next_step, plan.state_hash) == (None, (), 1, None)
        take_step(store, 1)
        assert store.resume_plan().steps_to_reapply == (1,)
        save_checkpoint(store, 2)
        take_step(store, 2)
        take_step(store, 3)
        take_step(store, 4)
    with RunStore.open(str(run), CONFIG) as store:
        plan = store.resume_plan()
        assert (plan.checkpoint_step, plan.steps_to_reapply, plan.next_step) == (2, (3, 4), 5)
        assert plan.state_hash == "hash-4"


def test_metrics_are_rebuilt_from_the_manifests(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        take_step(store, 2)
    right = (run / "metrics.jsonl").read_bytes()
    for wrong in (right[:-5], right + right, b""):
        (run / "metrics.jsonl").write_bytes(wrong)
        RunStore.open(str(run), CONFIG).close()
        assert (run / "metrics.jsonl").read_bytes() == right


def test_validations_of_uncommitted_steps_go(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        store.put_validation(0, {"reward_mean": 0.1})
        store.put_validation(1, {"reward_mean": 0.9})
        assert [v["step"] for v in store.validations()] == [0]
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        assert [v["step"] for v in store.validations()] == [0]


def test_another_configuration_is_refused_with_the_keys_that_differ(run: Path) -> None:
    RunStore.open(str(run), CONFIG).close()
    changed = {"seed": 1, "loop": {"steps": 4, "group_size": 8}, "judge": "x"}
    with pytest.raises(StoreError, match=r"judge: was \(absent\), is x; loop.group_size: was 2, is 8"):
        RunStore.open(str(run), changed)
    RunStore.open(str(run), CONFIG).close()  # the failed attempt left neither a lock nor a change


def test_steps_and_logging_may_change(run: Path) -> None:
    RunStore.open(str(run), CONFIG).close()
    longer = {"seed": 1, "loop": {"steps": 9, "group_size": 2}, "logging": {"tensorboard": "x"}}
    with RunStore.open(str(run), longer) as store:
        assert store.config == longer


def test_another_run_seed_is_refused(run: Path) -> None:
    RunStore.open(str(run), CONFIG, run_seed=1).close()
    with pytest.raises(StoreError, match="started with run seed 1, not 2"):
        RunStore.open(str(run), CONFIG, run_seed=2)


# --- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_best_and_the_last_few_checkpoints_stay(place: tuple[str, pafs.FileSystem | None]) -> None:
    uri, fs = place
    rewards = {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.3}
    with RunStore.open(uri, CONFIG, keep=CheckpointConfig(keep_last=2, keep_best=1), filesystem=fs) as store:
        for step, reward in rewards.items():
            save_checkpoint(store, step, reward=reward)
            take_step(store, step)
        assert [c.step for c in store.checkpoints()] == [2, 4, 5]
        latest, best = store.latest_checkpoint(), store.best_checkpoint()
        assert latest is not None and latest.step == 5
        assert best is not None and best.step == 2
        with pytest.raises(StoreError, match=r"no checkpoint of step 3, only of \[2, 4, 5\]"):
            store.open_checkpoint(3)


def test_the_checkpoint_that_resume_needs_outlives_an_uncommitted_one(run: Path) -> None:
    with RunStore.open(str(run), CONFIG, keep=CheckpointConfig(keep_last=1, keep_best=0)) as store:
        take_step(store, 1)
        save_checkpoint(store, 1)
        save_checkpoint(store, 2)
        assert store.resume_plan().checkpoint_step == 1
    with RunStore.open(str(run), CONFIG) as store:
        assert store.resume_plan().checkpoint_step == 1
        assert not (run / "checkpoints/000002").exists()


def test_a_checkpoint_of_another_state_does_not_count(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        save_checkpoint(store, 1, state_hash="of an attempt that was never committed")
        take_step(store, 1)
        assert store.latest_checkpoint() is None
        assert store.manifest(1).checkpoint is None
        save_checkpoint(store, 1)
        assert store.resume_plan().checkpoint_step == 1


def test_a_failed_checkpoint_leaves_nothing(place: tuple[str, pafs.FileSystem | None]) -> None:
    uri, fs = place
    with RunStore.open(uri, CONFIG, filesystem=fs) as store:
        with pytest.raises(ZeroDivisionError), store.checkpoint(0, "h") as folder:
            (folder / "model.bin").write_bytes(b"x")
            raise ZeroDivisionError
        assert store.checkpoints() == []
        with pytest.raises(StoreError, match="is empty"), store.checkpoint(0, "h"):
            pass
        save_checkpoint(store, 0, "h")
        assert [c.step for c in store.checkpoints()] == [0]
        with pytest.raises(StoreError, match="step 0 already has a checkpoint"), store.checkpoint(0, "h"):
            pass


def test_a_checkpoint_is_checked_when_it_is_opened(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        save_checkpoint(store, 0, "h")
        (run / "checkpoints/000000/model.bin").write_bytes(b"weights 1")
        with pytest.raises(StoreError, match="model.bin is corrupt"), store.open_checkpoint(0):
            pass
        (run / "checkpoints/000000/model.bin").unlink()
        with pytest.raises(StoreError, match=r"cannot read .*model.bin"), store.open_checkpoint(0):
            pass


# --- corrupt files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:40] + b"?" + b[41:]])
def test_a_corrupt_manifest_is_named(run: Path, damage: object) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
    path = run / "steps/000001/manifest.json"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(StoreError, match=f"{path} is corrupt"):
        RunStore.open(str(run), CONFIG)


def test_a_missing_manifest_is_named(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        take_step(store, 2)
    (run / "steps/000001/manifest.json").unlink()
    with pytest.raises(StoreError, match="steps/000001/manifest.json is missing, but later steps are committed"):
        RunStore.open(str(run), CONFIG)


def test_a_manifest_of_a_later_version_is_named(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
    path = run / "steps/000001/manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match=f"{path} has schema version 2, this version reads 1"):
        RunStore.read(str(run))


def test_groups_of_some_requests_are_read_alone(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        broken = next(g for g in store.manifest(1).groups if g.request_id == "b")
        (run / broken.path).unlink()
        assert [g.request_id for g in store.groups(1, {"a", "unknown"})] == ["a"]


def test_a_corrupt_group_is_named(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        take_step(store, 1)
        path = run / store.manifest(1).groups[0].path
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(StoreError, match=f"{path} is corrupt"):
            store.groups(1)
        path.unlink()
        with pytest.raises(StoreError, match=f"cannot read {path}"):
            store.groups(1)


def test_a_truncated_pending_group_is_named(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        path = run / store.put_group(make_group("a", 1), 0).path
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(StoreError, match=f"{path} is corrupt"):
            store.pending_groups()


def test_a_corrupt_configuration_or_validation_is_named(run: Path) -> None:
    with RunStore.open(str(run), CONFIG) as store:
        store.put_validation(0, {})
        (run / "validation/000000.json").write_text("{")
        with pytest.raises(StoreError, match=r"validation/000000.json is corrupt"):
            store.validations()
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(StoreError, match="config.yaml is corrupt"):
        RunStore.open(str(run), CONFIG)


def test_two_writers_in_one_process(run: Path) -> None:
    with RunStore.open(str(run), CONFIG), pytest.raises(RunLockedError, match="is being written by process"):
        RunStore.open(str(run), CONFIG)
