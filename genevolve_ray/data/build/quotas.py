"""Whole numbers of rows for the values of an axis, and for pairs of values of two axes.

A table of two axes with given sums, and with pairs that may not occur, is a transportation problem. It is solved as a
flow of least cost in whole numbers by `networkx.network_simplex`: no tolerance, and one result on every machine.
Solvers of linear programs work in floating point, and their choice among equally good tables may differ by platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, fsum
from typing import Any

from genevolve_ray.errors import UserFault

_UNIT = 10**6
"""Cost of a row by which a pair leaves its share; the costs below outweigh any sum of these."""
_FIRST = 10**12
"""Gain of the first row of a pair."""
_CHOICE = 10**18
"""Gain of the number that the largest remainder chose, where rounding leaves a choice."""
_FLOOR = 10**24
"""Gain of a row below the rounded-down number of a value."""
_ROUNDS = 200
"""Rounds of proportional fitting; more than enough for shares that only guide the rounding."""


class InfeasibleQuotas(UserFault, ValueError):
    """Report numbers of rows that no table meets; the message names the values that conflict."""


def largest_remainder(weights: Sequence[Fraction], total: int) -> list[int]:
    """Return whole numbers that sum to `total`, in proportion to weights, by the method of largest remainders (Hamilton).

    Each number is the exact quota rounded down or up. Of equal remainders the earlier one is rounded up.

    Raises:
        ValueError: when all weights are 0 and there are rows.
    """
    if not (whole := sum(weights)):
        if total:
            raise ValueError(f"{total} rows cannot be divided by weights that are all 0")
        return [0] * len(weights)
    exact = [Fraction(total) * weight / whole for weight in weights]
    down = [floor(quota) for quota in exact]
    order = sorted(range(len(exact)), key=lambda place: (down[place] - exact[place], place))
    for place in order[: total - sum(down)]:
        down[place] += 1
    return down


@dataclass(frozen=True)
class AxisNames:
    """Name an axis and its values, for messages."""

    axis: str
    values: tuple[str, ...]


def allot(
    rows: Sequence[int],
    weights: Sequence[Fraction] | None,
    allowed: Sequence[Sequence[bool]],
    parent: AxisNames,
    child: AxisNames,
) -> list[list[int]]:
    """Return int[P][C]: the rows of each pair of values of two axes.

    Rows sum to `rows`. Columns sum to their quota by largest remainder. Where these cannot all be met, only because
    rounding fell on the wrong side, another side of the rounding is taken for as few columns as possible. Then as many
    allowed pairs as possible have a row, and the rest is near to proportional.

    Args:
        rows: the number of rows of each value of the first axis.
        weights: of the values of the second axis; None for an even spread over the allowed values of each row.
        allowed: bool[P][C].
        parent: names of the first axis.
        child: names of the second axis.

    Raises:
        InfeasibleQuotas: when no table has these sums; it names the values whose numbers conflict.
    """
    total = sum(rows)
    shares = _even(rows, allowed) if weights is None else list(weights)
    quotas = largest_remainder(shares, total)
    exact = [Fraction(total) * share / sum(shares) for share in shares] if total else [Fraction(0)] * len(shares)
    target = _fitted(rows, exact, allowed)
    table = _flow(rows, quotas, exact, allowed, target)
    columns = [sum(row[place] for row in table) for place in range(len(exact))] if table else []
    if table is None or any(not floor(q) <= n <= ceil(q) for q, n in zip(exact, columns, strict=True)):
        raise InfeasibleQuotas(_conflict(rows, quotas, allowed, parent, child))
    return table


def _even(rows: Sequence[int], allowed: Sequence[Sequence[bool]]) -> list[Fraction]:
    shares = [Fraction(0)] * len(allowed[0])
    for number, row in zip(rows, allowed, strict=True):
        for place, may in enumerate(row):
            shares[place] += Fraction(number * may, sum(row))
    return shares


def _fitted(rows: Sequence[int], columns: Sequence[Fraction], allowed: Sequence[Sequence[bool]]) -> list[list[float]]:
    """Return float[P][C] near to proportional with these sums, by iterative proportional fitting (Deming, Stephan 1940).

    Sums are rounded exactly (`fsum`), so that the result is the same on every machine.
    """
    table = [[float(may) for may in row] for row in allowed]
    for _ in range(_ROUNDS):
        for place, column in enumerate(columns):
            if now := fsum(row[place] for row in table):
                for row in table:
                    row[place] *= float(column) / now
        for number, row in zip(rows, table, strict=True):
            if now := fsum(row):
                row[:] = [value * (number / now) for value in row]
    return table


def _flow(
    rows: Sequence[int],
    quotas: Sequence[int],
    exact: Sequence[Fraction],
    allowed: Sequence[Sequence[bool]],
    target: Sequence[Sequence[float]],
) -> list[list[int]] | None:
    """Return the table of least cost, None when the columns cannot take the rows."""
    import networkx as nx

    graph, total = nx.MultiDiGraph(), sum(rows)
    graph.add_node("end", demand=total)
    for p, number in enumerate(rows):
        graph.add_node(("p", p), demand=-number)
    for c, (quota, share) in enumerate(zip(quotas, exact, strict=True)):
        graph.add_edge(("c", c), "end", capacity=floor(share), weight=-_FLOOR)
        if ceil(share) > floor(share):
            graph.add_edge(("c", c), "end", capacity=1, weight=-_CHOICE if quota > floor(share) else 0)
    for p, row in enumerate(allowed):
        for c in (c for c, may in enumerate(row) if may):
            near, part = divmod(target[p][c], 1.0)
            # Each further row costs more than the one before, so that the cheapest flow fills them in this order.
            graph.add_edge(("p", p), ("c", c), capacity=1, weight=-_FIRST)
            graph.add_edge(("p", p), ("c", c), capacity=max(0, int(near) - 1), weight=-_UNIT)
            graph.add_edge(("p", p), ("c", c), capacity=1, weight=round((1 - 2 * part) * _UNIT))
            graph.add_edge(("p", p), ("c", c), capacity=total, weight=_UNIT)
    try:
        _, flow = nx.network_simplex(graph)
    except nx.NetworkXUnfeasible:
        return None
    return [[_carried(flow, p, c) for c in range(len(exact))] for p in range(len(rows))]


def _carried(flow: dict[Any, Any], p: int, c: int) -> int:
    return sum(flow[("p", p)].get(("c", c), {}).values())


def _conflict(
    rows: Sequence[int],
    quotas: Sequence[int],
    allowed: Sequence[Sequence[bool]],
    parent: AxisNames,
    child: AxisNames,
) -> str:
    """Return the values whose numbers conflict: a least cut of the network (Hall's condition, with numbers)."""
    import networkx as nx

    graph = nx.DiGraph()
    for p, number in enumerate(rows):
        graph.add_edge("start", ("p", p), capacity=number)
        for c in (c for c, may in enumerate(allowed[p]) if may):
            graph.add_edge(("p", p), ("c", c))  # Without a bound.
    for c, number in enumerate(quotas):
        graph.add_edge(("c", c), "end", capacity=number)
    _, (near, _) = nx.minimum_cut(graph, "start", "end")
    stuck = [p for p in range(len(rows)) if ("p", p) in near and rows[p]]
    taken = [c for c in range(len(quotas)) if ("c", c) in near]
    have, room = sum(rows[p] for p in stuck), sum(quotas[c] for c in taken)
    return (
        f"{parent.axis} {_listed(parent, stuck, rows)} needs {have} rows, but the only values of {child.axis} that it "
        f"allows have {room}: {_listed(child, taken, quotas) or 'none'}"
    )


def _listed(names: AxisNames, places: Sequence[int], numbers: Sequence[int]) -> str:
    return ", ".join(f"{names.values[place]} ({numbers[place]})" for place in places)
