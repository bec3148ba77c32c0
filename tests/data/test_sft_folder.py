"""The folder of a training: its states appear completely, and it has one writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genevolve_ray.data.sft_folder import OccupiedFolder, TrainingFolder, check_unfinished
from genevolve_ray.errors import UserFault

SETTINGS = {"lr": 0.1, "lora": {"rank": 4, "publish": "adapter"}, "betas": (0.9, 0.99), "ranks": 1}


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    made = TrainingFolder(tmp_path / "out", SETTINGS)
    assert made.begin({"date": "2026-01-02", "train": []}) is None
    return made


def test_a_state_that_was_not_completed_does_not_count(folder: TrainingFolder) -> None:
    with folder.state(2, {"steps": 2}) as target:
        (target / "weights").write_text("two")
    with pytest.raises(RuntimeError), folder.state(4, {"steps": 4}) as target:
        raise RuntimeError
    newest = folder.newest()
    assert newest is not None and newest[1] == {"steps": 2} and (newest[0] / "weights").read_text() == "two"
    with folder.state(4, {"steps": 4}):
        pass
    assert [path.name for path in sorted(newest[0].parent.glob("state-*"))] == ["state-00000004"]


def test_a_folder_has_one_writer(folder: TrainingFolder) -> None:
    with pytest.raises(OccupiedFolder, match="is being written by another process"):
        TrainingFolder(folder.out, SETTINGS).begin({})
    folder.release()
    assert TrainingFolder(folder.out, SETTINGS).begin({}) == {"date": "2026-01-02", "train": []}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 0.2}, r"lr was 0\.1, now 0\.2"),
        ({"lora": None}, r"lora\.rank was 4, now null"),
        ({"lora": {"rank": 8, "publish": "merged"}}, r"lora\.rank was 4, now 8"),
        ({"betas": (0.9, 0.95)}, r"betas was \[0\.9, 0\.99\], now \[0\.9, 0\.95\]"),
    ],
)
def test_what_differs_is_named(folder: TrainingFolder, changed: dict[str, object], named: str) -> None:
    with pytest.raises(OccupiedFolder, match=named):
        TrainingFolder(folder.out, SETTINGS | changed).check()


def test_what_changes_no_result_may_differ(folder: TrainingFolder) -> None:
    free = {"ranks": 8, "lora": {"rank": 4, "publish": "merged"}}
    TrainingFolder(folder.out, SETTINGS | free).check()


def test_an_unfinished_training_keeps_its_day(folder: TrainingFolder) -> None:
    assert TrainingFolder(folder.out, SETTINGS).date() == "2026-01-02"
    assert TrainingFolder(folder.out, SETTINGS | {"lr": 1.0}, overwrite=True).date() == ""


def test_a_result_is_moved_into_place_with_its_mark_last(folder: TrainingFolder) -> None:
    with folder.result() as target:
        (target / "adapter").mkdir()
        (target / "adapter/model").write_text("x")
    assert not (folder.out / "sft.json").exists()
    folder.finish({"files": ["adapter/model"]})
    assert (folder.out / "adapter/model").read_text() == "x" and not (folder.out / "training").exists()
    with pytest.raises(OccupiedFolder, match=r"holds a finished training \(sft\.json\)"):
        TrainingFolder(folder.out, SETTINGS).check()
    again = TrainingFolder(folder.out, SETTINGS, overwrite=True)
    assert again.begin({}) is None and not (folder.out / "adapter/model").exists()


def test_a_model_of_unknown_origin_is_not_overwritten(tmp_path: Path) -> None:
    check_unfinished(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OccupiedFolder, match=r"holds a model \(config\.json\): --overwrite replaces it"):
        TrainingFolder(tmp_path, SETTINGS).check()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_damaged_settings_are_one_line(folder: TrainingFolder, text: str) -> None:
    (folder.out / "training/settings.json").write_text(text)
    with pytest.raises(UserFault, match=r"settings\.json .*: remove .*training to start again"):
        TrainingFolder(folder.out, SETTINGS).check()


@pytest.mark.parametrize("names", [["../mine"], "mine", [1], None])
def test_only_files_of_the_folder_are_removed(tmp_path: Path, names: object) -> None:
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sft.json").write_text(json.dumps({"files": names}))
    TrainingFolder(out, SETTINGS, overwrite=True).begin({})
    assert (tmp_path / "mine").is_file()
