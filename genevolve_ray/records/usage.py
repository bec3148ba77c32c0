"""Usage of services and its price: code that calls a service adds to the meter that is open around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from genevolve_ray.records.base import Record

POLICY_SERVICE = "policy"
"""Name of the policy's engine, or of the endpoint in its place, on a meter."""
CORPUS_SERVICE = "corpus"
"""Name of a frozen corpus on a meter: `cached` are recorded answers, `failed_calls` questions without one, and the other
`calls` answers to similar questions."""


class Usage(Record):
    """Hold an amount of use; amounts can be added. `money` is in the currency of the configured prices."""

    calls: int = 0
    """Requests sent, counting every try."""
    failed_calls: int = 0
    """Tries without a result."""
    cached: int = 0
    """Answers that a cache provided without a call."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    """Seconds that calls were in flight; concurrent calls add up."""
    money: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})


class Meter:
    """Add usage up, by the name of the service that was used."""

    def __init__(self) -> None:
        """Start with no usage."""
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
def metered(under: str = "") -> Iterator[Meter]:
    """Open a meter around calls; tasks that start inside inherit it. An outer meter also counts all inner usage.

    `under` names one of several users of a service: the outer meter counts its use as `SERVICE.UNDER`.
    """
    outer, meter = _METER.get(), Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
        if outer is not None:
            for service, usage in meter.by_service.items():
                outer.add(f"{service}.{under}" if under else service, usage)


def record_usage(service: str, usage: Usage) -> None:
    """Add to the open meter; without one the usage is not recorded."""
    meter = _METER.get()
    if meter is not None:
        meter.add(service, usage)
