"""A data set as a folder that others read: JSON lines and Parquet for each part, pictures, a card, and a summary.

Conversations have the shape of published SFT rows, cases that of published bench and self-evolution rows
(`records.published` reads both). The folder has the layout of the library `datasets`. The same rows give the same bytes,
in any order.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from pydantic import Field

from genevolve_ray import __version__
from genevolve_ray.data.build.card import DatasetFacts, card_text
from genevolve_ray.data.build.columns import CaseColumns, ConversationColumns, PartWriter
from genevolve_ray.data.build.part_rows import holds_conversations, part_files
from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.base import Config
from genevolve_ray.records.decoding import check_apart, clean_apart
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.pictures import ImageRefused, PictureLimits
from genevolve_ray.records.published.files import write_bytes, write_object
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.requests import INDEX_NAME, read_bench, read_rl
from genevolve_ray.records.published.rows import ReadConfig, mapping
from genevolve_ray.records.published.trajectories import Message, SftReadConfig, read_sft
from genevolve_ray.records.published.writers import request_values
from genevolve_ray.records.request import Request

SUMMARY, CARD, PAGE = "summary.json", "README.md", "index.html"
"""Files of a folder beside its data."""
PICTURES = "images"
"""Folder of the pictures, beside the files of the parts."""
BENCH = "bench/"
"""Begins the names of the parts of a benchmark."""
_PART = re.compile(r"[a-z0-9_]+/[a-z0-9_]+")
_JPEG = "image/jpeg"
_HASHED = 1 << 20


class PublishConfig(Config):
    """Configure how a data set is written."""

    pictures: Literal["jpeg", "stored"] = "jpeg"
    """`jpeg`: pictures of other formats become JPEG, as in the published data; `stored`: all keep their format."""
    quality: int = Field(default=95, ge=1, le=95)
    """JPEG quality of pictures that are converted."""


@dataclass(frozen=True)
class ConversationSample:
    """Hold a trajectory to publish: its messages, and the pictures of their `<image>` placeholders in order."""

    id: str
    messages: tuple[Message, ...]
    pictures: tuple[ImageRef, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the row, such as `entities`; published rows have none."""


@dataclass(frozen=True)
class CaseSample:
    """Hold a request with its ground truth to publish; `pool_index` is unique in the whole data set."""

    request: Request
    pool_index: int
    primary_skills: tuple[str, ...] = ()
    secondary_skills: tuple[str, ...] = ()
    skill_bundle: tuple[str, ...] = ()
    skill_challenge: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataPart:
    """Hold the rows of a part, all of one kind; `name` is its configuration and its split, such as `sft/train`."""

    name: str
    rows: Sequence[ConversationSample] | Sequence[CaseSample]

    @property
    def config(self) -> str:
        """The configuration."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class PublishedFolder:
    """Describe a folder that was written: its summary, and the rows that were left out."""

    path: Path
    summary: Mapping[str, Any]
    left_out: RejectionReport

    @property
    def output_hash(self) -> str:
        """The hash of the data, see `data_hash`."""
        return str(self.summary["output_hash"])


class PublishFault(GenevolveError, ValueError):
    """Signal rows that cannot be published as they are; the message names the first."""


def publish(
    out: Path,
    parts: Sequence[DataPart],
    facts: DatasetFacts,
    images: ImageStore,
    config: PublishConfig | None = None,
    *,
    overwrite: bool = False,
) -> PublishedFolder:
    """Write a data set to a folder, which appears complete or not at all.

    A row with a picture that is missing or broken is left out, and named in the summary. Every part is read again with
    the readers of published rows before the folder appears.

    Args:
        out: the folder; it may be missing or empty.
        parts: the rows of each part.
        facts: what card and summary say beside what is counted here.
        images: the store of the pictures.
        config: how pictures are written.
        overwrite: replace what an earlier call wrote to `out`.

    Raises:
        PublishFault: for ids or indices that occur twice, or a row that a reader rejects.
        DataError: for a folder of other content.
        OSError: when a file cannot be written.
    """
    _check(parts)
    _check_target(out, overwrite=overwrite)
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        scratch = Path(mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        report = RejectionReport(1000)
        writer = _Writer(scratch, images, config or PublishConfig(), report)
        for part in parts:
            writer.write(part)
        counts = verify(scratch)
        summary = {
            **facts.summary(),
            "package": __version__,
            "parts": {
                part.name: {"rows": counts.get(part.name, 0), "pictures": writer.pictures[part.name]} for part in parts
            },
            "left_out": report.as_dict(),
            "output_hash": data_hash(scratch),
        }
        write_object(scratch / SUMMARY, summary)
        write_bytes(scratch / CARD, card_text(facts, summary).encode())
        scratch.chmod(0o755)
        _put(scratch, place)
    return PublishedFolder(out, summary, report)


def data_hash(folder: Path) -> str:
    """Return a SHA-256 over the names and the bytes of all files of rows and pictures of a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in (SUMMARY, CARD, PAGE):
            continue
        with path.open("rb") as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return total.hexdigest()


