"""The prefix tree of a batch: which tokens its sequences share, and one row that holds each distinct token once.

Sequences are sorted by their tokens, so that those with long common prefixes are neighbors. The sorted order is a
depth-first order of the tree. In a row, what a sequence adds to the ones before it is one unbroken run, and the tokens
below any token follow it directly. Token i therefore sees token j exactly when j <= i < end(j), where end(j) is the end
of the tokens below j. Importing this module is cheap (no torch).

Shape legend: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TreeParts:
    """Describe the products of attention by which some queries of a row meet all that they see.

    Attributes:
        squares: (query, key, count): `count` queries from `query` on are the tokens from `key` on, and see each other
            causally. Every query is in one of them.
        blocks: (first, last, start, end): queries [first, last) see all of the tokens [start, end).
    """

    squares: tuple[tuple[int, int, int], ...]
    blocks: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class TreeLayout:
    """Describe which tokens of a row see which.

    Attributes:
        length: tokens of the row.
        runs: tokens [start, end) that one sequence added; each sees itself and those before it in its run.
        branches: tokens [start, end) of a run, and the tokens [first, last) of later runs that continue after them and
            see all of them.
    """

    length: int
    runs: tuple[tuple[int, int], ...]
    branches: tuple[tuple[int, int, int, int], ...]

    def ends(self) -> list[int]:
        """Return, for each token [T], the end of the tokens that see it."""
        ends = [0] * self.length
        for start, end in self.runs:
            ends[start:end] = [end] * (end - start)
        for start, end, _, last in self.branches:
            ends[start:end] = [last] * (end - start)
        return ends

    def parts(self, ranges: Sequence[tuple[int, int]] | None = None) -> TreeParts:
        """Return the products for the queries of some ranges [start, end) of the row, one after another; None: all."""
        squares: list[tuple[int, int, int]] = []
        blocks: list[tuple[int, int, int, int]] = []
        ahead: list[tuple[int, int, int, int]] = []
        shift = 0
        for low, high in [(0, self.length)] if ranges is None else ranges:
            move = shift - low
            for start, end in self.runs:
                first, last = max(start, low), min(end, high)
                if first < last:
                    squares.append((first + move, first, last - first))
                if start < first < last:
                    ahead.append((first + move, last + move, start, first))
            for start, end, first, last in self.branches:
                if max(first, low) < min(last, high):
                    blocks.append((max(first, low) + move, min(last, high) + move, start, end))
            shift += high - low
        return TreeParts(tuple(squares), (*ahead, *blocks))


class PrefixOrder:
    """Hold sequences in the depth-first order of their prefix tree, and what each shares with the others.

    Places count in this order. Every set of sequences is a sorted list of places.

    Attributes:
        indices: the sequence at each place, as its index in the list that was sorted.
        lengths: its number of tokens.
    """

    def __init__(self, keys: Sequence[Sequence[int]], attention_depth: float = float("inf")) -> None:
        """Sort sequences.

        Args:
            keys: for each sequence one number per token; equal numbers after equal prefixes are the same token.
            attention_depth: number of tokens before a token at which its attention costs as much as the rest of the
                model on it.
        """
        # The longer of two sequences comes first, so that its prefix adds nothing.
        self.indices = sorted(range(len(keys)), key=lambda i: (list(keys[i]), -i), reverse=True)
        self.lengths = [len(keys[i]) for i in self.indices]
        self._attention_depth = attention_depth
        sorted_keys = [keys[i] for i in self.indices]
        self._before = [0, *map(_common, sorted_keys[:-1], sorted_keys[1:])] if keys else []

    def shared(self, first: int, second: int) -> int:
        """Return the number of tokens that the sequences of two places share, `first` being the smaller place."""
        return min(self._before[first + 1 : second + 1])

    def pairs(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Return (tokens, tokens that it shares with the one before it) of each sequence of a set."""
        shared = [0, *map(self.shared, places[:-1], places[1:])]
        return [(self.lengths[place], common) for place, common in zip(places, shared, strict=False)]

    def tokens(self, places: Sequence[int]) -> int:
        """Return the number of distinct tokens of a set."""
        return sum(length - common for length, common in self.pairs(places))

    def cost(self, places: Sequence[int]) -> float:
        """Return the cost of a set, in that of a token without attention."""
        return sum(self.costs(places))

    def costs(self, places: Sequence[int]) -> list[float]:
        """Return what each sequence of a set adds to its cost."""
        return [self.depth_cost(length) - self.depth_cost(common) for length, common in self.pairs(places)]

    def depth_cost(self, tokens: int) -> float:
        """Return the cost of the first `tokens` tokens of a sequence."""
        return tokens + tokens * tokens / (2 * self._attention_depth)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def lay_out(pairs: Iterable[tuple[int, int]]) -> tuple[TreeLayout, list[list[int]]]:
    """Return the layout of a row, and for each sequence the tokens of the row that are its own.

    Args:
        pairs: for each sequence in depth-first order its length, and the number of tokens that it shares with the
            sequence before it.
    """
    runs: list[tuple[int, int]] = []
    branches: list[tuple[int, int, int, int]] = []
    pieces: list[tuple[int, int, int]] = []
    """The path to the last token: tokens [start, end) of a run, and the end of that run."""
    path: list[int] = []
    rows: list[list[int]] = []
    length = 0

    def leave(depth: int) -> None:
        """Shorten the path to `depth` tokens; no later token sees what leaves it."""
        while len(path) > depth:
            start, end, run_end = pieces.pop()
            kept = max(0, depth - (len(path) - (end - start)))
            if length > run_end:
                branches.append((start + kept, end, run_end, length))
            if kept:
                pieces.append((start, start + kept, run_end))
            del path[max(depth, len(path) - (end - start)) :]

    for tokens, common in pairs:
        leave(common)
        if tokens > common:
            end = length + tokens - common
            runs.append((length, end))
            pieces.append((length, end, end))
            path += range(length, end)
            length = end
        rows.append(list(path))
    leave(0)
    return TreeLayout(length, tuple(runs), tuple(branches)), rows
