"""Charts as SVG, drawn where a page is written: a page needs no library of plots, and shows its curves without a script."""

from genevolve_ray.viewer.charts.axes import ChartAxis
from genevolve_ray.viewer.charts.drawing import Drawing, draw
from genevolve_ray.viewer.charts.series import ChartSeries, ChartSpec, Kind

__all__ = ["ChartSpec", "ChartAxis", "Drawing", "Kind", "ChartSeries", "draw"]
