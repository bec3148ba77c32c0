"""What a training keeps is written whole or not at all, and a damaged file is named with its remedy."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genevolve_ray.errors import UserFault, as_ending
from genevolve_ray.small.training import checkpoints
from genevolve_ray.small.training.checkpoints import SmallCheckpoint, read_tensors, write_tensors


def checkpoint(step: int) -> SmallCheckpoint:
    moments = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.ones(2)}}}
    return SmallCheckpoint(step, {"w": torch.full((2,), float(step))}, {"w": torch.zeros(2)}, moments, {"seed": 0})


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoint(3).save(tmp_path / "c.safetensors")
    found = SmallCheckpoint.load(tmp_path / "c.safetensors", {"seed": 0})
    assert found is not None and found.step == 3 and found.model["w"].tolist() == [3, 3]
    assert found.optimizer["state"][0]["exp_avg"].tolist() == [1, 1]


def test_a_checkpoint_names_what_it_does_not_agree_with(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint(1).save(path)
    with pytest.raises(UserFault, match=r"a training with seed=0, not 1; remove it to start anew$"):
        SmallCheckpoint.load(path, {"seed": 1})


def test_a_checkpoint_of_an_earlier_version_is_refused_with_the_name_of_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint(1).save(path)
    with pytest.raises(UserFault, match=r"a training with examples=\(unrecorded\), not 'ab'; remove it to start anew$"):
        SmallCheckpoint.load(path, {"seed": 0, "examples": "ab"})
    with pytest.raises(UserFault, match=r"seed=0, not \(unrecorded\)"):
        SmallCheckpoint.load(path, {})


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def foreign(path: Path) -> None:
    save_file({"w": torch.zeros(1)}, path)


@pytest.mark.parametrize("harm", [nothing, torn, foreign])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint(1).save(path)
    harm(path)
    with pytest.raises(UserFault, match=r"c\.safetensors is damaged .*remove it to make it again"):
        SmallCheckpoint.load(path, {"seed": 0})


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    torn(write_tensors({"a": torch.ones(2, 3).T}, tmp_path / "a.safetensors"))
    with pytest.raises(UserFault, match=r"a\.safetensors is damaged"):
        read_tensors(tmp_path / "a.safetensors")


def test_a_full_disk_ends_in_one_line_and_the_older_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint(1).save(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as told:
        checkpoint(2).save(path)
    assert as_ending(told.value) is not None
    found = SmallCheckpoint.load(path, {"seed": 0})
    assert found is not None and found.step == 1
