"""Shares of the owners of leases: an owner may hold more as it answers, and less when it does not."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_PAUSE = 16
"""Longest pause of an owner that does not answer, in lives of a lease."""


@dataclass
class _Share:
    allowed: int
    strikes: int = 0
    struck: float = float("-inf")
    until: float = float("-inf")


class Shares:
    """Hold the number of leases that each owner may have at once.

    It grows by one with each answer, so that it can double with each round, and is halved by each lease that the owner
    did not answer in time. An owner that fails again and again, without an answer between, pauses for longer each time.
    """

    def __init__(self, *, first: int, most: int, pause: float) -> None:
        """Begin every owner with `first` leases, up to `most`; the first pause lasts `pause` seconds."""
        self._first, self._most, self._pause = first, most, pause
        self._shares: dict[str, _Share] = {}

    def allowed(self, owner: str, now: float) -> int:
        """Return the number of leases that an owner may hold now; 0 during a pause."""
        share = self._of(owner)
        return 0 if now < share.until else share.allowed

    def resumes(self, owner: str) -> float:
        """Return the time of the clock at which an owner's pause ends."""
        return self._of(owner).until

    def answered(self, owner: str) -> None:
        """Record an answer."""
        share = self._of(owner)
        share.allowed, share.strikes = min(self._most, share.allowed + 1), 0

    def failed(self, owner: str, granted: float, now: float) -> None:
        """Record a lease, granted at a time of the clock, that was not answered in time.

        Leases that were lost together, as by the death of a worker, are one strike.
        """
        share = self._of(owner)
        share.allowed = max(1, share.allowed // 2)
        if granted < share.struck:
            return
        share.strikes, share.struck = share.strikes + 1, now
        if share.strikes > 1:
            share.until = now + self._pause * min(_LONGEST_PAUSE, 2 ** (share.strikes - 2))

    def _of(self, owner: str) -> _Share:
        return self._shares.setdefault(owner, _Share(min(self._first, self._most)))
