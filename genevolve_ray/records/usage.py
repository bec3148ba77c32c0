"""What calls of services took, and who pays: code that calls a service adds to the meter that is open around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from genevolve_ray.records.base import Record

POLICY_SERVICE = "policy"
"""Name under which the policy's engine, or the endpoint in its place, stands on a meter."""


class Usage(Record):
    """An amount of use; amounts add up. `money` is in the currency of the configured prices."""

    calls: int = 0
    """Requests sent, every try counted."""
    failed_calls: int = 0
    """Tries that brought nothing."""
    cached: int = 0
    """Answers that a cache gave without a call."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    """Seconds that calls were on the way, added up over calls side by side."""
    money: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})


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
