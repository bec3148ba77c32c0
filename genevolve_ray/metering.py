"""Who pays for a call: code that calls a service adds to the meter that is open around it, if one is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from genevolve_ray.records.usage import Usage


class Meter:
    """Adds usage up, by the name of the service that was used."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.by_service: dict[str, Usage] = {}

    def add(self, service: str, usage: Usage) -> None:
        """Add usage of a service."""
        self.by_service[service] = self.by_service.get(service, Usage()) + usage

    @property
    def total(self) -> Usage:
        """Return the sum over services."""
        return sum(self.by_service.values(), Usage())


_METER: ContextVar[Meter | None] = ContextVar("genevolve_ray_meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Open a meter around calls; tasks that start inside inherit it. Meters nest: the outer one hears everything too."""
    outer, meter = _METER.get(), Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
        if outer is not None:
            for service, usage in meter.by_service.items():
                outer.add(service, usage)


def record_usage(service: str, usage: Usage) -> None:
    """Add to the open meter; without one the usage is nobody's."""
    meter = _METER.get()
    if meter is not None:
        meter.add(service, usage)
