"""Replies of services: the value and the usage; a failure of an external service is sent in the same form."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from genevolve_ray.cluster.errors import portable_errors
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.usage import Usage, metered, record_usage


@dataclass(frozen=True)
class Reply:
    """Hold a value or an error, and the usage by the name of the called service."""

    value: Any
    usage: dict[str, Usage]
    error: Exception | None = None


async def replied(work: Awaitable[Any]) -> Reply:
    """Await a plug-in's work in a replica and return the result; unexpected errors are raised unchanged."""
    value, error = None, None
    with metered() as meter:
        try:
            value = await portable_errors(work)
        except (InfraFailure, ToolArgumentError) as failure:
            error = failure
    return Reply(value, dict(meter.by_service), error)


def unwrap(reply: Any) -> Any:
    """Return the value of a reply at the caller, with its usage on the caller's meter.

    Raises the error of the reply.
    """
    if not isinstance(reply, Reply):
        return reply
    for service, usage in reply.usage.items():
        record_usage(service, usage)
    if reply.error is not None:
        raise reply.error
    return reply.value
