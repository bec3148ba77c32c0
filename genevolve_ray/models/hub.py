"""Model folders by hub id: `owner/name` or `owner/name@REVISION` is downloaded once into the cache of Hugging Face.

A local folder of that name always comes first. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE apply.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genevolve_ray.errors import UserFault

_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IGNORED = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*", "onnx/*")
"""Other forms of the weights, which nothing here reads."""


def is_hub_id(text: str) -> bool:
    """Return whether a text names a model of the hub, and no local file or folder."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).expanduser().exists()


def pinned(text: str, key: str) -> str:
    """Return a hub id with the commit that it stands for now; any other text is returned unchanged.

    Args:
        text: a hub id, or the path of a folder.
        key: the setting, for messages.

    Raises:
        UserFault: naming key and id when the hub cannot be reached and the cache does not know it.
    """
    found = _HUB_ID.fullmatch(text)
    if found is None or not is_hub_id(text) or _COMMIT.fullmatch(found["revision"] or ""):
        return text
    name, revision = found["name"], found["revision"] or "main"
    return f"{name}@{_cached(name, revision) if offline() else _asked(name, revision, key)}"


def local_model(text: str, key: str, *, download: bool = True) -> Path:
    """Return the folder of a model: a path as it is, a hub id as its folder in the cache, after a download if needed.

    Args:
        text: a hub id, or the path of a folder.
        key: the setting, for messages.
        download: False looks into the cache alone.

    Raises:
        UserFault: naming key, id and remedy when the model is not in the cache and cannot be downloaded.
    """
    found = _HUB_ID.fullmatch(text)
    if found is None or not is_hub_id(text):
        return Path(text)
    from huggingface_hub import snapshot_download

    only_local = offline() or not download
    with _explained(text, key, only_local=only_local):
        return Path(
            snapshot_download(
                found["name"],
                revision=found["revision"],
                local_files_only=only_local,
                ignore_patterns=list(_IGNORED),
            )
        )


def _asked(name: str, revision: str, key: str) -> str:
    """Return the commit of a revision: of the hub, or, where it cannot be reached, of the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with _explained(f"{name}@{revision}", key, only_local=False):
            return HfApi().model_info(name, revision=revision).sha or revision
    except UserFault as fault:
        answered = isinstance(fault.__cause__, HfHubHTTPError)  # The hub knows better than the cache.
        if answered or (commit := _cached(name, revision)) == revision:
            raise
        return commit


def _cached(name: str, revision: str) -> str:
    """Return the commit of a revision in the cache, and the revision itself where the cache does not know it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids downloads."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


@contextmanager
def _explained(text: str, key: str, *, only_local: bool) -> Iterator[None]:
    """Turn the errors of the hub's client into one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = text.removesuffix("@main")
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if only_local:
            why = "HF_HUB_OFFLINE is set" if offline() else "nothing is downloaded here"
            said = f"is neither a folder here nor in the cache of Hugging Face, and {why}"
        elif isinstance(error, HfHubHTTPError):
            said = f"is no folder here, and {os.environ.get('HF_ENDPOINT', 'the hub')} refuses it: {reason}"
        else:
            said = f"is neither a folder here nor in the cache, and cannot be downloaded: {reason}"
        remedy = f"`hf download {name.partition('@')[0]}` on a machine with network, or the path of a model folder"
        raise UserFault(f"{key}: {name!r} {said}; use {remedy}") from error
