"""Renderer replacement in a running evolution: each renderer is a Serve application with a number that workers use."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from dataclasses import replace

from genevolve_ray.cluster.applications import delete, deploy, in_thread, reason, states, wait_running
from genevolve_ray.cluster.errors import StartError
from genevolve_ray.cluster.placement import check_environment, check_fits, replica_demands
from genevolve_ray.cluster.proxies import ServeRenderer
from genevolve_ray.cluster.rollouts import RayRollouts
from genevolve_ray.cluster.services import Service
from genevolve_ray.cluster.workers import ServiceHandle
from genevolve_ray.evolution.patience import time_limit
from genevolve_ray.evolution.plugins import RendererSpec


class RayRenderers:
    """Manage the renderers of a run on Ray; a new one has the size and limits of the first (`cluster.renderer`)."""

    def __init__(
        self, live: MutableMapping[int, ServiceHandle], rollouts: RayRollouts, images_uri: str, start_timeout: float
    ) -> None:
        """Manage the renderers in `live`, which new workers receive.

        Args:
            live: the renderers by generation; the first one is running.
            rollouts: the workers that use them.
            images_uri: the run's image store.
            start_timeout: seconds that a renderer may take to start.
        """
        self._live, self._rollouts, self._images_uri, self._limit = live, rollouts, images_uri, start_timeout
        self._first = next(iter(live.values())).service

    async def add_renderer(self, generation: int, spec: RendererSpec) -> str:
        """Start an additional renderer, and connect every worker to it.

        Raises:
            PlacementError: when there is no room for both.
            StartError: when it does not start; no part of it remains.
        """
        config = self._first.config
        if config.timeout == time_limit(self._first.spec):  # It follows the plug-in.
            config = config.model_copy(update={"timeout": time_limit(spec)})
        service = replace(self._first, name=f"{self._first.name}-{generation}", spec=spec, config=config)
        await in_thread(_check_room, service)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(delete, [service])
            undo.callback(self._live.pop, generation, None)
            service_handle = await self._start(service)
            identity: str = await service_handle.caller()("describe")
            self._live[generation] = service_handle
            await self._rollouts.tell(lambda worker: worker.add_renderer.remote(generation, service_handle))
            undo.pop_all()
        return identity

    async def remove_renderer(self, generation: int) -> None:
        """Disconnect every worker from a renderer and remove its application."""
        service_handle = self._live.pop(generation)
        await self._rollouts.tell(lambda worker: worker.drop_renderer.remote(generation))
        await delete([service_handle.service])

    async def port(self, generation: int) -> ServeRenderer:
        """Return a proxy of a running renderer, for callers other than the workers."""
        caller = self._live[generation].caller()
        return ServeRenderer(await caller("describe"), caller)

    async def _start(self, service: Service) -> ServiceHandle:
        [handle] = await deploy([service], self._images_uri)
        try:
            async with asyncio.timeout(self._limit):
                await wait_running([service])
        except TimeoutError as error:
            status, message = (await states([service])).get(service.name, ("", "unknown to Serve"))
            raise StartError(
                f"the renderer did not start within {self._limit:g} s (cluster.start_timeout): "
                f"{status} {reason(message)}"
            ) from error
        return ServiceHandle(service, handle)


def _check_room(service: Service) -> None:
    """Check that the replicas fit next to all running parts.

    Raises PlacementError naming required and free resources.
    """
    import ray

    check_environment(service.role, service.spec.environment(), local=False)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check_fits(replica_demands(f"new {service.role}", service.config), nodes, ray.available_resources())
