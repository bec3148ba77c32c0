"""What a service answers: the value, and what it took; a failure of the outside world travels the same way, with its cost."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from genevolve_ray.cluster.errors import portable_errors
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.usage import Usage, metered, record_usage


@dataclass(frozen=True)
class Reply:
    """A value or an error, and what was used by the name of the service that was called."""

    value: Any
    usage: dict[str, Usage]
    error: Exception | None = None


async def replied(work: Awaitable[Any]) -> Reply:
    """Await a plug-in's work in a replica and return what came of it; errors that nobody expects go on as they are."""
    value, error = None, None
    with metered() as meter:
        try:
            value = await portable_errors(work)
        except (InfraFailure, ToolArgumentError) as failure:
            error = failure
    return Reply(value, dict(meter.by_service), error)


def unwrap(reply: Any) -> Any:
    """Return the value of a reply at the caller, with its usage on the caller's meter. Raises the error that came instead."""
    if not isinstance(reply, Reply):
        return reply
    for service, usage in reply.usage.items():
        record_usage(service, usage)
    if reply.error is not None:
        raise reply.error
    return reply.value
