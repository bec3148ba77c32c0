"""The page of a `trajectory_structured.json`: thoughts, results and skills in the form of the authors' page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.published.structured import StructuredTrajectory, read_structured
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.sources import SourceKind, ViewSource
from genevolve_ray.viewer.site.story import ordinal_pieces

MOST_STEPS = 400
"""Steps of a file that the page shows; the rest are counted."""


class StructuredSource(ViewSource):
    """Represent one file."""

    kind = SourceKind.STRUCTURED

    def __init__(self, path: Path) -> None:
        """Read the file. Raises DataError for one that cannot be read."""
        super().__init__(path.resolve().stem, str(path))
        self._path, self._revision = path, 0
        self.structured: StructuredTrajectory = read_structured(path)
        self._stamp = self._look_at()

    @property
    def revision(self) -> int:
        """Grows when the file has changed."""
        return self._revision

    def refresh(self) -> bool:
        """Read the file again when it has changed. Raises StoreError while it cannot be read."""
        if (stamp := self._look_at()) != self._stamp:
            try:
                self.structured = read_structured(self._path)
            except DataError as error:
                raise StoreError(str(error)) from error
            self._stamp, self._revision = stamp, self._revision + 1
        return False

    def _look_at(self) -> tuple[int, int] | None:
        """Return size and time of the file, None where it is gone."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


def build_structured_file(request: PageRequest) -> dict[str, Any]:
    """Return what the page of a file shows."""
    assert isinstance(request.source, StructuredSource)
    one = request.source.structured
    return {
        "title": one.case_id or request.source.name,
        "one": one,
        "steps": one.steps[:MOST_STEPS],
        "more": len(one.steps[MOST_STEPS:]),
        "program": ordinal_pieces(one.gen_prompt),
    }


STRUCTURED_FILE = SitePage(
    "overview", "structured.html.j2", build_structured_file, kinds=frozenset({SourceKind.STRUCTURED})
)
