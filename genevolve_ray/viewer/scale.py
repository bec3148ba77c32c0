"""Means, intervals and points on one horizontal scale, as places between 0 and 100 that a page can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MARGIN = 0.06
"""Free space at either end, as a share of the span."""


@dataclass(frozen=True)
class Mark:
    """Hold the places of a mean, its interval, single points and zero, in percent of the width (None: absent)."""

    mean: float | None
    low: float | None
    high: float | None
    points: tuple[float, ...]
    zero: float | None


@dataclass(frozen=True)
class Scale:
    """Represent a linear scale from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Scale:
        """Return a scale that holds all values with some space at both ends; 0 to 1 where there are none."""
        if not values:
            return cls(0.0, 1.0)
        span = max(values) - min(values)
        if not span:
            return cls(values[0] - 0.5, values[0] + 0.5)
        return cls(min(values) - _MARGIN * span, max(values) + _MARGIN * span)

    def inner(self) -> tuple[float, float]:
        """Return the smallest and the largest value that the scale was made for."""
        margin = (self.high - self.low) * _MARGIN / (1 + 2 * _MARGIN)
        return self.low + margin, self.high - margin

    def place(self, value: float) -> float:
        """Return the place of a value, in percent of the width."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def mark(self, mean: float | None, low: float | None, high: float | None, points: Sequence[float] = ()) -> Mark:
        """Return the places of a row. An interval is drawn only when it has both ends."""
        whole = low is not None and high is not None
        return Mark(
            mean=None if mean is None else self.place(mean),
            low=self.place(low) if low is not None and whole else None,
            high=self.place(high) if high is not None and whole else None,
            points=tuple(self.place(p) for p in points),
            zero=self.place(0.0) if self.low < 0 < self.high else None,
        )