def verify(folder: Path) -> dict[str, int]:
    """Read every part of a folder with the readers of published rows, and return the number of rows of each.

    Parts of the configuration `bench` are read as a benchmark.

    Raises:
        PublishFault: for a row that a reader rejects, or Parquet with other rows than the JSON lines.
        DataError: for a file that is missing or broken.
    """
    counts: dict[str, int] = {}
    for name, lines in part_files(folder).items():
        ids = []
        for path in (lines, lines.with_suffix(".parquet")):
            report = RejectionReport()
            if holds_conversations(path):
                ids.append([row.id for row in read_sft([path], report, SftReadConfig(check_images=True))])
            else:
                read = read_bench if name.startswith(BENCH) else read_rl
                ids.append([row.id for row in read([path], report, ReadConfig(check_images=True))])
            if report.rejected:
                raise PublishFault(f"{name}: {report.line()}")
        if ids[0] != ids[1]:
            raise PublishFault(
                f"{name}: the Parquet file holds {len(ids[1])} other rows than the {len(ids[0])} JSON lines"
            )
        counts[name] = len(ids[0])
    return counts


def _check(parts: Sequence[DataPart]) -> None:
    names = Counter(part.name for part in parts)
    for name, count in names.items():
        if count > 1 or not _PART.fullmatch(name):
            raise PublishFault(f"part {name!r} is given twice, or is no configuration and split such as sft/train")
    kinds = Counter(
        (part.config, kind) for part in parts for kind in {isinstance(row, CaseSample) for row in part.rows}
    )
    if mixed := [config for config in {config for config, _ in kinds} if len([k for k in kinds if k[0] == config]) > 1]:
        raise PublishFault(f"the parts of {mixed[0]!r} hold conversations and cases")
    for what, values in (
        ("id", Counter(_row_id(row) for part in parts for row in part.rows)),
        (INDEX_NAME, Counter(row.pool_index for part in parts for row in part.rows if isinstance(row, CaseSample))),
    ):
        if twice := [value for value, count in values.items() if count > 1]:
            raise PublishFault(f"{len(twice)} values of {what} are those of several rows, {twice[0]!r} among them")


def _row_id(row: ConversationSample | CaseSample) -> str:
    return row.request.id if isinstance(row, CaseSample) else row.id


# --- the folder ---


