"""Versions in the memory of one machine, until they are released."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genevolve_ray.evolution.weights import (
    WeightFolders,
    memory_folder,
    own_folder,
    remove_folder,
    remove_leftovers,
    weight_folders,
)


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


def _keeper(name: str, *prefix: str) -> subprocess.Popen[str]:
    """Start a process that makes a folder with a version, says where, and keeps it until its input ends."""
    script = (
        "import sys; from genevolve_ray.evolution.weights import memory_folder;"
        f"folder = memory_folder({name!r}); (folder / 'v000001').mkdir(exist_ok=True);"
        "print(folder, flush=True); sys.stdin.read()"
    )
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _folder_of(keeper: subprocess.Popen[str]) -> Path:
    assert keeper.stdout is not None
    return Path(keeper.stdout.readline().strip())


def _end(keeper: subprocess.Popen[str]) -> None:
    keeper.kill()
    keeper.communicate()


def test_leftovers_of_the_dead_are_swept_and_of_the_living_are_not() -> None:
    keepers = [_keeper("test-dead"), _keeper("test-alive")]
    dead, alive = (_folder_of(keeper) for keeper in keepers)
    _end(keepers[0])
    with weight_folders() as folders:
        assert Path(folders.create(0)).parent.parent == dead.parent
        assert not dead.exists()
        assert (alive / "v000001").is_dir()
    _end(keepers[1])
    remove_leftovers()
    assert not alive.exists()


def test_a_folder_lives_as_long_as_any_of_its_users() -> None:
    learner, worker = _keeper("test-shared"), _keeper("test-shared")
    folder = _folder_of(learner)
    assert _folder_of(worker) == folder
    _end(learner)
    remove_leftovers()
    assert (folder / "v000001").is_dir(), "the learner is replaced, and a worker still loads its weights"
    again = _keeper("test-shared")
    assert (_folder_of(again) / "v000001").is_dir()
    _end(worker)
    _end(again)
    remove_leftovers()
    assert not folder.exists()


def test_a_folder_that_was_removed_is_made_and_kept_again() -> None:
    folder = memory_folder("test-again")
    shutil.rmtree(folder)
    assert memory_folder("test-again") == folder
    remove_leftovers()
    assert folder.is_dir()
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()


def test_two_runs_with_one_process_id_have_different_folders() -> None:
    with own_folder("run") as first, own_folder("run") as second:
        assert first != second and first.is_dir()


def test_a_run_in_another_namespace_of_processes_keeps_its_weights() -> None:
    isolated = ("unshare", "--pid", "--fork", "--kill-child")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to make a namespace of processes")
    keepers = [_keeper(f"test-namespace-{i}", *isolated) for i in range(2)]
    folders = [_folder_of(keeper) for keeper in keepers]
    sweep = "from genevolve_ray.evolution.weights import remove_leftovers; remove_leftovers()"
    subprocess.run([*isolated, sys.executable, "-c", sweep], check=True)
    remove_leftovers()
    assert all((folder / "v000001").is_dir() for folder in folders)
    for keeper in keepers:
        _end(keeper)
