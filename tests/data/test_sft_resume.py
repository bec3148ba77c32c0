"""A fine-tuning that ends early resumes to the same weights; a folder with another one is refused by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from published_helpers import sft_row, write_lines
from safetensors.torch import load_file
from seeing_rows import as_folder, pictured_rows
from zoo import build

from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_folder import OccupiedFolder
from genevolve_ray.data.sft_training import train_on_rows
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.rejections import RejectionReport

QUICK: dict[str, Any] = {
    "dtype": "float32", "lr": 3e-3, "global_batch": 2, "epochs": 3, "token_budget": 4096, "heldout_fraction": 0.3,
    "evaluate_every": 2, "checkpoint_every": 2,
}  # fmt: skip


class Stopped(Exception):
    """Ends a training in the middle."""


class Watcher:
    """Keeps what a training says, and stops it after a step."""

    def __init__(self, stop: int | None = None, unlink: Path | None = None) -> None:
        self.stop, self.unlink = stop, unlink
        self.steps: list[int] = []
        self.went_on_after: int | None = None

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        self.total = steps
        if self.unlink is not None:
            self.unlink.unlink()

    def resumed(self, done: int) -> None:
        self.went_on_after = done

    def step(self, step: Any) -> None:
        self.steps.append(step.step)
        if step.step + 1 == self.stop:
            raise Stopped

    def heldout(self, done: int, evaluation: Any) -> None:
        """Hear nothing."""


def train(
    file: Path, model: Path, out: Path, watcher: Watcher | None = None, overwrite: bool = False, **settings: Any
) -> dict[str, Any]:
    config = SftRowsConfig.model_validate(QUICK | settings)
    return train_on_rows([file], model, out, config, watcher or Watcher(), overwrite=overwrite)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "rows.jsonl", [*(sft_row(i) for i in range(12)), b"{"])


def without_times(made: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key != "seconds"}


def test_a_training_that_ended_early_goes_on_to_the_same_weights(rows: Path, model_dir: Path, tmp_path: Path) -> None:
    whole = train(rows, model_dir, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(rows, model_dir, tmp_path / "parts", Watcher(stop=5))
    assert not (tmp_path / "parts/model.safetensors").exists()
    again = Watcher()
    parts = train(rows, model_dir, tmp_path / "parts", again)
    assert again.went_on_after == 4 and again.steps == list(range(4, again.total))
    assert without_times(parts) == without_times(whole)
    for name in ("model.safetensors", "rejections.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "parts/training").exists()


def test_another_training_in_the_folder_is_refused_by_what_differs(rows: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(rows, model_dir, tmp_path / "out", Watcher(stop=3))
    with pytest.raises(OccupiedFolder, match=r"holds another training: lr was 0\.003, now 0\.1; --overwrite"):
        train(rows, model_dir, tmp_path / "out", lr=0.1)
    other = write_lines(tmp_path / "rows.jsonl", [sft_row(i) for i in range(1, 12)])
    with pytest.raises(OccupiedFolder, match=r"other rows to (train on|hold out): row \d of .*rows\.jsonl is another"):
        train(other, model_dir, tmp_path / "out")
    seen = Watcher()
    train(other, model_dir, tmp_path / "out", seen, lr=0.1, overwrite=True)
    assert seen.steps[0] == 0 and seen.went_on_after is None


def test_a_finished_training_is_overwritten_only_on_demand(rows: Path, model_dir: Path, tmp_path: Path) -> None:
    train(rows, model_dir, tmp_path / "out", max_steps=1)
    before = (tmp_path / "out/model.safetensors").read_bytes()
    with pytest.raises(OccupiedFolder, match=r"holds a finished training \(sft\.json\): --overwrite replaces it"):
        train(rows, model_dir, tmp_path / "out", max_steps=1, lr=0.1)
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    (tmp_path / "out/mine.txt").write_text("kept")
    made = train(rows, model_dir, tmp_path / "out", max_steps=1, lr=0.1, overwrite=True)
    assert made["steps"] == 1 and (tmp_path / "out/model.safetensors").read_bytes() != before
    assert (tmp_path / "out/mine.txt").is_file()


def test_speed_and_memory_may_change_when_a_training_goes_on(rows: Path, model_dir: Path, tmp_path: Path) -> None:
    whole = train(rows, model_dir, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(rows, model_dir, tmp_path / "out", Watcher(stop=3))
    made = train(rows, model_dir, tmp_path / "out", token_budget=100, gradient_checkpointing=True, checkpoint_every=3)
    assert made["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_a_damaged_state_is_one_line(rows: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(rows, model_dir, tmp_path / "out", Watcher(stop=3))
    (state,) = (tmp_path / "out/training").glob("state-*")
    (state / "state.pt").write_bytes(b"damaged")
    with pytest.raises(UserFault, match=r"state\.pt cannot be read .*: remove .*state-00000002 to start again"):
        train(rows, model_dir, tmp_path / "out")


def test_an_adapter_goes_on_and_is_the_result(rows: Path, model_dir: Path, tmp_path: Path) -> None:
    adapter, merged = {"lora": {"rank": 4}}, {"lora": {"rank": 4, "publish": "merged"}}
    with pytest.raises(Stopped):
        train(rows, model_dir, tmp_path / "adapter", Watcher(stop=3), **adapter)
    train(rows, model_dir, tmp_path / "adapter", **adapter)
    train(rows, model_dir, tmp_path / "merged", **merged)
    file = "adapter_model.safetensors"
    alone, beside = load_file(tmp_path / "adapter" / file), load_file(tmp_path / "merged/adapter" / file)
    assert alone.keys() == beside.keys() and all(tensor.equal(beside[name]) for name, tensor in alone.items())
    assert not (tmp_path / "adapter/model.safetensors").exists()
    before, after = load_file(model_dir / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    moved = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert before.keys() == after.keys() and moved and all("_proj" in name for name in moved)


def test_a_row_that_lost_its_picture_keeps_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, settings = build("qwen3-vl", tmp_path / "model"), {"images": "vision", "heldout_fraction": 0, "epochs": 3}
    settings["profile"] = {"extends": "release", "observations": {"images": True, "max_side": 128}}
    made, reports = {}, {}
    for name, stop in (("whole", None), ("parts", 3)):
        rows, files = pictured_rows(5)
        file = as_folder(tmp_path / name / "rows", rows, files)
        gone = tmp_path / name / "rows" / rows[2]["images"][0]
        with caplog.at_level(logging.WARNING):
            if stop is not None:
                with pytest.raises(Stopped):
                    train(file, model, tmp_path / name / "out", Watcher(stop, gone), **settings)
            made[name] = train(
                file, model, tmp_path / name / "out", Watcher(unlink=gone if stop is None else None), **settings
            )
        reports[name] = json.loads((tmp_path / name / "out/rejections.json").read_text())["rejected"]
    assert reports["whole"] == reports["parts"] == {"missing_image": 1}
    assert made["parts"]["loss"] == made["whole"]["loss"] and made["parts"]["trained_on"] == 5
