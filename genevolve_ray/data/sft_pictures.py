"""The pictures of SFT rows as the policy will see them: rows keep places, and pixels live as long as their batch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.data.truths import explained, no_picture
from genevolve_ray.models.image_tokens import MAX_ASPECT, Grid, load_image_tokens, within_aspect
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, open_picture
from genevolve_ray.records.published.rejections import Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.row_pictures import PicturePlace, RowPictureReader
from genevolve_ray.tools.showing import Observations

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from torch import Tensor

    from genevolve_ray.data.sft_rows import TokenizedRow
    from genevolve_ray.learning.distributed import Ranks
    from genevolve_ray.learning.sft import SftExample

_LOG = logging.getLogger(__name__)
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class RowPicture:
    """Hold what a row keeps of a picture: its place, and the patches for which it has tokens."""

    place: PicturePlace
    grid: Grid


class RowPictures:
    """Open the pictures of rows for one model, scaled as a profile shows pictures."""

    def __init__(self, model_dir: Path, observations: Observations, limits: PictureLimits | None = None) -> None:
        """Load the model's image processor.

        Raises:
            ValueError: for a model that does not see, or whose folder lacks its image processor.
        """
        tokens = load_image_tokens(model_dir)
        if tokens is None:
            raise ValueError("images=vision, but the model does not see (config.json names no image token)")
        self.tokens, self.processor = tokens, tokens.processor
        self._observations, self._limits = observations, limits or PictureLimits()
        self._reader = RowPictureReader(self._limits.max_bytes)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")

    def placed(self, places: Sequence[PicturePlace]) -> list[RowPicture]:
        """Return the pictures with their patches. Each is decoded, so that a broken one shows before any training.

        Raises:
            RowFault: naming the first that is missing or cannot be used.
        """
        opened = self.opened(places)
        grids = [self.tokens.grid(picture.width, picture.height) for picture in opened]
        return [RowPicture(place, grid) for place, grid in zip(places, grids, strict=True)]

    def opened(self, places: Sequence[PicturePlace]) -> list[PillowImage]:
        """Return the pixels of pictures in RGB, at the size that the policy sees. Raises RowFault as `placed`."""
        files = [self._reader.read(place) for place in places]
        return list(self._pool.map(self._open, places, files))

    def close(self) -> None:
        """End the threads and close the file that is read."""
        self._pool.shutdown()
        self._reader.close()

    def _open(self, place: PicturePlace, data: bytes) -> PillowImage:
        if fault := no_picture(data):
            raise RowFault(RejectionReason.UNREADABLE_IMAGE, f"{place}: {fault}")
        try:
            picture = open_picture(data, self._limits, self._observations.side_for)
        except ImageRefused as refusal:
            fault = explained(refusal, data, self._limits)
            raise RowFault(RejectionReason.UNREADABLE_IMAGE, f"{place}: {fault}") from refusal
        if not within_aspect(*picture.size):
            detail = f"{place}: {picture.width} x {picture.height} pixels, at most {MAX_ASPECT} to 1"
            raise RowFault(RejectionReason.UNREADABLE_IMAGE, detail)
        return picture


class OpenedPicture:
    """Hold a picture at the size that the policy sees, as `learning.batch.TowerPicture`.

    Its patches, eight times as large as its pixels, are computed anew when a pass reads them, and kept no longer.
    """

    def __init__(self, pixels: PillowImage, grid: Grid, processor: Any) -> None:
        """Hold pixels in RGB, their patches by time, height and width, and the model's image processor."""
        self.grid = grid
        self.pixels, self._processor = pixels, processor

    @cached_property
    def sha256(self) -> str:
        """A hash of the size and the pixels."""
        return hashlib.sha256(repr(self.pixels.size).encode() + self.pixels.tobytes()).hexdigest()

    @property
    def patches(self) -> Tensor:
        """The patches [t * h * w, patch size]."""
        from genevolve_ray.learning.vision import picture_input

        return picture_input(self.pixels, self._processor).patches


