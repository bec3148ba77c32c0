"""The page of one result: the JSON file of an ablation, of lifts, of a calibration or of a suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.viewer.ablation import ablation_context
from genevolve_ray.viewer.calibration import calibration_context
from genevolve_ray.viewer.lift import lift_context
from genevolve_ray.viewer.outputs import OutputKind
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.results import StoredResult, read_result
from genevolve_ray.viewer.site.sources import SourceKind, ViewSource
from genevolve_ray.viewer.suite import suite_context

_BODIES: Mapping[OutputKind, tuple[str, Callable[[Any, str], dict[str, Any]]]] = {
    OutputKind.ABLATION: ("ablation_body.html.j2", lambda found, name: ablation_context(found)),
    OutputKind.LIFT: ("lift_body.html.j2", lambda found, name: lift_context(found)),
    OutputKind.CALIBRATION: ("calibration_body.html.j2", calibration_context),
    OutputKind.SUITE: ("results_body.html.j2", suite_context),
}
"""Template that the report of a kind has too, and what it shows of the content of a file with a name."""


class ResultSource(ViewSource):
    """Represent one file."""

    kind = SourceKind.RESULT

    def __init__(self, folder: Folder, result: StoredResult) -> None:
        """Keep a result that was read from a folder."""
        super().__init__(result.name.rpartition(".")[0], folder.address(result.name))
        self.result, self._folder, self._revision = result, folder, 0
        self._stamp: object = None

    @property
    def what(self) -> str:
        """The kind of the result."""
        return str(self.result.kind)

    @property
    def revision(self) -> int:
        """Grows when the file has changed."""
        return self._revision

    def refresh(self) -> bool:
        """Read the file again when it has changed. Raises StoreError while it holds no result; the last one is shown then."""
        stamp = self._folder.stamp(self.result.name)
        if stamp != self._stamp:
            found = read_result(self._folder, self.result.name)
            if found.kind is None:
                raise StoreError(f"{self.place} holds no result any more: {found.fault}")
            self._stamp = stamp
            self._revision += found != self.result
            self.result = found
        return False


def build_result_file(request: PageRequest) -> dict[str, Any]:
    """Return what the page of a result shows."""
    source = request.source
    assert isinstance(source, ResultSource)
    result = source.result
    assert result.kind is not None
    body, context = _BODIES[result.kind]
    return {"body": body, "what": result.kind.value, "fault": source.fault, **context(result.content, source.name)}


RESULT_FILE = SitePage(
    "overview", "result_file.html.j2", build_result_file, label="Result", kinds=frozenset({SourceKind.RESULT})
)
