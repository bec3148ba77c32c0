"""Published RL rows as a run's requests: plug-in `genevolve_ray.data.requests:PublishedRequests`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.published.exclusion import Exclusion, read_exclusion
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.requests import PublishedRequest, read_bench, read_rl
from genevolve_ray.records.published.rows import ReadConfig
from genevolve_ray.records.published.splits import Split, SplitConfig, rank, split_keys
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed

MAX_IMAGE_BYTES = 64 << 20
_APART = 64
"""A request of the end of an epoch returns after at least so many others (a third of the epoch, if that is less)."""


class PublishedRequestsConfig(Config):
    """Configure the rows that a run trains on, validates on, and is compared on.

    Validation and held-out requests come from files of their own (GenEvolve-Bench for the latter) or are split off the
    training rows. Held-out requests, and those in `exclude_paths`, are never trained on.
    """

    paths: tuple[Path, ...] = Field(min_length=1)
    """Files of rows to train on (.jsonl, .ndjson, .parquet)."""
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
    """Whether rows without their image file are left out at the start; otherwise a run stops at the first such row."""

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
        """Read all rows; truth images are written to `images` when their request is first used.

        Raises:
            DataError: for a file that is missing or broken, or when nothing is left to train, validate or compare on.
        """
        self._config, self._images = config, images
        self.report = RejectionReport()
        self._rows = self._read()
        for split, rows in self._rows.items():
            if not rows:
                raise DataError(f"no {split.value} requests left in {_names(config.paths)}: {self.report.text()}")
        self._stored: dict[Path, ImageRef] = {}
        self._order = lru_cache(maxsize=4)(self._shuffle)

    @classmethod
    def check(cls, config: PublishedRequestsConfig) -> None:
        """Read everything once, before a run starts. Raises DataError naming the file."""
        from genevolve_ray.records.images import MemoryImages

        cls(config, MemoryImages())

    def _read(self) -> dict[Split, list[PublishedRequest]]:
        config = self._config
        reading = ReadConfig(root=config.image_root, check_images=config.check_images)
        heldout = list(read_bench(config.heldout_paths, self.report, reading))
        # Bad bench rows are reported above; here they still exclude their requests.
        kept_out = Exclusion(())
        for path in (*config.exclude_paths, *config.heldout_paths):
            excluding = RejectionReport()
            kept_out |= (found := read_exclusion((path,), excluding))
            if not (found.keys or found.indices):
                raise DataError(f"{path} excludes no request from training: {excluding.text()}")
        validation = list(kept_out.apply(read_rl(config.validation_paths, self.report, reading), self.report))
        indices = (row.pool_index for row in validation if row.pool_index is not None)
        kept_out |= Exclusion((row.key for row in validation), indices)
        rows = list(kept_out.apply(read_rl(config.paths, self.report, reading), self.report))
        try:
            parts = split_keys((row.key for row in rows), config.split)
        except ValueError as error:
            raise DataError(f"{_names(config.paths)}: {error}") from error
        split = {part: [row for row in rows if parts[row.key] is part] for part in Split}
        return {
            Split.TRAIN: self._sorted(split[Split.TRAIN]),
            Split.VALIDATION: self._sorted(validation or split[Split.VALIDATION]),
            Split.TEST: self._sorted(heldout or split[Split.TEST]),
        }

    def _sorted(self, rows: Iterable[PublishedRequest]) -> list[PublishedRequest]:
        """Return rows in an order that is independent of the order of reading, and mixes their kinds."""
        return sorted(rows, key=lambda row: (rank(row.id, self._config.seed), row.id))

    def __len__(self) -> int:
        """Return the number of training requests: an epoch."""
        return len(self._rows[Split.TRAIN])

    def train(self, index: int) -> Request:
        """Return the index-th training request. Raises DataError when its image cannot be read."""
        epoch, place = divmod(index, len(self))
        return self._request(self._rows[Split.TRAIN][int(self._order(epoch)[place])])

    def validation(self, count: int) -> list[Request]:
        """Return the first `count` validation requests, or all where there are fewer."""
        return [self._request(row) for row in self._rows[Split.VALIDATION][:count]]

    def heldout(self, count: int) -> list[Request]:
        """Return the first `count` held-out requests, or all where there are fewer."""
        return [self._request(row) for row in self._rows[Split.TEST][:count]]

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
        if row.truth_file not in self._stored:
            self._stored[row.truth_file] = store_image(row.truth_file, self._images)
        return row.request(self._stored[row.truth_file])


def store_image(path: Path, images: ImageStore) -> ImageRef:
    """Put an image file into a store unchanged. Raises DataError when it is missing, too large or not an image."""
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{path}: {size} bytes, the limit is {MAX_IMAGE_BYTES}")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            (width, height), media_type = picture.size, Image.MIME.get(picture.format or "", "image/png")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be used as an image: {error}") from error
    return images.put(data, width=width, height=height, media_type=media_type)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
