"""Picture stores: bytes come back as they were stored, or the picture is named as damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from genevolve_ray.records.images import FilesystemImages, ImageDamaged, ImageRef

DATA = b"\x89PNG and some pixels"


def stored(folder: Path) -> tuple[FilesystemImages, ImageRef, Path]:
    images = FilesystemImages(str(folder))
    ref = images.put(DATA, width=2, height=2)
    return images, ref, folder / ref.sha256[:2] / ref.file_name


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:7], lambda d: d[:5] + b"\x00" + d[6:]])
def test_a_damaged_picture_is_named_and_healed_by_the_next_put(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    images, ref, path = stored(tmp_path)
    path.write_bytes(damage(DATA))
    with pytest.raises(ImageDamaged, match=f"picture {path} is damaged"):
        images.get(ref)
    assert images.put(DATA, width=2, height=2) == ref
    assert images.get(ref) == DATA


def test_a_missing_picture_is_not_found(tmp_path: Path) -> None:
    images, ref, path = stored(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        images.get(ref)


def test_a_picture_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        events.append("sync")
        sync(handle)

    def replaced(*arguments: str) -> None:
        events.append("name")
        replace(*arguments)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    stored(tmp_path)
    assert events == ["sync", "name", "sync"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        stored(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
