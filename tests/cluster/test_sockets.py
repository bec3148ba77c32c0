"""Sockets of Ray and vLLM: a folder for temporary files that has no room for them is named before the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.cluster.config import ClusterConfig
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.cluster.sockets import check_temporary_folder
from genevolve_ray.errors import UserFault


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "VLLM_RPC_BASE_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("folder", "fault"),
    [
        ("/tmp/" + "x" * 120, "has 125 bytes, Ray needs at most 39 for its sockets"),
        ("/tmp/" + "é" * 18, "has 41 bytes"),
        ("/tmp/bücher", "is not ASCII, as Ray requires"),
        ("/proc/nowhere", "cannot be written, but Ray needs it"),
        ("/etc/hostname/x", "cannot be written, but Ray needs it"),
    ],
)
def test_a_folder_without_room_for_ray_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, folder: str, fault: str
) -> None:
    monkeypatch.setenv(variable, folder)
    if variable == "RAY_TMPDIR":
        monkeypatch.setenv("TMPDIR", "/tmp")
    with pytest.raises(UserFault, match=f"^environment variable {variable}: {folder!r} {fault}.*RAY_TMPDIR=/tmp$"):
        check_temporary_folder(ray=True, vllm=False)
    check_temporary_folder(ray=False, vllm=False)
    with pytest.raises(UserFault, match=variable), ray_session(ClusterConfig(), "test"):
        raise AssertionError("the session began")


def test_a_folder_of_the_longest_length_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 34)
    check_temporary_folder(ray=True, vllm=True)


def test_a_folder_that_has_no_room_for_vllm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80)
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(folder))
    with pytest.raises(UserFault, match="^environment variable VLLM_RPC_BASE_PATH: .*vLLM needs at most 70"):
        check_temporary_folder(ray=False, vllm=True)