class RowExamples:
    """Turn rows into examples of a step. A row whose pictures changed since it was read is left out, by name.

    Over several ranks, a row that one of them cannot open is left out on all.
    """

    def __init__(self, pictures: RowPictures | None, report: RejectionReport, ranks: Ranks | None = None) -> None:
        """Read with `pictures`, None where no row has any; the report counts the rows that are left out."""
        self._pictures, self.report, self._ranks = pictures, report, ranks
        self._lost: dict[tuple[str, int], Rejection] = {}

    @property
    def lost(self) -> list[Rejection]:
        """The rows that were left out during the training."""
        return list(self._lost.values())

    def lose_again(self, lost: Sequence[Rejection], present: Sequence[TokenizedRow]) -> None:
        """Count rows that were left out before this process; of these, only those `present` passed its own reading."""
        known = {(row.source, row.number) for row in present if row}
        for rejection in lost:
            place = rejection.source, rejection.number
            if place in known:
                self.report.reject(rejection)
            self._lost[place] = rejection

    def of(self, rows: Sequence[TokenizedRow]) -> list[SftExample]:
        """Return the examples of rows, in order, with their pictures decoded.

        Those of Parquet files are read in the order of the files.
        """
        made: dict[int, SftExample] = {}
        for number in sorted(range(len(rows)), key=lambda number: _reading_order(rows[number])):
            try:
                made[number] = self._example(rows[number])
            except RowFault as fault:
                self._lose(rows[number], fault)
        if self._ranks is not None and self._ranks.size > 1 and any(row.pictures for row in rows):
            self._agree(rows, made)
        return [made[number] for number in sorted(made)]

    def _agree(self, rows: Sequence[TokenizedRow], made: dict[int, SftExample]) -> None:
        """Leave out what another rank left out: all ranks must divide by the same count of tokens."""
        assert self._ranks is not None
        missing = {f"{number:08d}": float(number not in made) for number in range(len(rows))}
        for name, anywhere in self._ranks.combine(missing, frozenset(missing)).items():
            if anywhere and made.pop(int(name), None) is not None:
                fault = RowFault(RejectionReason.MISSING_IMAGE, "a picture that another rank cannot open")
                self._lose(rows[int(name)], fault)

    def _lose(self, row: TokenizedRow, fault: RowFault) -> None:
        """Count and name a row once, however often it comes up."""
        if (row.source, row.number) in self._lost:
            return
        rejection = Rejection(row.source, row.number, fault.reason, f"{fault.detail} (during training)")
        self._lost[row.source, row.number] = rejection
        self.report.reject(rejection)
        _LOG.warning("left out: %s", rejection)

    def _example(self, row: TokenizedRow) -> SftExample:
        from genevolve_ray.learning.batch import ImageInputs

        if not row:
            raise RowFault(RejectionReason.MISSING_IMAGE, "left out before")
        plain = row.example()
        if not row.pictures:
            return plain
        assert self._pictures is not None, "rows with pictures were encoded with them"
        opened = self._pictures.opened([picture.place for picture in row.pictures])
        for picture, pixels in zip(row.pictures, opened, strict=True):
            if self._pictures.tokens.grid(pixels.width, pixels.height) != picture.grid:
                detail = f"{picture.place} has another size than when it was read"
                raise RowFault(RejectionReason.UNREADABLE_IMAGE, detail)
        processor = self._pictures.processor
        shown = [OpenedPicture(pixels, its.grid, processor) for its, pixels in zip(row.pictures, opened, strict=True)]
        return replace(plain, images=ImageInputs(tuple(shown)))


def _reading_order(row: TokenizedRow) -> tuple[str, int]:
    if not row.pictures or (file := row.pictures[0].place.file) is None:
        return "", 0
    return str(file), row.pictures[0].place.row
