"""Hashes of what a training is made from: whatever it keeps on disk is named or marked by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.errors import UserFault
from genevolve_ray.small.parts import file_sha256

if TYPE_CHECKING:
    import numpy as np

    from genevolve_ray.small.pictures import PictureLibrary


def array_hash(values: np.ndarray[Any, Any]) -> str:
    """Return the SHA-256 (hex) of an array: of its type, shape and values."""
    import numpy as np

    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def text_hash(lines: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of texts in their order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\0".encode())
    return digest.hexdigest()


def pictures_hash(library: PictureLibrary, ids: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of the drawings of a library, as their files hold them."""
    files = (library.folder / f"{id}.svg" for id in ids)
    return text_hash(f"{file.name} {file_sha256(file)}" for file in files)


@cache
def encoder_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) of a text encoder in Hugging Face layout: its weights, settings and tokenizer.

    Raises:
        UserFault: for a folder without weights.
    """
    if not (folder / "model.safetensors").is_file():
        raise UserFault(f"{folder}: it has no model.safetensors")
    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    files = (folder / name for name in names)
    return text_hash(f"{file.name} {file_sha256(file)}" for file in files if file.is_file())
