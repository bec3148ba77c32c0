"""The last versions of the weights, for download and re-scoring."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genevolve_ray.engines.protocol import Probe
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import FileCard, WeightsCard
from genevolve_ray.models.adapters import base_files

RANGE_BYTES = 8 << 20
"""Most bytes of one answer."""
MODEL_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Files of the model folder that a worker needs: configuration and tokenizer. Weights come with a version."""


@dataclass(frozen=True)
class Version:
    """Describe a version in the store."""

    card: WeightsCard
    folder: Path


class VersionStore:
    """Keep the last published versions in a folder of its own."""

    def __init__(self, root: Path, keep: int) -> None:
        """Keep `keep` versions below `root`."""
        self._root, self._keep = root, keep
        self._versions: dict[int, Version] = {}
        self._puts = 0

    @property
    def newest(self) -> int:
        """The last version published, -1 before the first."""
        return max(self._versions, default=-1)

    def versions(self) -> list[int]:
        """Return the versions that are kept."""
        return sorted(self._versions)

    def put(self, folder: str, version: int, probe: Probe) -> None:
        """Add a version: hard links where the file system allows, copies elsewhere."""
        self._puts += 1  # a version that is published again after a restart gets a folder of its own
        target = self._root / f"v{version:06d}-{self._puts}"
        target.mkdir(parents=True)
        for source in sorted(p for p in Path(folder).iterdir() if p.is_file()):
            try:
                os.link(source, target / source.name)
            except OSError:
                shutil.copyfile(source, target / source.name)
        card = WeightsCard(version=version, probe=probe, files=describe(target))
        old = self._versions.pop(version, None)
        self._versions[version] = Version(card, target)
        for number in sorted(self._versions)[: -self._keep]:
            shutil.rmtree(self._versions.pop(number).folder, ignore_errors=True)
        if old is not None:
            shutil.rmtree(old.folder, ignore_errors=True)

    def get(self, version: int) -> Version:
        """Return a version. Raises GatewayRefusal when it is not kept."""
        found = self._versions.get(version)
        if found is None:
            raise GatewayRefusal(
                RefusalReason.UNKNOWN_FILE, f"version {version} is not kept; kept versions: {self.versions()}"
            )
        return found

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._root, ignore_errors=True)


def describe(folder: Path, suffixes: tuple[str, ...] | None = None) -> tuple[FileCard, ...]:
    """Return the files of a folder with sizes and digests; with `suffixes` only those, and no index of weights."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    if suffixes is not None:
        files = [p for p in files if p.suffix in suffixes and not p.name.endswith(".index.json")]
    return _cards(files)


def describe_base(folder: Path) -> tuple[FileCard, ...]:
    """Return the weights of a model folder with sizes and digests, and the index that lists them."""
    return _cards(base_files(folder))


def _cards(files: Iterable[Path]) -> tuple[FileCard, ...]:
    return tuple(FileCard(name=p.name, size=p.stat().st_size, sha256=file_digest(p)) for p in files)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_range(folder: Path, files: tuple[FileCard, ...], name: str, header: str | None) -> tuple[bytes, int, int]:
    """Return bytes of a listed file, their offset, and the file's size.

    Starlette's `FileResponse` serves ranges, but not these. Workers request each range compressed separately. An answer
    is bounded for every requested range. A bad range is a refusal with a reason that the meters count.

    Args:
        folder: the folder of the files.
        files: the readable files; all other names are refused, even when such a file exists.
        name: the file.
        header: `bytes=A-B` or `bytes=A-`; None reads from the start. At most `RANGE_BYTES` are returned.

    Raises:
        GatewayRefusal: for an unknown file and for an invalid range.
    """
    card = next((f for f in files if f.name == name), None)
    if card is None:
        raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, name[:128])
    start, end = 0, card.size
    if header is not None:
        unit, _, span = header.partition("=")
        first, dash, last = span.partition("-")
        if unit != "bytes" or not dash or not _digits(first) or (last and not _digits(last)):
            raise GatewayRefusal(RefusalReason.BAD_RANGE, header[:64])
        start, end = int(first), min(int(last) + 1, card.size) if last else card.size
    if start > card.size or end < start or (start == card.size and card.size):
        raise GatewayRefusal(RefusalReason.BAD_RANGE, f"{name} has {card.size} bytes")
    try:
        with open(folder / card.name, "rb") as file:
            file.seek(start)
            return file.read(min(end - start, RANGE_BYTES)), start, card.size
    except FileNotFoundError as error:
        raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, f"{name} is no longer kept") from error


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15
