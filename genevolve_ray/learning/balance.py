"""Division of a batch into micro-batches: prefixes stay together, and all ranks get about the same work.

Importing this module is cheap (no torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from genevolve_ray.learning.tree import PrefixOrder

OVERHEAD = 1 / 16
"""Cost of one more micro-batch, as a share of the token budget: prefixes cheaper than it are computed twice."""
EVEN = 1.01
"""Largest cost of a micro-batch over the mean at which the search for a more even division ends."""
_ROUNDING = 1e-9


def divide(order: PrefixOrder, token_budget: int, ranks: int = 1) -> list[list[int]]:
    """Return micro-batches as sorted places of the order, a multiple of `ranks`; some may be empty.

    Each has at most `token_budget` distinct tokens, or a single sequence. Dealt to the ranks in turn, the micro-batches
    of one round cost about the same. The result does not depend on the order in which the sequences came.

    Raises:
        ValueError: for a budget below 1.
    """
    if token_budget < 1:
        raise ValueError(f"token budget must be at least 1, got {token_budget}")
    if ranks == 1 or not order.lengths:
        return cut(order, token_budget)
    limit = max(token_budget, *order.lengths)
    rounds = -(-order.tokens(range(len(order.lengths))) // (ranks * limit))
    while True:
        parts = even_parts(order, ranks * rounds)
        level(order, parts)
        if all(order.tokens(part) <= limit for part in parts):
            return sorted(parts, key=order.cost, reverse=True)
        rounds += 1


def even_parts(order: PrefixOrder, count: int) -> list[list[int]]:
    """Return `count` parts of neighbors that cost about the same."""
    parts: list[list[int]] = [[] for _ in range(count)]
    everything = range(len(order.lengths))
    whole, done = order.cost(everything), 0.0
    for place, cost in zip(everything, order.costs(everything), strict=True):
        # The middle of a sequence that adds nothing to the last part is its end.
        parts[min(count - 1, int((done + cost / 2) / whole * count))].append(place)
        done += cost
    return parts


def cut(order: PrefixOrder, token_budget: int) -> list[list[int]]:
    """Return the cheapest division of the order into neighbors of at most `token_budget` distinct tokens."""
    lengths = order.lengths
    # For each number of sequences from the first: the least cost, and where the last part begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for last in range(len(lengths)):
        options = []
        tokens, cost = 0, 0.0
        for first in range(last, -1, -1):
            common = order.shared(first, first + 1) if first < last else 0
            tokens += lengths[first] - common
            cost += order.depth_cost(lengths[first]) - order.depth_cost(common)
            if tokens > token_budget and first < last:
                break
            options.append((best[first][0] + cost + OVERHEAD * token_budget, first))
        best.append(min(options))
    parts: list[list[int]] = []
    end = len(lengths)
    while end:
        start = best[end][1]
        parts.append(list(range(start, end)))
        end = start
    return parts[::-1]


def level(order: PrefixOrder, parts: list[list[int]]) -> None:
    """Move and exchange sequences between the costliest part and another, in place, until that makes it no cheaper."""
    costs = [order.cost(part) for part in parts]
    even = EVEN * sum(costs) / len(costs)
    while (worst := max(costs)) > even:
        high = costs.index(worst)
        for low in sorted(set(range(len(parts))) - {high}, key=lambda part: (costs[part], part)):
            changed = _exchanged(order, parts[high], parts[low])
            changed_costs = [order.cost(part) for part in changed]
            if max(changed_costs) < worst * (1 - _ROUNDING):
                parts[high], parts[low] = changed
                costs[high], costs[low] = changed_costs
                break
        else:
            return


def _exchanged(order: PrefixOrder, high: list[int], low: list[int]) -> tuple[list[int], list[int]]:
    """Return two parts after the move or exchange that should make the costlier one cheapest."""
    leaving = _changes(order, high, low)
    # What `low` gives in return; None gives nothing.
    returning = {None: (0.0, 0.0)} | _changes(order, low, high)
    costs = order.cost(high), order.cost(low)

    def worse(pair: tuple[int, int | None]) -> float:
        (saved_high, added_low), (saved_low, added_high) = leaving[pair[0]], returning[pair[1]]
        return max(costs[0] - saved_high + added_high, costs[1] - saved_low + added_low)

    given, taken = min(product(leaving, returning), key=worse)
    back = set() if taken is None else {taken}
    return sorted({*high, *back} - {given}), sorted({*low, given} - back)


def _changes(order: PrefixOrder, source: Sequence[int], target: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return, for each sequence of `source`, what its move to `target` saves there and adds here."""
    costs = order.cost(source), order.cost(target)
    return {
        place: (
            costs[0] - order.cost([p for p in source if p != place]),
            order.cost(sorted([*target, place])) - costs[1],
        )
        for place in source
    }
