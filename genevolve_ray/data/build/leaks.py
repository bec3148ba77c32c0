"""The check for leaks: rows of different parts of a data set that overlap.

It reads the folder that others read, so that anyone can repeat it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from genevolve_ray.data.build.fingerprints import SEEN, PictureMark, RowMark, RowVectors, mark_picture
from genevolve_ray.data.build.overlaps import OverlapKind, OverlapLimits, find_overlaps
from genevolve_ray.data.build.part_rows import PartRow, part_files, read_part
from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.config import EmbedderConfig
from genevolve_ray.experience.protocol import Embedder
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.decoding import clean_apart
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.records.published.rejections import DataError, RejectionReport, RowFault
from genevolve_ray.records.published.row_pictures import RowPictureReader

_T = TypeVar("_T")
_THREADS = 8
_TEXTS, _PICTURES = 256, 64
"""Texts and pictures of one call of an embedder."""
_MOST = 1_000_000
"""Pairs after which a search ends: a data set that is compared with a copy of itself has very many."""
AGAINST = "against:"
"""Precedes the names of the parts of the other data set."""


class PictureEmbedder(Protocol):
    """Define an embedder of pictures: it maps similar pictures to similar vectors. `identity` names it and its settings."""

    identity: str

    async def embed(self, pictures: Sequence[bytes]) -> NDArray[np.float32]:
        """Return float32[n, d] with rows of length 1 for encoded PNG pictures of at most 256 pixels a side.

        Raises InfraFailure when the embedder gave up after bounded retries.
        """
        ...


class LeakCheckConfig(Config):
    """Configure the check for leaks."""

    limits: OverlapLimits = OverlapLimits()
    """From which similarity on two rows are a leak."""
    embedder: EmbedderConfig = EmbedderConfig()
    """The embedder of the requests."""
    listed: int = Field(default=1000, ge=1)
    """Leaks that a report lists; all are counted."""


class LeakSide(Record):
    """Name one row of a leak: its part, its id, and its place in the file of the part (from 1)."""

    part: str
    id: str
    number: int


class PartLeak(Record):
    """Describe two rows of different parts that overlap; `values` has each kind with its share, cosine or bits."""

    first: LeakSide
    second: LeakSide
    values: dict[OverlapKind, float]


class PartCount(Record):
    """Count the rows of a part: those that were compared, those that could not be read, and the pictures of both kinds."""

    rows: int
    rejected: int = 0
    pictures: int = 0
    unreadable_pictures: int = 0


class LeakReport(Record):
    """Hold what a check compared and found.

    A leak names two rows. Of rows that share a text, an entity or a picture file each is named, though not in every pair.
    """

    parts: dict[str, PartCount]
    limits: OverlapLimits
    text_cosine: float
    embedder: str
    picture_embedder: str = ""
    """"" where pictures were compared by their hashes alone."""
    leaks: tuple[PartLeak, ...] = ()
    counts: dict[OverlapKind, int] = Field(default_factory=dict)
    """Leaks by kind; a leak of two kinds counts in both."""
    total: int = 0
    cut: bool = False
    """True where the search ended early, because it had found a million pairs."""

    @property
    def clean(self) -> bool:
        """True where no leak was found."""
        return self.total == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {"clean": self.clean, **self.model_dump(mode="json")}


async def check_leaks(
    folder: Path,
    config: LeakCheckConfig,
    embedder: Embedder,
    pictures: PictureEmbedder | None = None,
    against: Path | None = None,
) -> LeakReport:
    """Compare every part of a folder with every other one, and with those of another data set.

    Raises:
        DataError: for a folder or a file that cannot be read, or fewer than two parts.
        InfraFailure: when an embedder gave up.
    """
    files = part_files(folder)
    if against is not None:
        files |= {f"{AGAINST}{name}": path for name, path in part_files(against).items()}
    if len(files) < 2:
        raise DataError(f"{folder}: has one part, {next(iter(files))}; name another data set with --against")
    rows, counts = await asyncio.to_thread(_read, files)
    with RowPictureReader(SEEN.max_bytes) as reader:
        look = _Look(reader, pictures)
        marks = await look.all(rows)
    texts = await _embedded(embedder.embed, [row.text for row in rows], _TEXTS)
    vectors = RowVectors(texts, look.vectors())
    cosine = config.limits.cosine_for(embedder.identity)
    groups = _groups(rows)
    found, cut = await asyncio.to_thread(_pairs, marks, vectors, config.limits, cosine, groups)
    leaks = [
        PartLeak(first=_side(rows[first]), second=_side(rows[second]), values=values)
        for (first, second), values in found.items()
    ]
    return LeakReport(
        parts={name: count.model_copy(update=look.counts(name)) for name, count in counts.items()},
        limits=config.limits,
        text_cosine=cosine,
        embedder=embedder.identity,
        picture_embedder="" if pictures is None else pictures.identity,
        leaks=tuple(leaks[: config.listed]),
        counts={kind: count for kind in OverlapKind if (count := sum(kind in leak.values for leak in leaks))},
        total=len(leaks),
        cut=cut,
    )


def _read(files: Mapping[str, Path]) -> tuple[list[PartRow], dict[str, PartCount]]:
    rows: list[PartRow] = []
    counts: dict[str, PartCount] = {}
    for name, path in files.items():
        report = RejectionReport()
        its = list(read_part(name, path, report))
        counts[name] = PartCount(rows=len(its), rejected=report.rejected.total())
        rows += its
    return rows, counts


def _groups(rows: Sequence[PartRow]) -> NDArray[np.int64]:
    """Return a number for each part; all parts of the other data set are one, since they are not compared with each other."""
    names = [AGAINST if row.part.startswith(AGAINST) else row.part for row in rows]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _pairs(
    marks: Sequence[RowMark], vectors: RowVectors, limits: OverlapLimits, cosine: float, groups: NDArray[np.int64]
) -> tuple[dict[tuple[int, int], dict[OverlapKind, float]], bool]:
    """Return the leaking pairs in the order of the rows, with the first value of each kind, and whether there are more."""
    found: dict[tuple[int, int], dict[OverlapKind, float]] = {}
    for overlap in find_overlaps(marks, vectors, limits, text_cosine=cosine, groups=groups):
        pairs = overlap.pairs
        for first, second, value in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.values.tolist(), strict=True
        ):
            found.setdefault((first, second), {}).setdefault(overlap.kind, round(value, 4))
            if len(found) >= _MOST:
                return dict(sorted(found.items())), True
    return dict(sorted(found.items())), False


async def _embedded(
    embed: Callable[[Sequence[_T]], Awaitable[NDArray[np.float32]]], values: Sequence[_T], size: int
) -> NDArray[np.float32]:
    """Return one vector of each value. Raises InfraFailure for another number of them."""
    found = [await embed(values[start : start + size]) for start in range(0, len(values), size)]
    vectors = np.concatenate(found) if found else np.zeros((0, 1), dtype=np.float32)
    if len(vectors) != len(values):
        raise InfraFailure(f"an embedder returned {len(vectors)} vectors of {len(values)}")
    return vectors


def _side(row: PartRow) -> LeakSide:
    return LeakSide(part=row.part, id=row.id, number=row.number)


class _Look:
    """Open the pictures of rows, describe them and embed them; one that cannot be opened is counted."""

    def __init__(self, reader: RowPictureReader, embedder: PictureEmbedder | None) -> None:
        """Read pictures with `reader`."""
        self._reader, self._embedder = reader, embedder
        self._vectors = list[NDArray[np.float32]]()
        self._good, self._bad = Counter[str](), Counter[str]()

    def counts(self, part: str) -> dict[str, int]:
        """Return the counts of a part's pictures."""
        return {"pictures": self._good[part], "unreadable_pictures": self._bad[part]}

    def vectors(self) -> NDArray[np.float32] | None:
        """Return the embeddings of all pictures that could be opened, None without an embedder."""
        if self._embedder is None:
            return None
        return np.concatenate(self._vectors) if self._vectors else np.zeros((0, 1), dtype=np.float32)

    async def all(self, rows: Sequence[PartRow]) -> list[RowMark]:
        """Return the marks of rows, in order. The bytes of some pictures alone are in memory at once."""
        marks: list[list[PictureMark]] = [[] for _ in rows]
        places = ((number, data) for number, row in enumerate(rows) for data in self._bytes(row))
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="leaks") as pool:
            while batch := await asyncio.to_thread(lambda: list(islice(places, _PICTURES))):
                found = await asyncio.to_thread(lambda: list(pool.map(self._described, (data for _, data in batch))))
                shown = list[bytes]()
                for (number, _), seen in zip(batch, found, strict=True):
                    if seen is None:
                        self._bad[rows[number].part] += 1
                        continue
                    self._good[rows[number].part] += 1
                    marks[number].append(seen[0])
                    shown.append(seen[1])
                if self._embedder is not None:
                    self._vectors.append(await _embedded(self._embedder.embed, shown, _PICTURES))
        return [
            RowMark(str(number), row.text, row.entities, tuple(its))
            for number, (row, its) in enumerate(zip(rows, marks, strict=True))
        ]

    def _bytes(self, row: PartRow) -> Iterator[bytes]:
        """Yield the pictures of a row in order, as Parquet files need it."""
        for place in row.pictures:
            try:
                yield self._reader.read(place)
            except RowFault:
                self._bad[row.part] += 1

    def _described(self, data: bytes) -> tuple[PictureMark, bytes] | None:
        try:
            return mark_picture(data), b"" if self._embedder is None else clean_apart(data, SEEN).data
        except ImageRefused:
            return None
