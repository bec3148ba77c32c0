"""Versions in the memory of one machine, until they are released."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genevolve_ray.evolution.weights import WeightFolders, memory_folder, weight_folders


def test_a_version_gets_a_fresh_folder(tmp_path: Path) -> None:
    folders = WeightFolders(tmp_path)
    folder = Path(folders.create(3))
    (folder / "stale").write_text("x")
    assert folders.create(3) == str(folder)
    assert list(folder.iterdir()) == []


def test_versions_lie_side_by_side_until_released(tmp_path: Path) -> None:
    folders = WeightFolders(tmp_path)
    first, second = Path(folders.create(1)), Path(folders.create(2))
    assert first.is_dir()
    assert second.is_dir()
    folders.release(1)
    folders.release(1)
    assert not first.exists()
    assert second.is_dir()


def test_nothing_is_left_behind() -> None:
    with pytest.raises(KeyError), weight_folders() as folders:
        folder = Path(folders.create(1))
        assert folder.is_dir()
        raise KeyError
    assert not folder.parent.exists()


def test_leftovers_of_the_dead_are_swept_and_of_the_living_are_not() -> None:
    with weight_folders() as folders:
        base = Path(folders.create(0)).parent.parent
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    dead, alive = memory_folder("some", ended.pid), memory_folder("some", 1)
    assert dead.parent == base
    for folder in (dead, alive):
        (folder / "v000001").mkdir(parents=True)
    try:
        with weight_folders():
            assert not dead.exists()
            assert alive.is_dir()
    finally:
        (alive / "v000001").rmdir()
        alive.rmdir()
