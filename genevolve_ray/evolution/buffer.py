"""Judged groups that wait for a step, by lease, and how far their tokens lag behind the version that will learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from genevolve_ray.evolution.flow import oldest_version
from genevolve_ray.evolution.outage import has_failed
from genevolve_ray.records.trajectory import Group


class GroupBuffer:
    """Keep the groups that no step has taken yet; iteration yields their leases."""

    def __init__(self, version: int) -> None:
        """Begin empty; `version` is the one that will learn from the next batch."""
        self.next = version
        self._groups: dict[int, Group] = {}
        self._oldest: dict[int, int | None] = {}
        """Oldest version behind the tokens of each group, so that these are searched once."""

    def __iter__(self) -> Iterator[int]:
        """Yield the leases in the order in which their groups came."""
        return iter(self._groups)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._groups)

    def __getitem__(self, number: int) -> Group:
        """Return the group of a lease. Raises KeyError."""
        return self._groups[number]

    def put(self, number: int, group: Group) -> None:
        """Keep the group of a lease."""
        self._groups[number], self._oldest[number] = group, oldest_version(*group.trajectories)

    def pop(self, number: int) -> Group:
        """Remove and return the group of a lease. Raises KeyError."""
        del self._oldest[number]
        return self._groups.pop(number)

    def of(self, numbers: Iterable[int]) -> dict[int, Group]:
        """Return the groups of some leases."""
        return {number: self._groups[number] for number in numbers}

    def lag(self, oldest: int | None) -> int:
        """Return the number of versions that a token lags behind the policy that learns from the next batch."""
        return 0 if oldest is None else self.next - oldest

    def age(self, number: int) -> int:
        """Return the lag of the oldest token of a group."""
        return self.lag(self._oldest[number])

    def stale(self, limit: int) -> list[int]:
        """Return the leases whose groups lag by more than `limit` versions."""
        return [number for number in self._groups if self.age(number) > limit]

    def failed(self) -> list[int]:
        """Return the leases whose groups lack the score of some sample."""
        return [number for number, group in self._groups.items() if has_failed(group)]

    def in_turn(self, aside: Set[int], *, all_of_them: bool) -> list[int]:
        """Return leases in the order in which a step takes them: one group of a request, and the oldest first.

        The oldest are the next to become stale. Groups that are set aside come last, and only where `all_of_them` is asked
        for.

        Args:
            aside: leases that dynamic sampling would rather replace.
            all_of_them: whether nothing else can come, so that these are taken as well.
        """
        ready = [number for number in self._groups if all_of_them or number not in aside]
        chosen: dict[str, int] = {}
        for number in sorted(ready, key=lambda n: (n in aside, -self.age(n), n)):
            chosen.setdefault(self._groups[number].request_id, number)
        return list(chosen.values())
