"""Load balancing over equal servers: the next call goes to the least busy healthy server, ties in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class Server:
    """Track one server from the client's side; times in seconds of one monotonic clock."""

    url: str
    running: int = 0
    """Calls in flight to it."""
    failed: bool = False
    """Its last answer was unusable, or none arrived."""
    shunned_until: float = 0.0
    """Until then it is skipped while another one is available."""
    asked_to_wait_until: float = 0.0
    """Until then it accepts no calls."""
    heard: float = float("-inf")
    """Time of its last answer."""

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a call in flight."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def answered(self, now: float) -> None:
        """Record a good answer, or a refusal: only a working server can refuse."""
        self.failed, self.heard, self.shunned_until = False, now, 0.0

    def let_down(self, now: float, cooldown: float) -> None:
        """Record a try without a result."""
        self.failed, self.shunned_until = True, max(self.shunned_until, now + cooldown)

    def asked_to_wait(self, now: float, seconds: float) -> None:
        """Record that the server requested a wait."""
        self.asked_to_wait_until = max(self.asked_to_wait_until, now + seconds)


class Servers:
    """Balance calls over the equal servers of one service.

    A server that hangs receives calls only until it has as many as the others. After its first failure it is skipped
    for a while and then gets one call at a time until it answers again, so that only few calls wait for a long timeout.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        """Start with all of them healthy."""
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
        """Return the server of that address; an unknown one gets a separate count."""
        return next((s for s in self.all if s.url == url), None) or Server(url)

    @staticmethod
    def _ready(server: Server, now: float) -> bool:
        on_trial = server.failed and server.running > 0
        return now >= max(server.shunned_until, server.asked_to_wait_until) and not on_trial
