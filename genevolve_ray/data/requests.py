"""Published RL rows as a run's requests: plug-in `genevolve_ray.data.requests:PublishedRequests`."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from genevolve_ray.data.truths import (
    MAX_IMAGE_BYTES,
    TRUTH_LIMITS,
    TruthCheck,
    acceptance,
    check_truths,
    known_truths,
    remember_truths,
)
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.published.exclusion import Exclusion, read_exclusion
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport
from genevolve_ray.records.published.requests import PublishedRequest, read_bench, read_rl
from genevolve_ray.records.published.rows import ReadConfig
from genevolve_ray.records.published.splits import Split, SplitConfig, rank, split_keys
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed

_LOG = logging.getLogger(__name__)
_LISTED = 10_000
"""Rejected rows of each reason that a run lists."""
_NAMED = 5
"""Rows that a message names."""
_APART = 64
"""A request of the end of an epoch returns after at least so many others (a third of the epoch, if that is less)."""


class PublishedRequestsConfig(Config):
    """Configure the rows that a run trains on, validates on, and is compared on.

    Validation and held-out requests come from files of their own (GenEvolve-Bench for the latter) or are split off the
    training rows. Held-out requests, and those in `exclude_paths`, are never trained on.
    """

    paths: tuple[Path, ...] = Field(min_length=1)
    """Files of rows to train on: JSON lines, a JSON array or Parquet, recognized by content."""
    validation_paths: tuple[Path, ...] = ()
    """Files of validation rows; empty: `split` takes them from `paths`."""
    heldout_paths: tuple[Path, ...] = ()
    """Files of held-out rows; empty: `split` takes them from `paths`."""
    exclude_paths: tuple[Path, ...] = ()
    """Files of further rows whose requests are never trained on."""
    image_root: Path | None = None
    """Folder that image paths of every file are relative to; by default each file's own folder."""
    split: SplitConfig = SplitConfig()
    """How rows of `paths` are divided where a part has no files of its own."""
    seed: int = Field(default=1, ge=0)
    """Order of the requests; it does not move any between the parts (`split.seed` does)."""
    check_images: bool = True
    """Whether every truth image is decoded at the start, and rows without a usable one are left out; otherwise a run stops
    at the first such row."""

    truths: Literal["required", "optional"] = "required"
    """`optional`: rows without a ground-truth image that can be used are kept, for judges that need none. It is the default
    in a run where no judge needs one."""

    @model_validator(mode="after")
    def _parts(self) -> PublishedRequestsConfig:
        for name, paths, part in (
            ("validation", self.validation_paths, Split.VALIDATION),
            ("heldout", self.heldout_paths, Split.TEST),
        ):
            if bool(paths) == self.split.asks_for(part):
                given = "both are given" if paths else "neither is given"
                raise ValueError(f"{name} requests come from {name}_paths or from split.{part.value}: {given}")
        return self


