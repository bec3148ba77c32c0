"""Serve applications of a run: deployment, waiting for their start, and removal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from genevolve_ray.cluster.errors import StartError
from genevolve_ray.cluster.services import Service, application

_P = ParamSpec("_P")
_T = TypeVar("_T")
_POLL_SECONDS = 0.2
_FAULT = re.compile(r"PluginFault: (.+)")


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return the result of a blocking call of Ray from a thread of its own; a canceled caller also waits for its end.

    A thread cannot be canceled. A thread that still calls Ray after the end of the session would start another Ray. Its
    processes end with the thread, and Ray then ends this process for its lost cluster.
    """
    work = asyncio.create_task(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    finally:
        if not work.done():
            await asyncio.wait([work])


async def deploy(services: Sequence[Service], images_uri: str) -> list[Any]:
    """Hand services to Serve, without HTTP, and return their handles; they start from now on."""
    return await in_thread(_deploy, services, images_uri)


async def wait_running(
    services: Sequence[Service], on_running: Callable[[Service], None] = lambda service: None
) -> None:
    """Wait until services run, and call `on_running` for each that does.

    Raises:
        StartError: when one cannot start, with the plug-in's own line where it has one, else with Serve's message.
    """
    waiting = {service.name: service for service in services}
    while waiting:
        for name, (status, message) in (await states(list(waiting.values()))).items():
            if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise StartError(f"the {waiting[name].role} service cannot start: {reason(message)}")
            if status == "RUNNING":
                on_running(waiting.pop(name))
        if waiting:
            await asyncio.sleep(_POLL_SECONDS)


async def states(services: Sequence[Service]) -> dict[str, tuple[str, str]]:
    """Return the status and message of each service's application, by its name, where Serve knows it."""
    from ray import serve

    there = (await in_thread(serve.status)).applications
    found = {}
    for service in services:
        if (overview := there.get(service.name)) is not None:
            messages = [overview.message, *(d.message for d in overview.deployments.values())]
            found[service.name] = (overview.status.value, " ".join(m for m in messages if m))
    return found


async def delete(services: Sequence[Service]) -> None:
    """Remove applications once their current calls have ended; a missing one is not an error."""
    from ray import serve

    there = (await in_thread(serve.status)).applications
    for name in {service.name for service in services} & set(there):
        await in_thread(serve.delete, name)


async def sweep(services: Sequence[Service]) -> None:
    """Remove applications `NAME-N` that an earlier driver of the same run swapped in and could not remove itself."""
    from ray import serve

    there = (await in_thread(serve.status)).applications
    for service in services:
        for name in there:
            if re.fullmatch(rf"{re.escape(service.name)}-\d+", name):
                await in_thread(serve.delete, name)


def reason(message: str) -> str:
    """Return the reason of a failed start: the line of a PluginFault in Serve's message, else the message."""
    lines = _FAULT.findall(message)
    return lines[-1].strip() if lines else message


def _deploy(services: Sequence[Service], images_uri: str) -> list[Any]:
    import logging

    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    targets = [
        serve.RunTarget(
            application(service, images_uri),
            name=service.name,
            route_prefix=None,
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        for service in services
    ]
    return list(serve.run_many(targets, wait_for_applications_running=False))
