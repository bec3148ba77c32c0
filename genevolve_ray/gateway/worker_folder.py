"""Folders of a worker: one for each version, and the model folder with the run's base or a whole version."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from genevolve_ray.errors import GenevolveError
from genevolve_ray.gateway.client import is_there
from genevolve_ray.gateway.wire import FileCard, WeightsCard

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


class BaseMismatch(GenevolveError, ValueError):
    """Report that the worker's base is not the run's; the message names the file."""


def version_name(card: WeightsCard) -> str:
    """Return the name of a version's folder; after a restart of the run the same number may name other weights."""
    digests = "".join(file.sha256 for file in card.files)
    return f"v{card.version:06d}-{hashlib.sha256(digests.encode()).hexdigest()[:8]}"


def clear_strangers(model: Path, base: Sequence[FileCard]) -> None:
    """Remove weights that an earlier run left in the model folder, because an engine would load them with the base."""
    names = {file.name for file in base}
    for path in (path for pattern in _WEIGHTS for path in model.glob(pattern)):
        if path.name not in names:
            path.unlink()


def bring_weights(version: Path, model: Path) -> None:
    """Copy a version's whole weights into the model folder."""
    for file in version.glob("*.safetensors"):
        target = model / file.name
        target.unlink(missing_ok=True)  # Never write through a link to a base that was supplied to the worker.
        shutil.copyfile(file, target)


def link_base(own: Path, model: Path, base: Sequence[FileCard]) -> None:
    """Link a supplied base into the model folder, after comparing digests.

    Raises:
        BaseMismatch: naming the first file that differs from the run's.
    """
    for file in base:
        path = own / file.name
        if not path.is_file():
            raise BaseMismatch(f"--model {own}: {file.name} of the run's base is missing")
        if not is_there(path, file):
            raise BaseMismatch(f"--model {own}: {file.name} differs from the run's base (size or SHA-256)")
    for file in base:
        path, target = (own / file.name).resolve(), model / file.name
        if target.resolve() != path:
            target.unlink(missing_ok=True)
            target.symlink_to(path)