class PublishedRequests:
    """Provide the requests of published rows.

    Training requests are shuffled anew in every epoch. Their order follows from `seed` and the rows alone: the order of
    the files does not matter. `report` names the rows that were left out, with reasons.
    """

    Config = PublishedRequestsConfig

    def __init__(self, config: PublishedRequestsConfig, images: ImageStore) -> None:
        """Read all rows and decode their truths; these are written to `images` when their request is first used.

        Raises:
            DataError: for a file that is missing or broken, or when nothing is left to train, validate or compare on.
        """
        self._config, self._images, self._limits = config, images, TRUTH_LIMITS
        self._stored: dict[Path, ImageRef] = {}
        self._load()

    @classmethod
    def check(cls, config: PublishedRequestsConfig) -> None:
        """Read everything once, before a run starts. Raises DataError naming the file."""
        from genevolve_ray.records.images import MemoryImages

        cls(config, MemoryImages())

    def accept(self, limits: PictureLimits) -> None:
        """Leave out rows whose truth a judge with these limits cannot open. Raises DataError as the constructor."""
        limits = acceptance(limits)
        if limits != self._limits and self._config.check_images:
            self._limits = limits
            self._load()

    def _load(self) -> None:
        self.report = RejectionReport(_LISTED)
        self._truths: dict[Path, TruthCheck] = {}
        self._gone: dict[str, PublishedRequest] = {}
        """Rows by name whose truth cannot be used."""
        self._rows = self._read()
        for split, rows in self._rows.items():
            if not rows:
                names = _names(self._config.paths)
                raise DataError(f"no {split.value} requests left in {names}: {self.report.text()}")
        self._order = lru_cache(maxsize=4)(self._shuffle)

    def _read(self) -> dict[Split, list[PublishedRequest]]:
        config = self._config
        reading = ReadConfig(root=config.image_root, truths=config.truths == "required")
        heldout = self._with_truths(read_bench(config.heldout_paths, self.report, reading))
        # Bad bench rows are reported above; here they still exclude their requests.
        kept_out = Exclusion(())
        for path in (*config.exclude_paths, *config.heldout_paths):
            excluding = RejectionReport()
            kept_out |= (found := read_exclusion((path,), excluding))
            if not (found.keys or found.indices):
                raise DataError(f"{path} excludes no request from training: {excluding.text()}")
        validation = self._with_truths(
            kept_out.apply(read_rl(config.validation_paths, self.report, reading), self.report)
        )
        # A validation row that cannot be used is still no request to train on.
        kept_out |= read_exclusion(config.validation_paths, RejectionReport())
        rows = self._with_truths(kept_out.apply(read_rl(config.paths, self.report, reading), self.report))
        try:
            parts = split_keys((row.key for row in rows), config.split)
        except ValueError as error:
            raise DataError(f"{_names(config.paths)}: {error}; {self.report.line()}") from error
        split = {part: [row for row in rows if parts[row.key] is part] for part in Split}
        return {
            Split.TRAIN: self._sorted(split[Split.TRAIN]),
            Split.VALIDATION: self._sorted(validation or split[Split.VALIDATION]),
            Split.TEST: self._sorted(heldout or split[Split.TEST]),
        }

    def _with_truths(self, rows: Iterable[PublishedRequest]) -> list[PublishedRequest]:
        """Return the rows whose truth can be used; the report counts the others."""
        rows = list(rows)
        if not self._config.check_images or self._config.truths == "optional":
            return rows
        self._truths |= check_truths((row.truth_file for row in rows), self._limits)
        for row in rows:
            if fault := self._truths[row.truth_file].fault:
                missing = self._truths[row.truth_file].missing
                reason = RejectionReason.MISSING_IMAGE if missing else RejectionReason.UNREADABLE_IMAGE
                self._leave_out(row, reason, row.truth if missing else f"{row.truth}: {fault}")
        return [row for row in rows if self._name(row) not in self._gone]

    def _leave_out(self, row: PublishedRequest, reason: RejectionReason, detail: str) -> None:
        self.report.reject(Rejection(str(row.source), row.number, reason, detail[:200]))
        self._gone[self._name(row)] = row

    # --- the rows of a run ---

    def record(self) -> dict[str, Any]:
        """Return the rows of each part by id, with a digest of their content: what `keep` compares with."""
        parts = {part.value: {self._name(row): self._digest(row) for row in rows} for part, rows in self._rows.items()}
        files = (row.truth_file for rows in self._rows.values() for row in rows)
        return {"parts": parts, "truths": known_truths(files, self._limits)}

    @classmethod
    def prime(cls, record: Mapping[str, Any]) -> None:
        """Take what an earlier process of a run recorded of its truth files, so that they are not decoded again."""
        remember_truths(record.get("truths", {}))

    def keep(self, record: Mapping[str, Any]) -> list[str]:
        """Keep each row in the part in which a run began with it, and return notes on changes of the source.

        Rows that were added are left out. Rows whose truth is lost stay where they are, and are replaced when they are
        reached.

        Raises:
            DataError: naming rows that are gone or have another content.
        """
        there = {self._name(row): row for rows in self._rows.values() for row in rows}
        kept: dict[Split, list[PublishedRequest]] = {}
        gone, changed, lost, moved, known = [], [], [], 0, set()
        for part in Split:
            kept[part] = []
            here = {self._name(row) for row in self._rows[part]}
            for name, digest in record["parts"].get(part.value, {}).items():
                known.add(name)
                row = there.get(name) or self._gone.get(name)
                if row is None:
                    gone.append(name)
                    continue
                if name in self._gone:
                    lost.append(name)
                elif self._digest(row) != digest:
                    changed.append(name)
                moved += name in there and name not in here
                if part is Split.TRAIN or name not in self._gone:
                    kept[part].append(row)
        if gone or changed:
            faults = [f"{len(ids)} {what} ({_few(ids)})" for ids, what in ((gone, "gone"), (changed, "changed")) if ids]
            raise DataError(
                f"the rows of this run are no longer those that it began with: {', '.join(faults)}; restore "
                f"{_names(self._config.paths)}, or start a new run: {self.report.line()}"
            )
        self._rows = {part: self._sorted(rows) for part, rows in kept.items()}
        self._order.cache_clear()
        added = sorted(set(there) - known)
        said = [f"{len(added)} rows that were added since this run began are left out ({_few(added)})"] if added else []
        said += [f"{len(lost)} rows have lost their truth image and are replaced ({_few(lost)})"] if lost else []
        return said + ([f"{moved} rows stay in the part in which this run began with them"] if moved else [])

    def _name(self, row: PublishedRequest) -> str:
        """Return a row's id, apart from the ids of files of another part, where the same one is another row."""
        files = {"heldout": self._config.heldout_paths, "validation": self._config.validation_paths}
        return next((f"{part}:{row.id}" for part, paths in files.items() if row.source in paths), row.id)

    def _digest(self, row: PublishedRequest) -> str:
        content = row.model_dump_json(exclude={"root", "source", "number"})
        truth = self._truths.get(row.truth_file, TruthCheck()).sha256
        return hashlib.sha256(f"{content}\0{truth}".encode()).hexdigest()[:16]

    def _sorted(self, rows: Iterable[PublishedRequest]) -> list[PublishedRequest]:
        """Return rows in an order that is independent of the order of reading, and mixes their kinds."""
        return sorted(rows, key=lambda row: (rank(row.id, self._config.seed), row.id))

    def __len__(self) -> int:
        """Return the number of training requests: an epoch."""
        return len(self._rows[Split.TRAIN])

    def train(self, index: int) -> Request:
        """Return the index-th training request.

        In place of a row whose truth was lost since the start it is one from the other half of the epoch, always the
        same one.

        Raises:
            DataError: when no truth is left, and without `check_images` when that of the row cannot be read.
        """
        epoch, place = divmod(index, len(self))
        rows, order, half = self._rows[Split.TRAIN], self._order(epoch), len(self) // 2
        for step in range(len(self)):
            there = (place + half + step - 1) % len(self) if step else place
            if (request := self._usable(rows[int(order[there])])) is not None:
                return request
        raise DataError(f"no truth image is left in {_names(self._config.paths)}: {self.report.line()}")

    def validation(self, count: int) -> list[Request]:
        """Return the first `count` validation requests, or all where there are fewer."""
        return self._first(Split.VALIDATION, count)

    def heldout(self, count: int) -> list[Request]:
        """Return the first `count` held-out requests, or all where there are fewer."""
        return self._first(Split.TEST, count)

    def _first(self, part: Split, count: int) -> list[Request]:
        found: list[Request] = []
        for row in self._rows[part]:
            if len(found) >= count:
                break
            if (request := self._usable(row)) is not None:
                found.append(request)
        return found

    def _usable(self, row: PublishedRequest) -> Request | None:
        """Return a row's request, None when its truth was lost since the start."""
        if self._name(row) in self._gone:
            return None
        try:
            return self._request(row)
        except DataError as error:
            if not self._config.check_images:
                raise
            _LOG.warning("row %s is replaced: %s", row.id, error)
            self._leave_out(row, RejectionReason.UNREADABLE_IMAGE, str(error))
            return None

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return an epoch's order.

        A step may reach from one epoch into the next and must not hold a request twice. The last requests of the
        previous epoch therefore swap places with the middle of this one. The ends remain as drawn: no epoch depends on
        more than the one before.
        """
        order = self._drawn(epoch)
        size = len(order)
        apart = min(_APART, size // 3)
        late = set(self._drawn(epoch - 1)[size - apart :].tolist()) if epoch else set()
        early = [place for place in range(apart) if int(order[place]) in late]
        free = (place for place in range(apart, size - apart) if int(order[place]) not in late)
        for place, other in zip(early, free, strict=False):
            order[place], order[other] = order[other], order[place]
        return order

    def _drawn(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng(derive_seed(self._config.seed, "requests", epoch))
        return rng.permutation(len(self))

    def _request(self, row: PublishedRequest) -> Request:
        try:
            return row.request(self._truth(row) if row.truth else None)
        except DataError:
            if self._config.truths == "required":
                raise
            return row.request()

    def _truth(self, row: PublishedRequest) -> ImageRef:
        if row.truth_file not in self._stored:
            self._stored[row.truth_file] = store_image(row.truth_file, self._images)
        return self._stored[row.truth_file]


def store_image(path: Path, images: ImageStore) -> ImageRef:
    """Put an image file into a store unchanged. Raises DataError when it is missing, too large or not an image."""
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{path}: {size} bytes, the limit is {MAX_IMAGE_BYTES}")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            (width, height), media_type = picture.size, Image.MIME.get(picture.format or "", "image/png")
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders raise anything on broken files.
        raise DataError(f"{path}: cannot be used as an image: {error}") from error
    return images.put(data, width=width, height=height, media_type=media_type)


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
