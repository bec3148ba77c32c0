"""Pairwise coverage of recipes: every allowed pair of values of two axes occurs in a row, where the rows permit it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations

from genevolve_ray.data.build.taxonomy import AXES, Taxonomy

COVERED = ("family", "gap", "anchor", "requirement", "difficulty")
"""Axes whose pairs are covered. The type of request follows from the family in most taxonomies."""
_PASSES = 3
_TRIES = 400
"""Exchanges that are weighed for one pair in one pass."""
Pair = tuple[str, int, str, int]
"""An axis and the place of a value, and another axis and place; axes in the order of `AXES`."""


class UncoveredReason(StrEnum):
    """Name the reason why no row has a pair."""

    NO_ROWS = "no_rows"
    """One of the two values has no row at all."""
    FEW_ROWS = "few_rows"
    """One of the values has fewer rows than the other axis has values to pair it with."""
    NUMBERS = "numbers"
    """One axis depends on the other, and the numbers of rows leave none for the pair."""
    NO_EXCHANGE = "no_exchange"
    """No exchange of values between two rows was found that covers more pairs than it uncovers."""


@dataclass(frozen=True)
class Uncovered:
    """Hold an allowed pair that no row has, with the rows of both values."""

    axis: str
    value: str
    rows: int
    other_axis: str
    other_value: str
    other_rows: int
    reason: UncoveredReason

    def __str__(self) -> str:
        """Return the pair and the reason as one line."""
        one, other = f"{self.axis} {self.value}", f"{self.other_axis} {self.other_value}"
        return f"{one} ({self.rows} rows) with {other} ({self.other_rows} rows): {self.reason.value}"


@dataclass(frozen=True)
class Coverage:
    """Report the allowed pairs of values, and those that no row has."""

    pairs: int = 0
    uncovered: tuple[Uncovered, ...] = ()

    @property
    def covered(self) -> int:
        """Allowed pairs that at least one row has."""
        return self.pairs - len(self.uncovered)


def allowed_pairs(taxonomy: Taxonomy) -> Iterator[Pair]:
    """Yield the pairs of values that can occur in one row, of the axes in `COVERED`."""
    reach = {
        (name, place): _compatible(taxonomy, name, place)
        for name in COVERED
        for place in range(len(taxonomy.axis(name).values))
    }
    for one, other in combinations(COVERED, 2):
        for x in range(len(taxonomy.axis(one).values)):
            for y in range(len(taxonomy.axis(other).values)):
                first, second = reach[one, x], reach[other, y]
                if all(first[axis] & second[axis] for axis in first.keys() & second.keys()):
                    yield one, x, other, y


def _compatible(taxonomy: Taxonomy, name: str, place: int) -> dict[str, set[int]]:
    """Return the values of an axis and of those above it that can occur with one value."""
    found, here = {name: {place}}, name
    while above := taxonomy.axis(here).given:
        rows = taxonomy.allowed(here)
        found[above] = {p for p, row in enumerate(rows) if any(row[c] for c in found[here])}
        here = above
    return found


@dataclass
class _Table:
    """Hold the columns, the rows of each pair, and an index of the rows of each value."""

    taxonomy: Taxonomy
    columns: dict[str, list[int]]
    counts: Counter[Pair] = field(default_factory=Counter)
    index: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one, other in combinations(COVERED, 2):
            seen = Counter(zip(self.columns[one], self.columns[other], strict=True))
            self.counts.update({(one, x, other, y): number for (x, y), number in seen.items()})

    def build_index(self, order: Sequence[int]) -> None:
        """Index the rows of each value in a given order. Entries may become stale: read them by `rows_of`."""
        for name in COVERED:
            column = self.columns[name]
            for row in order:
                self.index.setdefault((name, column[row]), []).append(row)

    def rows_of(self, name: str, place: int) -> Iterator[int]:
        """Yield the rows that have a value."""
        column = self.columns[name]
        return (row for row in self.index.get((name, place), ()) if column[row] == place)

    def moved_with(self, name: str) -> tuple[str, ...]:
        """Return an axis and all axes that depend on it."""
        found = [name]
        for axis in AXES:
            if self.taxonomy.axis(axis).given in found:
                found.append(axis)
        return tuple(found)

    def above(self, name: str, row: int) -> int:
        """Return the value, in one row, of the axis that an axis depends on."""
        given = self.taxonomy.axis(name).given
        return self.columns[given][row] if given else 0

    def changes(self, moved: Sequence[str], row: int, other: int) -> Counter[Pair]:
        """Return by how much the rows of each pair change when two rows exchange the values of some axes."""
        delta: Counter[Pair] = Counter()
        for name in (axis for axis in moved if axis in COVERED):
            x, y = self.columns[name][row], self.columns[name][other]
            for rest in COVERED:
                if rest not in moved:
                    u, v = self.columns[rest][row], self.columns[rest][other]
                    for value, beside, step in ((x, u, -1), (y, v, -1), (y, u, 1), (x, v, 1)):
                        delta[_pair(name, value, rest, beside)] += step
        return delta

    def gain(self, delta: Mapping[Pair, int]) -> int:
        """Return the pairs that a change covers, less those that it uncovers."""
        return sum(
            (self.counts[pair] + step > 0) - (self.counts[pair] > 0) for pair, step in delta.items() if step != 0
        )

    def exchange(self, moved: Sequence[str], row: int, other: int, delta: Counter[Pair]) -> None:
        """Exchange the values of some axes between two rows."""
        for name in moved:
            column = self.columns[name]
            column[row], column[other] = column[other], column[row]
            if name in COVERED:
                for changed in (row, other):
                    self.index.setdefault((name, column[changed]), []).append(changed)
        for pair, step in delta.items():
            self.counts[pair] += step


def _pair(name: str, value: int, rest: str, beside: int) -> Pair:
    return (name, value, rest, beside) if AXES.index(name) < AXES.index(rest) else (rest, beside, name, value)


def cover_pairs(taxonomy: Taxonomy, columns: dict[str, list[int]], chance: random.Random) -> Coverage:
    """Exchange values between rows until all allowed pairs occur or no exchange helps, and return the report.

    The columns change in place. No exchange changes the number of rows of a value, or makes a combination that is not
    allowed.
    """
    table, pairs = _Table(taxonomy, columns), list(allowed_pairs(taxonomy))
    missing = [pair for pair in pairs if not table.counts[pair]]
    if missing:
        order = list(range(len(columns[AXES[0]])))
        chance.shuffle(order)
        table.build_index(order)
    partners = _partners(pairs)
    for _ in range(_PASSES):
        before = len(missing)
        for pair in missing:
            if not table.counts[pair] and not _hopeless(table, pair, pairs_of=partners):
                _cover(table, pair)
        missing = [pair for pair in pairs if not table.counts[pair]]
        if len(missing) in (0, before):
            break
    return Coverage(len(pairs), tuple(_uncovered(table, pair, partners) for pair in missing))


def _partners(pairs: Sequence[Pair]) -> dict[tuple[str, int, str], list[Pair]]:
    """Return the allowed pairs of each value with the values of each other axis."""
    found: dict[tuple[str, int, str], list[Pair]] = {}
    for pair in pairs:
        one, x, other, y = pair
        found.setdefault((one, x, other), []).append(pair)
        found.setdefault((other, y, one), []).append(pair)
    return found


def _hopeless(table: _Table, pair: Pair, pairs_of: Mapping[tuple[str, int, str], Sequence[Pair]]) -> bool:
    """Return whether each row of one value already has a partner of its own, so that no exchange covers more."""
    one, x, other, y = pair
    for name, place, rest in ((one, x, other), (other, y, one)):
        found = [table.counts[p] for p in pairs_of[name, place, rest]]
        if max(found) <= 1:
            return True
    return False


def _cover(table: _Table, pair: Pair) -> bool:
    """Cover a pair by the first exchange that gains, of those that are tried."""
    one, x, other, y = pair
    tries = _TRIES
    for name, place, rest, beside in ((other, y, one, x), (one, x, other, y)):
        moved = table.moved_with(name)
        if rest in moved or name in table.moved_with(rest):
            continue  # One depends on the other: what an exchange moves stays together.
        donors: dict[int, list[int]] = {}
        for row in table.rows_of(name, place):
            donors.setdefault(table.above(name, row), []).append(row)
        for row in table.rows_of(rest, beside):
            for donor in donors.get(table.above(name, row), ()):
                delta = table.changes(moved, row, donor)
                if delta and table.gain(delta) > 0:
                    table.exchange(moved, row, donor, delta)
                    return True
                tries -= 1
                if tries <= 0:
                    return False
    return False


def _uncovered(table: _Table, pair: Pair, partners: Mapping[tuple[str, int, str], Sequence[Pair]]) -> Uncovered:
    one, x, other, y = pair
    rows, others = table.columns[one].count(x), table.columns[other].count(y)
    if not rows or not others:
        reason = UncoveredReason.NO_ROWS
    elif rows < len(partners[one, x, other]) or others < len(partners[other, y, one]):
        reason = UncoveredReason.FEW_ROWS
    elif one in table.moved_with(other) or other in table.moved_with(one):
        reason = UncoveredReason.NUMBERS
    else:
        reason = UncoveredReason.NO_EXCHANGE
    names = table.taxonomy.axis(one).names[x], table.taxonomy.axis(other).names[y]
    return Uncovered(one, names[0], rows, other, names[1], others, reason)
