"""Which of several equal servers gets the next call: the least busy one that has not just failed, ties in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class Server:
    """One server as its callers see it; times in seconds of one monotonic clock."""

    url: str
    running: int = 0
    """Calls on their way to it."""
    failed: bool = False
    """Its last answer was no use, or none came."""
    shunned_until: float = 0.0
    """Until then it is passed over while another one is there."""
    asked_to_wait_until: float = 0.0
    """Until then it wants no calls at all."""
    heard: float = float("-inf")
    """When it last answered."""

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a call that is on its way."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def answered(self, now: float) -> None:
        """Note a good answer, or a refusal: it takes a server that works to refuse."""
        self.failed, self.heard, self.shunned_until = False, now, 0.0

    def let_down(self, now: float, cooldown: float) -> None:
        """Note a try that brought nothing."""
        self.failed, self.shunned_until = True, max(self.shunned_until, now + cooldown)

    def asked_to_wait(self, now: float, seconds: float) -> None:
        """Note that the server itself asked for patience."""
        self.asked_to_wait_until = max(self.asked_to_wait_until, now + seconds)


class Servers:
    """Equal servers behind one service.

    A server that hangs gathers calls only until it has as many as the others; after its first failure it is passed over
    for a while and then gets one call at a time until it answers again, so that a long timeout is not spent by many.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        """Start with all of them in good standing."""
        self.all = [Server(url) for url in urls]
        self._next = 0

    def choose(self, now: float) -> Server:
        """Return the server for the next call; when all have failed, the one that may be tried soonest."""
        order = [*self.all[self._next :], *self.all[: self._next]]
        ready = [s for s in order if self._ready(s, now)]
        chosen = min(ready or order, key=lambda s: s.running if ready else max(s.shunned_until, s.asked_to_wait_until))
        self._next = (self.all.index(chosen) + 1) % len(self.all)
        return chosen

    def named(self, url: str) -> Server:
        """Return the server of that address; a foreign one counts for itself alone."""
        return next((s for s in self.all if s.url == url), None) or Server(url)

    @staticmethod
    def _ready(server: Server, now: float) -> bool:
        on_trial = server.failed and server.running > 0
        return now >= max(server.shunned_until, server.asked_to_wait_until) and not on_trial
