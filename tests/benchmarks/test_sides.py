"""Sides of a comparison take turns in processes of their own. This module imports little: each process imports it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measure import Options
from benchmarks.sides import NoFurtherTurn, Side, SideFailed, Turns, started, take_rounds


def serve_rewards(options: Options, way: str, turns: Turns) -> None:
    while True:
        turns.wait()
        if way == "fails":
            raise SystemExit(3)
        turns.done(0.0, [])


def test_sides_take_turns_and_end() -> None:
    said: list[str] = []
    options = Options(Path("policy"))
    sides = [Side(name, serve_rewards, "plays", options) for name in ("a", "b")]
    with started(sides):
        steps = take_rounds(sides, 2, said.append)
    assert {name: len(taken) for name, taken in steps.items()} == {"a": 2, "b": 2}
    assert [line.split(": ")[1][0] for line in said] == ["a", "b", "a"]


def test_a_side_that_ends_is_named() -> None:
    side = Side("theirs", serve_rewards, "fails", Options(Path("policy")))
    with started([side]), pytest.raises(SideFailed, match="theirs ended"):
        side.step()


class Connection:
    """A connection whose other end is closed."""

    def send(self, message: object) -> None:
        return None

    def recv(self) -> object:
        raise EOFError


def test_a_side_learns_that_no_turn_follows() -> None:
    turns = Turns(Connection())  # type: ignore[arg-type]
    with pytest.raises(NoFurtherTurn):
        turns.wait()
