"""The parts of a data build: rows of all parts are compared by what is published of them, with one set of limits.

Trajectories are placed first, so that only the other rows are rendered. A row whose truth then turns out to overlap with
a trajectory is rejected: the check of the data set would find it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.commands.build_config import BuildConfig, BuildStage
from genevolve_ray.data.build.audit import AuditRow
from genevolve_ray.data.build.fingerprints import PictureMark, RowMark, RowVectors, mark_picture
from genevolve_ray.data.build.overlaps import find_overlaps
from genevolve_ray.data.build.publishing import published_picture
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.data.build.split import PartsConfig, SplitResult, split_rows
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.experience.protocol import Embedder
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.records.texts import neutralise

OVERLAPS_TRAJECTORY = "overlaps_trajectory"
"""Reason of a row whose request or truth overlaps with a row of a part of trajectories."""
_BATCH = 256
"""Texts of one call of the embedder."""
_THREADS = 8
_ROUNDING = 1e-5
"""Splits join rows whose cosine is so little below the limit: products of equal vectors differ by their last digits."""


class KnownEmbedder:
    """Embed each text once, so that splits and the check of the data set compare the same vectors."""

    def __init__(self, embedder: Embedder) -> None:
        """Start without vectors."""
        self.identity = embedder.identity
        self._embedder, self._known = embedder, dict[str, NDArray[np.float32]]()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, d] with rows of length 1. Raises InfraFailure when the embedder gave up."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            vectors = await self._embedder.embed(batch)
            if len(vectors) != len(batch):
                raise InfraFailure(f"{self.identity} returned {len(vectors)} vectors of {len(batch)}")
            self._known.update(zip(batch, vectors, strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 1), dtype=np.float32)


class BuildSplits:
    """Place the rows of a build."""

    def __init__(self, config: BuildConfig, images: ImageStore, generic: set[str]) -> None:
        """Place by the settings of a build.

        Args:
            config: of the build.
            images: the store of the pictures.
            generic: names that are no entities of their own.

        Raises:
            PluginFault, ValueError: for an embedder that cannot be loaded.
        """
        self._data, self._images, self._generic = config.data, images, generic
        self.embedder = KnownEmbedder(build_run_embedder(config.experience.embedder))
        self.summaries: list[dict[str, Any]] = []
        """What `SplitResult.summary` returned for trajectories and for requests."""
        limits = self._data.overlap_limits
        cosine = max(limits.cosine_for(self.embedder.identity) - _ROUNDING, -1 + _ROUNDING)
        self._limits, self._cosine = limits.model_copy(update={"text_cosine": cosine}), cosine
        self._seen: dict[str, PictureMark | None] = {}

    def trajectories(self, rows: Sequence[AuditRow]) -> tuple[dict[str, list[AuditRow]], list[AuditRow]]:
        """Return the parts of trajectories, and the rows whose truth is to be rendered.

        Raises:
            InfraFailure: when the embedder gave up.
        """
        placed = self._placed(self._said(rows), self._data.trajectory_parts)
        # A row that no part of trajectories takes is not dropped: it becomes a request.
        self.summaries.append({**placed.summary(), "dropped": {}})
        parts = _parts(placed, rows, self._data.trajectory_parts)
        taken = {row.id for part in parts.values() for row in part}
        return parts, [row for row in rows if row.id not in taken]

    def requests(
        self, trajectories: Iterable[AuditRow], rows: Sequence[TruthRow]
    ) -> tuple[dict[str, list[TruthRow]], list[TruthRow]]:
        """Return the parts of requests, and all rows, those of no part as rejected with the reason.

        Raises:
            InfraFailure: when the embedder gave up.
        """
        judged = {row.id: row for row in rows}
        marks = self._asked(rows)
        for row_id, values in self._overlaps(self._said(list(trajectories)), marks).items():
            judged[row_id] = judged[row_id].reject(BuildStage.SPLIT, OVERLAPS_TRAJECTORY, *values)
        free = [mark for mark in marks if judged[mark.id].rejected is None]
        placed = self._placed(free, self._data.request_parts)
        self.summaries.append(placed.summary())
        for at in placed.placements:
            if at.part is None:
                assert at.reason is not None, "a row that was dropped has a reason"
                values = () if at.kind is None else (f"{at.kind} {at.partner}",)
                judged[at.id] = judged[at.id].reject(BuildStage.SPLIT, at.reason, *values)
        good = [row for row in judged.values() if row.rejected is None]
        return _parts(placed, good, self._data.request_parts), list(judged.values())

    def _placed(self, marks: Sequence[RowMark], config: PartsConfig) -> SplitResult:
        config = config.model_copy(update={"limits": self._limits})
        return split_rows(marks, config, self._vectors(marks), embedder=self.embedder.identity)

    def _vectors(self, marks: Sequence[RowMark]) -> RowVectors:
        return RowVectors(asyncio.run(self.embedder.embed([mark.text for mark in marks])))

    def _overlaps(self, said: Sequence[RowMark], asked: Sequence[RowMark]) -> dict[str, tuple[str, ...]]:
        """Return the requests that overlap with a trajectory, each with the kinds and its partners."""
        if not (said and asked):
            return {}
        marks = [*said, *asked]
        groups = np.array([0] * len(said) + [1] * len(asked), dtype=np.int64)
        found: dict[str, dict[str, str]] = {}
        for overlap in find_overlaps(
            marks, self._vectors(marks), self._limits, text_cosine=self._cosine, groups=groups
        ):
            for pair in zip(overlap.pairs.first.tolist(), overlap.pairs.second.tolist(), strict=True):
                one, other = sorted(pair)
                found.setdefault(marks[other].id, {}).setdefault(overlap.kind, marks[one].id)
        return {row_id: tuple(f"{kind} {of}" for kind, of in kinds.items()) for row_id, kinds in found.items()}

    # --- marks of what is published ---

    def _said(self, rows: Sequence[AuditRow]) -> list[RowMark]:
        """Return the marks of trajectories: the request as the messages hold it, and the pictures that the teacher saw."""
        refs = [[ImageRef.model_validate_json(text) for text in row.looked_at] for row in rows]
        return self._marks(rows, [neutralise(row.prompt) for row in rows], refs)

    def _asked(self, rows: Sequence[TruthRow]) -> list[RowMark]:
        return self._marks(rows, [row.prompt for row in rows], [[row.truth_image] for row in rows])

    def _marks(
        self, rows: Sequence[PromptRow], texts: Sequence[str], refs: Sequence[Sequence[ImageRef]]
    ) -> list[RowMark]:
        new = {ref.sha256: ref for its in refs for ref in its if ref.sha256 not in self._seen}
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="marks") as pool:
            self._seen.update(zip(new, pool.map(self._mark, new.values()), strict=True))
        return [
            RowMark(row.id, text, self.names(row), tuple(mark for ref in its if (mark := self._seen[ref.sha256])))
            for row, text, its in zip(rows, texts, refs, strict=True)
        ]

    def names(self, row: PromptRow) -> tuple[str, ...]:
        """Return the entities of a row that are subjects of their own."""
        return tuple(name for name in row.entities if name not in self._generic)

    def _mark(self, ref: ImageRef) -> PictureMark | None:
        """Return the mark of a picture as it is published; None for one without which its row is not published."""
        try:
            return mark_picture(published_picture(self._images.get(ref), ref, self._data.publish)[1])
        except (OSError, ImageRefused):
            return None


def _parts(placed: SplitResult, rows: Sequence[Any], config: PartsConfig) -> dict[str, list[Any]]:
    by_id = {row.id: row for row in rows}
    return {part.name: [by_id[row_id] for row_id in placed.ids(part.name)] for part in config.parts}
