"""A budget that rows reserve from before they start, so that work in flight does not exceed it."""

from __future__ import annotations

from enum import StrEnum


class Admission(StrEnum):
    """Decide whether another row may start."""

    START = "start"
    WAIT = "wait"
    """Not now: the rows in flight may cost too much, but they may also cost less."""
    STOP = "stop"
    """Never: the rest of the budget is less than a row may cost."""


class Budget:
    """Reserve for each row the largest cost of a row so far, or the configured cost if that is larger.

    Until a row has had a cost, and without a configured cost, rows run one at a time, since there is no amount to
    reserve. Only a row that costs more than all earlier ones can exceed the cap. Set `row_cost` where costs differ
    much.
    """

    def __init__(self, cap: float | None, *, row_cost: float = 0.0, spent: float = 0.0) -> None:
        """Start from the cost of earlier runs of the job; no cap admits everything."""
        self.cap, self.spent, self.in_flight = cap, spent, 0
        self._row_cost = row_cost

    @property
    def reserved(self) -> float:
        """The amount that is reserved for one row."""
        return self._row_cost

    def admit(self) -> Admission:
        """Return whether a row may start, and count it as in flight if it may."""
        if self.cap is None:
            admission = Admission.START
        elif self._row_cost == 0:
            alone = self.in_flight == 0
            admission = (Admission.START if self.spent < self.cap else Admission.STOP) if alone else Admission.WAIT
        elif self.spent + (self.in_flight + 1) * self._row_cost <= self.cap:
            admission = Admission.START
        else:
            admission = Admission.WAIT if self.in_flight else Admission.STOP
        self.in_flight += admission is Admission.START
        return admission

    def withdraw(self) -> None:
        """Give the place of a row back that did not start."""
        self.in_flight -= 1

    def settle(self, cost: float) -> None:
        """Add the cost of a row that was in flight."""
        self.in_flight -= 1
        self.spent += cost
        self._row_cost = max(self._row_cost, cost)
