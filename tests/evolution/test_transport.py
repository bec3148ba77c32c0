"""Weights on their way through host memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genevolve_ray.evolution.transport import HostTransport, host_transport


def test_a_version_gets_a_fresh_folder(tmp_path: Path) -> None:
    transport = HostTransport(tmp_path)
    folder = Path(transport.folder(3))
    (folder / "stale").write_text("x")
    assert transport.folder(3) == str(folder)
    assert list(folder.iterdir()) == []


def test_versions_lie_side_by_side_until_released(tmp_path: Path) -> None:
    transport = HostTransport(tmp_path)
    first, second = Path(transport.folder(1)), Path(transport.folder(2))
    assert first.is_dir()
    assert second.is_dir()
    transport.release(1)
    transport.release(1)
    assert not first.exists()
    assert second.is_dir()


def test_nothing_is_left_behind() -> None:
    with pytest.raises(KeyError), host_transport() as transport:
        folder = Path(transport.folder(1))
        assert folder.is_dir()
        raise KeyError
    assert not folder.parent.exists()


def test_leftovers_of_the_dead_are_swept_and_of_the_living_are_not() -> None:
    with host_transport() as transport:
        base = Path(transport.folder(0)).parent.parent
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    dead, alive = base / f"genevolve-weights-{ended.pid}", base / "genevolve-weights-1"
    for folder in (dead, alive):
        (folder / "v000001").mkdir(parents=True)
    try:
        with host_transport():
            assert not dead.exists()
            assert alive.is_dir()
    finally:
        (alive / "v000001").rmdir()
        alive.rmdir()