def _check_target(out: Path, *, overwrite: bool) -> None:
    """Check that a folder is missing or empty, or was written here and may be replaced. Raises DataError."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file")
    if not any(out.iterdir()):
        return
    if not (out / SUMMARY).is_file():
        raise DataError(f"{out}: holds other files, so it is not overwritten: name another folder")
    if not overwrite:
        raise DataError(f"{out}: holds a data set: name another folder, or overwrite it")


def _put(scratch: Path, place: Path) -> None:
    """Move a finished folder into its place; one that is there is moved aside first, and removed last."""
    if not place.exists():
        os.replace(scratch, place)
        return
    with ExitStack() as after:
        aside = Path(mkdtemp(dir=place.parent, prefix=f".{place.name}-old-"))
        after.callback(shutil.rmtree, aside, ignore_errors=True)
        os.replace(place, aside / "before")
        os.replace(scratch, place)


# --- rows ---


class _Writer:
    """Write the parts of a data set, and number the conversations of each configuration."""

    def __init__(self, folder: Path, images: ImageStore, config: PublishConfig, report: RejectionReport) -> None:
        """Write below a folder; rows that are left out are added to the report."""
        self._folder, self._images, self._report, self._config = folder, images, report, config
        self._numbers = Counter[str]()
        self.pictures = Counter[str]()

    def write(self, part: DataPart) -> None:
        """Write a part as JSON lines and as Parquet, and its pictures."""
        cases = [row for row in part.rows if isinstance(row, CaseSample)]
        said = sorted((row for row in part.rows if isinstance(row, ConversationSample)), key=lambda row: row.id)
        columns = CaseColumns() if cases else ConversationColumns()
        with PartWriter(self._folder / part.name, columns) as writer:
            for values, pictures in self._cases(part, cases) if cases else self._conversations(part, said):
                for path, data in pictures:
                    file = self._folder / part.config / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
                self.pictures[part.name] += len(pictures)
                writer.add(values, [data for _, data in pictures])

    def _cases(self, part: DataPart, rows: Sequence[CaseSample]) -> Iterator[_Written]:
        for number, row in enumerate(sorted(rows, key=lambda row: row.pool_index), 1):
            self._report.see()
            truth = row.request.truth_image
            found = self._opened(part, number, _row_id(row), () if truth is None else (truth,))
            if found is None:
                continue
            if not found:
                detail = f"{_row_id(row)}: no ground truth"
                self._report.reject(Rejection(part.name, number, RejectionReason.MISSING_TRUTH, detail))
                continue
            [(suffix, data)] = found
            path = f"{PICTURES}/case_{row.pool_index:05d}{suffix}"
            yield from self._plain(part, number, _row_id(row), _case_values(row, path), [(path, data)])

    def _conversations(self, part: DataPart, rows: Sequence[ConversationSample]) -> Iterator[_Written]:
        for number, row in enumerate(rows, 1):
            self._report.see()
            found = self._opened(part, number, row.id, row.pictures)
            if found is None:
                continue
            folder = f"{PICTURES}/traj_{self._numbers[part.config]:05d}"
            self._numbers[part.config] += 1
            pictures = [(f"{folder}/IMG_{place:03d}{suffix}", data) for place, (suffix, data) in enumerate(found, 1)]
            values = {
                "id": row.id,
                "messages": [message.model_dump() for message in row.messages],
                "images": [path for path, _ in pictures],
                "meta": dict(row.meta),
            }
            yield from self._plain(part, number, row.id, values, pictures)

    def _plain(
        self, part: DataPart, number: int, row_id: str, values: dict[str, Any], pictures: list[tuple[str, bytes]]
    ) -> Iterator[_Written]:
        """Yield a row whose values JSON can hold; another one is an entry of the report."""
        try:
            yield mapping(values, "row"), pictures
        except RowFault as fault:
            self._report.reject(Rejection(part.name, number, fault.reason, f"{row_id}: {fault.detail}"[:200]))

    def _opened(
        self, part: DataPart, number: int, row_id: str, refs: Sequence[ImageRef]
    ) -> list[tuple[str, bytes]] | None:
        """Return suffix and bytes of pictures; None, and an entry of the report, where one cannot be opened."""
        try:
            return [published_picture(self._images.get(ref), ref, self._config) for ref in refs]
        except FileNotFoundError as error:
            reason, detail = RejectionReason.MISSING_IMAGE, f"{row_id}: {error}"
        except ImageRefused as error:
            reason, detail = RejectionReason.UNREADABLE_IMAGE, f"{row_id}: {error}"
        self._report.reject(Rejection(part.name, number, reason, detail[:200]))
        return None


_Written = tuple[dict[str, Any], list[tuple[str, bytes]]]
"""The values of a row, and its pictures by their paths."""


def _case_values(row: CaseSample, path: str) -> dict[str, Any]:
    added = {
        INDEX_NAME: row.pool_index,
        "primary_skills": list(row.primary_skills),
        "secondary_skills": list(row.secondary_skills),
        "extra_info": dict(row.extra_info),
    }
    skills = {"skill_bundle": list(row.skill_bundle), "skill_challenge": row.skill_challenge}
    return request_values(row.request, path) | added | {name: value for name, value in skills.items() if value}


def published_picture(data: bytes, ref: ImageRef, config: PublishConfig) -> tuple[str, bytes]:
    """Return the suffix and the bytes with which a picture is published.

    A split compares these bytes, so that a check of the folder sees the same pictures. A JPEG stays as it is: it would
    lose detail, and the stores hold pictures that this package encoded itself.

    Raises:
        ImageRefused: for bytes that are no picture within the limits.
    """
    if config.pictures == "stored" or ref.media_type == _JPEG:
        check_apart(data, PictureLimits())
        return {_JPEG: ".jpg"}.get(ref.media_type, f".{ref.media_type.rpartition('/')[2]}"), data
    return ".jpg", clean_apart(data, PictureLimits(output="JPEG", quality=config.quality)).data
