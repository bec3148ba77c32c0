"""The parts of a run: in this process or on Ray, alone or with workers outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve_ray.config import RunConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inprocess import Ports, in_process, start_experience, start_learner
from genevolve_ray.evolution.plugins import PluginFault, RendererSpec, build_here
from genevolve_ray.evolution.ports import RenderPort, RolloutPort
from genevolve_ray.evolution.services import RenderService
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import weight_folders
from genevolve_ray.viewer.progress import Progress

if TYPE_CHECKING:
    from genevolve_ray.gateway.launch import GatewayParts


@asynccontextmanager
async def open_ports(
    config: RunConfig, model: Path, store: RunStore, screen: Progress, *, local: bool
) -> AsyncIterator[Ports]:
    """Start rollouts and learner, in this process or on Ray, and the gateway where `gateway.port` is set.

    Raises:
        UserFault: when the gateway cannot listen, or `gateway.only` is set on Ray.
    """
    screen.note("starting engine and learner" if local else "starting Ray, services, engine and learner")
    if config.gateway.port is not None and config.gateway.only and not local:
        raise UserFault("gateway.only=true needs --in-process: on Ray, the engines inside always run")
    opened = _in_process(config, model, store, screen) if local else _on_ray(config, model, store, screen)
    async with opened as ports:
        yield ports


@asynccontextmanager
async def _in_process(config: RunConfig, model: Path, store: RunStore, screen: Progress) -> AsyncIterator[Ports]:
    if config.gateway.port is None:
        async with in_process(config, model, store.images) as ports:
            yield ports
        return
    from genevolve_ray.gateway.launch import local_parts
    from genevolve_ray.gateway.rollouts import GatewayRenderers

    async def meet(generation: int, spec: RendererSpec) -> RenderPort:
        if spec.isolated:
            raise PluginFault("renderer.runtime_env needs separate processes, but this run is one process")
        return RenderService(await asyncio.to_thread(build_here, spec), store.images)

    async with aclosing(local_parts(config, store.images)) as parts:
        if config.gateway.only:
            with weight_folders() as folders:
                learner = start_learner(config, model, folders, store.images)
                async with _gateway(config, model, store, screen, parts, None) as rollouts:
                    renderers = GatewayRenderers(None, parts.scoring, meet)
                    yield Ports(rollouts, learner, start_experience(config, model), renderers, parts.scoring.panel)
            return
        async with (
            in_process(config, model, store.images) as ports,
            _gateway(config, model, store, screen, parts, ports.rollouts) as rollouts,
        ):
            renderers = GatewayRenderers(ports.renderers, parts.scoring, meet)
            yield Ports(rollouts, ports.learner, ports.experience, renderers, parts.scoring.panel)


@asynccontextmanager
async def _on_ray(config: RunConfig, model: Path, store: RunStore, screen: Progress) -> AsyncIterator[Ports]:
    from genevolve_ray.cluster.launch import on_ray

    async with on_ray(
        config, run_name=config.name, images_uri=store.images.uri, model_dir=model, monitor=screen
    ) as ports:
        from genevolve_ray.cluster.proxies import connect, connect_judges
        from genevolve_ray.evolution.rollout import Scoring

        tools, renderer, judge = await connect(*(ports.callers[role] for role in ("tools", "renderer", "judge")))
        scoring = Scoring(renderer, judge, config.reward, others=await connect_judges(ports.callers))
        if config.gateway.port is None:
            yield Ports(ports.rollouts, ports.learner, ports.experience, ports.renderers, scoring.panel)
            return
        from genevolve_ray.gateway.launch import GatewayParts
        from genevolve_ray.gateway.rollouts import GatewayRenderers

        async def meet(generation: int, spec: RendererSpec) -> RenderPort:
            return await ports.renderers.port(generation)

        parts = GatewayParts(tools, scoring, store.images)
        async with _gateway(config, model, store, screen, parts, ports.rollouts) as rollouts:
            renderers = GatewayRenderers(ports.renderers, scoring, meet)
            yield Ports(rollouts, ports.learner, ports.experience, renderers, scoring.panel)


@asynccontextmanager
async def _gateway(
    config: RunConfig,
    model: Path,
    store: RunStore,
    screen: Progress,
    parts: GatewayParts,
    inside: RolloutPort | None,
) -> AsyncIterator[RolloutPort]:
    """Open the gateway of a run; evidence against workers is kept in the run folder."""
    from genevolve_ray.gateway.launch import open_gateway, opening_notes

    for note in opening_notes(config.gateway, config.experience):
        screen.note(note)
    folder = Path(store.root) / "gateway" if store.is_local else Path(f"{config.name}-gateway")
    async with open_gateway(
        config.gateway,
        config,
        model,
        parts,
        folder,
        inside=inside,
        on_listening=lambda server: screen.note(f"gateway listening on {server.url}"),
    ) as rollouts:
        yield rollouts
