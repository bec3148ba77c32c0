"""Axes of charts: the range of the values, round numbers along it, and places in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Value = float | None
_ROOM = 0.05
"""Free space above and below the values, as a share of their range."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class ChartAxis:
    """Describe an axis: `title` names the measured quantity with its unit.

    Attributes:
        percent: show shares as percent.
        unit: follows each number.
        log: decades; values of 0 and below are left out.
        whole: only whole numbers are marked, as for steps and counts.
        zero: the axis includes 0.
        top: the axis includes this value.
    """

    title: str = ""
    percent: bool = False
    unit: str = ""
    log: bool = False
    whole: bool = False
    zero: bool = False
    top: float | None = None

    def read(self, value: Value) -> str:
        """Return a value with four digits, as a reader of the chart sees it; "" for none."""
        if value is None:
            return ""
        if self.percent:
            return f"{value:.2%}"
        if value and not 1e-3 <= abs(value) < 1e6:
            text = f"{value:.2e}"
        else:
            text = f"{value:,.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"
        return f"{text} {self.unit}".rstrip()


@dataclass(frozen=True)
class Tick:
    """Hold a number of an axis at its place, in percent."""

    place: float
    text: str


@dataclass(frozen=True)
class AxisScale:
    """Represent an axis from `low` to `high`; of decades, these are powers of ten."""

    axis: ChartAxis
    low: float
    high: float

    def percent(self, value: float) -> float:
        """Return the place of a value, in percent of the length."""
        at = math.log10(value) if self.axis.log else value
        return round(100 * (at - self.low) / (self.high - self.low), 2)

    def ticks(self, *, flip: bool = False) -> Iterable[Tick]:
        """Yield round numbers with their places, from the other end where `flip` asks for it."""
        values = (
            _decades(self.low, self.high)
            if self.axis.log
            else _round_numbers(self.low, self.high, whole=self.axis.whole)
        )
        step = min((b - a for a, b in pairwise(values)), default=1.0)
        for value in values:
            place = 100 * (value - self.low) / (self.high - self.low)
            yield Tick(round(100 - place if flip else place, 2), self._text(value, step))

    def _text(self, value: float, step: float) -> str:
        if self.axis.log:
            return f"10{str(round(value)).translate(_SUPERSCRIPTS)}"
        scale = 100 if self.axis.percent else 1
        value, step = value * scale, step * scale
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        text = f"{value:,.{digits}f}" if digits <= 4 and abs(value) < 1e7 else f"{value:.3g}"
        unit = "%" if self.axis.percent else f" {self.axis.unit}" if self.axis.unit else ""
        return text.replace("-", "−") + unit


def axis_scale(axis: ChartAxis, values: Sequence[float], *, ends: float = 0.0, room: bool = False) -> AxisScale:
    """Return the scale that holds all values: with `ends` (in units of the values) or with some `room` at both ends."""
    if axis.log:
        logs = [math.log10(value) for value in values] or [0.0]
        bottom, top = math.floor(min(logs)), math.ceil(max(logs))
        return AxisScale(axis, bottom, max(top, bottom + 1))
    held = [*values, *([0.0] if axis.zero or not values else []), *([axis.top] if axis.top is not None else [])]
    low, high = min(held) - ends, max(held) + ends
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = abs(high) / 10 or 1.0
        low, high = low - around if low else low, high + around
    if room:
        free = _ROOM * (high - low)
        low = 0.0 if low >= 0 > low - free else low - free
        high = high if high == axis.top else high + free
    return AxisScale(axis, low, high)


def _round_numbers(low: float, high: float, *, whole: bool, count: int = 5) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from `low` to `high`, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _decades(low: float, high: float, count: int = 6) -> list[float]:
    step = max(1, math.ceil((high - low) / count))
    return [float(power) for power in range(round(low), round(high) + 1, step)]
