"""Page of a calibration: precision and recall of recalled guidance against the threshold of a memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genevolve_ray.experience.calibration import Recalled, ThresholdCalibration
from genevolve_ray.viewer.charts import ChartAxis, ChartSeries, ChartSpec, Kind
from genevolve_ray.viewer.figures import Figure
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import percent, render_page, write_page


def read_calibration(values: Mapping[str, Any]) -> ThresholdCalibration:
    """Return the calibration that `genevolve experience calibrate` wrote.

    Raises:
        ValueError: for values that are none, with a sentence about the file that names the field.
    """
    try:
        found = ThresholdCalibration.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"it is no calibration that can be read: {where}: {first['msg']}") from error
    if not found.rows:
        raise ValueError("it is no calibration that can be read: rows: there are none")
    return found


def write_calibration(found: ThresholdCalibration, out: Path, run: str) -> Path:
    """Write the page of a calibration and return its path. Raises OSError when it cannot be written."""
    return write_page(render_calibration(found, run), out)


def render_calibration(found: ThresholdCalibration, run: str) -> str:
    """Return the page as text; every name in it is escaped."""
    context = calibration_context(found, run)
    return render_page("calibration.html.j2", {"what": "calibration", "thumbs": {}, **context})


def calibration_context(found: ThresholdCalibration, title: str, prefix: str = "") -> dict[str, Any]:
    """Return what a page shows of a calibration; `prefix` keeps the ids of several apart."""
    return {
        "title": title,
        "subtitle": [
            f"{found.bundles:,} bundles",
            f"{found.requests:,} requests",
            found.embedder,
            f"against {found.reference}",
        ],
        "tiles": _tiles(found),
        "curve": _figure(found, f"{prefix}calibration"),
        "rows": found.rows,
        "recommended": found.recommended,
    }


def _tiles(found: ThresholdCalibration) -> list[Tile]:
    row = next((r for r in found.rows if r.threshold == found.recommended), None)
    tiles = [
        Tile("Threshold of the run", f"{found.threshold:g}"),
        Tile("Precision of any other bundle", percent(found.chance)),
    ]
    if row is None:
        return [Tile("Recommended threshold", "none", note=f"no precision of {found.wanted:g}"), *tiles]
    note = f"precision {percent(row.nearest.precision)}, recall {percent(row.nearest.recall)}"
    return [Tile("Recommended threshold", f"{row.threshold:g}", note=note), *tiles]


def _figure(found: ThresholdCalibration, name: str) -> Figure:
    xs = [row.threshold for row in found.rows]

    def series(name: str, color: int, recalled: list[Recalled]) -> list[ChartSeries]:
        precision = [one.precision for one in recalled]
        low, high = ([getattr(one, end) for one in recalled] for end in ("low", "high"))
        return [
            ChartSeries(f"{name}: precision", color, xs, precision, low=low, high=high),
            ChartSeries(f"{name}: recall", color + 2, xs, [one.recall for one in recalled]),
        ]

    lines = series("nearest", 0, [r.nearest for r in found.rows]) + series("merged", 1, [r.merged for r in found.rows])
    lines.append(ChartSeries("hit rate", 5, xs, [row.hit_rate for row in found.rows]))
    chance = [found.chance] * 2
    lines.append(ChartSeries("precision of any other bundle", 4, [xs[0], xs[-1]], chance, Kind.GUIDE))
    chart = ChartSpec(
        tuple(lines), x=ChartAxis("threshold"), y=ChartAxis("share", percent=True, zero=True), legend=True
    )
    caption = "Bands are 95% intervals over requests."
    return Figure(name, "Recalled guidance by threshold", caption, chart, wide=True)
