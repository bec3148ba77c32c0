from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.trajectory import Group
from genevolve_ray.viewer.data import ReportData, find_key, load_report_data, pairs


def store_run(folder: Path, data: ReportData) -> None:
    """Write a run of one step with its held-out evaluation."""
    with RunStore.open(str(folder), data.config, run_seed=7) as store:
        group = Group(data.training[0].key.request_id, 1, [data.training[0], data.training[1]])
        store.put_group(group, 0)
        store.commit_step(1, [group], data.metrics[0], "state", {"reward_mean": 0.5})
        store.put_requests("heldout", data.requests)
        store.put_trajectories("heldout-sft", data.before)
        store.put_trajectories("heldout-final", data.after)
        store.put_summary(data.summary)
        for side in (data.before, data.after):
            for trajectory in side:
                if ref := trajectory.rendered:
                    store.images.put(data.load_image(ref), width=ref.width, height=ref.height)


def test_a_stored_run_comes_back_as_report_data(report_data: ReportData, tmp_path: Path) -> None:
    for trajectory in report_data.training[:2]:
        trajectory.key = trajectory.key.model_copy(update={"step": 1, "request_id": "train-1"})
    store_run(tmp_path / "demo", report_data)
    loaded = load_report_data(tmp_path / "demo")
    assert loaded.name == "demo"
    assert loaded.config == report_data.config
    assert loaded.summary == report_data.summary
    assert [row["step"] for row in loaded.metrics] == [1]
    assert loaded.validations == [{"step": 1, "reward_mean": 0.5}]
    assert [p.gain for p in pairs(loaded)] == pytest.approx([p.gain for p in pairs(report_data)])
    assert len(loaded.training) == 2
    picture = next(t.rendered for t in loaded.after if t.rendered)
    assert loaded.load_image(picture) == report_data.load_image(picture)


def test_a_run_that_has_only_begun_has_data_too(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "new"), {"name": "atlas"}):
        loaded = load_report_data(str(tmp_path / "new"))
    assert (loaded.metrics, loaded.requests, loaded.training, loaded.summary) == ([], [], [], {})


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run found at"):
        load_report_data(tmp_path / "nothing")


def test_pairs_need_a_score_on_both_sides(report_data: ReportData) -> None:
    report_data.before.pop(0)
    assert [p.request.id for p in pairs(report_data)] == [r.id for r in report_data.requests[1:]]


def test_keys_are_found_at_any_depth_nearest_first() -> None:
    assert find_key({"a": {"b": 1}, "c": {"d": {"b": 2}}}, "b") == 1
    assert find_key({"a": [1]}, "b") is None


def test_data_without_an_image_store_says_so() -> None:
    with pytest.raises(FileNotFoundError, match="keeps no images"):
        ReportData("bare").load_image(ImageRef(sha256="0" * 64, width=1, height=1))
