"""`genevolve report`: the page of a run, or of the output of another command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genevolve_ray.data.build.publishing import PAGE
from genevolve_ray.errors import UserFault
from genevolve_ray.viewer.outputs import Output, OutputKind, read_object, recognize

PAGE_NAME = "report.html"


def write_page_of(path: Path, roots: Sequence[Path] = (), out: Path | None = None) -> tuple[Output, Path]:
    """Write the page of an output; return what it is, and the page's path: beside the output by default.

    Raises:
        UserFault: for a path that holds no output with a page.
        StoreError, DataError: for an output that is corrupt.
        OSError: when the page cannot be written.
    """
    found = recognize(path)
    if found.kind is OutputKind.RUN:
        from genevolve_ray.evolution.store.run import RunStore
        from genevolve_ray.viewer.report import write_report

        return found, write_report(RunStore.read(str(path)), out or path / PAGE_NAME)
    if found.kind is OutputKind.DATA:
        from genevolve_ray.viewer.dataset import write_dataset_page

        return found, write_dataset_page(path, out or path / PAGE)
    if found.kind is OutputKind.ABLATION:
        from genevolve_ray.viewer.ablation import write_ablation

        return found, write_ablation(read_object(path), out or path.with_suffix(".html"))
    if found.kind is OutputKind.LIFT:
        from genevolve_ray.viewer.lift import write_lifts

        return found, write_lifts(read_object(path), out or path.with_suffix(".html"))
    if found.kind is OutputKind.CALIBRATION:
        from genevolve_ray.viewer.calibration import read_calibration, write_calibration

        try:
            calibration = read_calibration(read_object(path))
        except ValueError as error:
            raise UserFault(f"genevolve report: {path} cannot be shown: {error}") from error
        return found, write_calibration(calibration, out or path.with_suffix(".html"), path.stem)
    if found.kind is OutputKind.SUITE:
        from genevolve_ray.viewer.suite import write_suite

        return found, write_suite(read_object(path), out or path.with_suffix(".html"), path.stem)
    from genevolve_ray.viewer.results import write_results

    return found, write_results(found, out or found.folder / PAGE_NAME, roots)
