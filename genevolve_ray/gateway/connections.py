"""Connections of the gateway: a budget for those without a token, another for each token, and deadlines for both."""

from __future__ import annotations

import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import psutil

from genevolve_ray.gateway.config import LimitsConfig
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason

BACKLOG = 128
"""Connections that the kernel holds until the gateway accepts them."""
_RESERVE = 256
"""File descriptors that are left to the other parts of the process."""
_FEWEST = 32


@dataclass(frozen=True)
class ConnectionBudget:
    """Hold the number of connections with a token, and of those without one."""

    holders: int
    strangers: int


def connection_budget(limits: LimitsConfig) -> ConnectionBudget:
    """Return the connections that the process has file descriptors for; raise its soft limit where that is allowed.

    Raises:
        ValueError: when the hard limit leaves no room for a gateway.
    """
    used = psutil.Process().num_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = used + _RESERVE + BACKLOG + limits.strangers + limits.connections
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == unlimited or soft >= wanted:
        return ConnectionBudget(limits.connections, limits.strangers)
    room = soft - used - _RESERVE - BACKLOG
    if room < _FEWEST:
        raise ValueError(
            f"the limit of {soft} open files leaves no room for connections: raise it (ulimit -n {wanted})"
        )
    strangers = min(limits.strangers, room // 4)
    return ConnectionBudget(min(limits.connections, room - strangers), strangers)


class Held(Protocol):
    """Describe a connection to its registry."""

    owner: str | None
    """The token of its last request; None before the first valid one."""

    @property
    def busy(self) -> bool:
        """True while a request is being answered."""
        ...

    def drop(self) -> None:
        """Close the connection at once."""
        ...


class Connections:
    """Keep the open connections within their budgets; the registry belongs to one event loop.

    A connection without a token that exceeds the budget replaces the oldest of its kind, so that an honest caller, who
    sends a token at once, is served while others send nothing.
    """

    def __init__(self, budget: ConnectionBudget, per_owner: int) -> None:
        """Start without connections; one token may hold `per_owner` of them."""
        self.budget, self._per_owner = budget, per_owner
        self._strangers: OrderedDict[Held, None] = OrderedDict()
        self._owned: dict[str, OrderedDict[Held, None]] = {}
        self._total = 0
        self.dropped = 0

    def opened(self, connection: Held) -> None:
        """Register a connection that has sent no token yet."""
        self._strangers[connection] = None
        while len(self._strangers) > self.budget.strangers:
            self._drop(next(iter(self._strangers)))

    def closed(self, connection: Held) -> None:
        """Remove a connection that has ended."""
        self._strangers.pop(connection, None)
        self._release(connection)

    def admit(self, connection: Held, owner: str) -> None:
        """Count a connection against the token of its request.

        Raises:
            GatewayRefusal: when the token has too many requests in progress, or the gateway has.
        """
        if connection.owner == owner:
            self._owned[owner].move_to_end(connection)
            return
        self._release(connection)
        mine = self._owned.get(owner, OrderedDict())
        if len(mine) >= self._per_owner and not self._drop_idle(mine):
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, f"{self._per_owner} requests are in progress")
        if self._total >= self.budget.holders and not self._drop_idle(max(self._owned.values(), key=len)):
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, "all connections are in use")
        self._strangers.pop(connection, None)
        self._owned.setdefault(owner, OrderedDict())[connection] = None
        self._total += 1
        connection.owner = owner

    def counts(self) -> dict[str, int]:
        """Return the open connections of both kinds, their budgets, and how many were dropped."""
        return {
            "strangers": len(self._strangers),
            "holders": self._total,
            "most_strangers": self.budget.strangers,
            "most_holders": self.budget.holders,
            "dropped": self.dropped,
        }

    def _release(self, connection: Held) -> None:
        owner, connection.owner = connection.owner, None
        if owner is None:
            return
        held = self._owned[owner]
        del held[connection]
        self._total -= 1
        if not held:
            del self._owned[owner]

    def _drop_idle(self, held: OrderedDict[Held, None]) -> bool:
        """Close the connection that has been idle longest; return whether there is one."""
        oldest = next((connection for connection in held if not connection.busy), None)
        if oldest is None:
            return False
        self._drop(oldest)
        return True

    def _drop(self, connection: Held) -> None:
        self.dropped += 1
        self.closed(connection)
        connection.drop()
