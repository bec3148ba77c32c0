"""A cap on what a job may cost: a row starts only if the job stays below it, whatever the rows in flight come to."""

from __future__ import annotations

from enum import StrEnum


class Admission(StrEnum):
    """Whether another row may start."""

    START = "start"
    WAIT = "wait"
    """Not now: what is in flight may cost too much, but it may also cost less."""
    STOP = "stop"
    """Never: what is left is less than a row may cost."""


class Budget:
    """Reserves for each row the largest cost that a row has had, or the configured one if that is larger.

    Until a row has cost anything, and without a configured cost, rows go one at a time: nothing is known to reserve. A row
    that costs more than any before it can only then pass the cap, so give `row_cost` where rows differ much.
    """

    def __init__(self, cap: float | None, *, row_cost: float = 0.0, spent: float = 0.0) -> None:
        """Begin with what earlier runs of the job have spent; no cap admits everything."""
        self.cap, self.spent, self.in_flight = cap, spent, 0
        self._row_cost = row_cost

    @property
    def reserved(self) -> float:
        """What is set aside for one row."""
        return self._row_cost

    def admit(self) -> Admission:
        """Say whether a row may start, and count it as in flight when it may."""
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

    def settle(self, cost: float) -> None:
        """Take in what a row that was in flight has cost."""
        self.in_flight -= 1
        self.spent += cost
        self._row_cost = max(self._row_cost, cost)
