"""A component behind Ray Serve's HTTP: each replica answers requests itself, and Serve spreads and scales them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from genevolve_ray.cluster.applications import delete, in_thread, wait_running
from genevolve_ray.cluster.config import ClusterConfig
from genevolve_ray.cluster.errors import StartError
from genevolve_ray.cluster.services import Service, deployment_of
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.remote.client import share_limits

SPARE_CALLS = 16
"""Calls of a replica beyond its own limits, so that its health is answered while it is full."""


class HttpComponent(Protocol):
    """Describe what answers the requests of a replica."""

    async def handle(self, request: Any) -> Any:
        """Return the response to a starlette request."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what a caller needs to know."""
        ...

    def check_health(self) -> None:
        """Raise when a new process should take its place."""
        ...


class HttpReplica:
    """Answer the HTTP requests of one replica by a component that it builds."""

    def __init__(self, build: Callable[[], HttpComponent], replicas: int) -> None:
        """Build the component, as one of `replicas` that share its limits."""
        share_limits(replicas)
        self._component = build()

    def check_health(self) -> None:
        """Answer Serve's health check."""
        self._component.check_health()

    async def describe(self) -> dict[str, Any]:
        """Return what the component tells its callers."""
        return self._component.describe()

    async def __call__(self, request: Any) -> Any:
        """Return the response to a request."""
        return await self._component.handle(request)


async def serve_on_ray(
    service: Service,
    build: Callable[[], HttpComponent],
    cluster: ClusterConfig,
    stop: asyncio.Event,
    on_listening: Callable[[dict[str, Any]], None],
    *,
    host: str,
    port: int,
) -> None:
    """Serve a component at an address until `stop`, and remove it again.

    `service.config` gives replicas, resources, and the most calls of a replica. Must be entered in the main thread.

    Raises:
        StartError: when the component or Serve's proxy cannot start, with the reason.
        PlacementError: when the cluster cannot be joined.
    """
    with ray_session(cluster, "genevolve-serve"):
        await in_thread(_deploy, service, build, host, port)
        try:
            if await _running(service, cluster.start_timeout, stop):
                await _answering(host, port)
                on_listening(await _described(service.name))
                await stop.wait()
        finally:
            await delete([service])


async def _running(service: Service, seconds: float, stop: asyncio.Event) -> bool:
    """Wait until a service runs and return True, or until `stop` and return False. Raises StartError."""
    starting, stopping = asyncio.ensure_future(wait_running([service])), asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([starting, stopping], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise StartError(f"the {service.role} did not start within {seconds:g} s (cluster.start_timeout)")
        if starting in done:
            starting.result()
        return starting in done
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)


async def _described(name: str) -> dict[str, Any]:
    from ray import serve

    found: dict[str, Any] = await serve.get_app_handle(name).describe.remote()
    return found


async def _answering(host: str, port: int) -> None:
    """Check that Serve's proxy listens at the address. Raises StartError."""
    where = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        _, writer = await asyncio.open_connection(where, port)
    except OSError as error:
        raise StartError(
            f"nothing answers at {host}:{port}: {error}; a cluster whose Serve already has an HTTP address keeps it"
        ) from error
    writer.close()


def _deploy(service: Service, build: Callable[[], HttpComponent], host: str, port: int) -> None:
    import logging

    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=host, port=port), logging_config=quiet)
    deployed = deployment_of(service, HttpReplica).bind(build, service.config.most_replicas)
    serve.run_many(
        [serve.RunTarget(deployed, name=service.name, route_prefix="/", logging_config=quiet)],
        wait_for_applications_running=False,
    )
