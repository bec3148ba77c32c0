"""Room for sockets: Ray and vLLM make them below the folder for temporary files, and Linux limits their paths."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from genevolve_ray.errors import UserFault

_LIMIT = 107
"""Bytes of the longest path of a socket."""
_RAY = f"/ray/session_2026-01-01_00-00-00_000000_{2**22}/sockets/plasma_store"
"""Path of Ray's longest socket below the folder for temporary files."""
_VLLM = f"/{'0' * 36}"
"""The same of vLLM."""


def check_temporary_folder(*, ray: bool, vllm: bool) -> None:
    """Check that sockets fit into the folder for temporary files.

    Args:
        ray: whether this process starts a Ray cluster.
        vllm: whether vLLM runs on this machine.

    Raises:
        UserFault: naming the variable and the folder.
    """
    if ray:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        _check(name, os.environ.get(name, "/tmp"), "Ray", _RAY, "RAY_TMPDIR=/tmp")  # noqa: S108
    if vllm:
        name = "VLLM_RPC_BASE_PATH" if "VLLM_RPC_BASE_PATH" in os.environ else "TMPDIR"
        _check(name, os.environ.get(name) or tempfile.gettempdir(), "vLLM", _VLLM, "VLLM_RPC_BASE_PATH=/tmp")


def _check(variable: str, folder: str, owner: str, below: str, remedy: str) -> None:
    where = f"environment variable {variable}: {folder!r}"
    room = _LIMIT - len(os.fsencode(below))
    if (length := len(os.fsencode(folder))) > room:
        raise UserFault(f"{where} has {length} bytes, {owner} needs at most {room} for its sockets: set {remedy}")
    if owner == "Ray" and not folder.isascii():
        raise UserFault(f"{where} is not ASCII, as {owner} requires: set {remedy}")
    existing = next((path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserFault(f"{where} cannot be written, but {owner} needs it for its sockets: set {remedy}") from error
