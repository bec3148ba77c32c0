"""The rollout port over workers outside, alone or together with an engine inside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.ports import RenderPort, RolloutPort, RolloutTask
from genevolve_ray.evolution.rollout import Scoring
from genevolve_ray.evolution.swaps import RendererHost
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.gateway.server import GatewayServer
from genevolve_ray.records.trajectory import Trajectory, timed


class GatewayRollouts:
    """Play samples outside, then render and judge them inside."""

    def __init__(self, server: GatewayServer, scoring: Scoring) -> None:
        """Combine server and scoring."""
        self._server, self._scoring = server, scoring

    async def rollout(self, task: RolloutTask, patience: float | None = None) -> Trajectory:
        """Play one sample on any worker. Raises TimeoutError when none took it within `patience` seconds."""
        spent: dict[str, float] = {}
        with timed(spent, "outside"):
            trajectory = await self._server.ask(self._server.gateway.answer(task, patience))
        trajectory.timings |= spent
        return await self._scoring.score(task, trajectory)

    async def rest(self) -> None:
        """Do nothing: the engines outside share no GPU with the learner."""

    async def update(self, weights: PublishedWeights) -> float:
        """Offer weights to the workers without waiting; workers verify them by the probe before they sample."""
        folder = await weights.folder()
        await self._server.ask(self._server.gateway.publish(folder, weights.version, weights.probe))
        return 0.0

    def workers(self) -> int:
        """Return the number of workers that were seen recently and are not in quarantine."""
        gateway = self._server.gateway
        return sum(name not in gateway.quarantine for name in gateway.meters.alive())


class SharedRollouts:
    """Play training samples alternately inside and outside in a fixed ratio; evaluations stay inside.

    A sample is played inside while no worker is present, and when none takes it in time.
    """

    def __init__(self, inside: RolloutPort, outside: GatewayRollouts, share: float, patience: float) -> None:
        """Play `share` of the training samples outside."""
        self._inside, self._outside = inside, outside
        self._share, self._patience = share, patience
        self._credit = 0.0

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play one sample on the next side in turn."""
        if task.split == "train" and self._outside.workers():
            self._credit += self._share
            if self._credit >= 1 - 1e-9:
                self._credit -= 1
                try:
                    return await self._outside.rollout(task, self._patience)
                except TimeoutError:
                    pass
        return await self._inside.rollout(task)

    async def rest(self) -> None:
        """Let the engines inside free their GPUs."""
        await self._inside.rest()

    async def update(self, weights: PublishedWeights) -> float:
        """Publish the weights to both sides; return the worst probe difference inside."""
        return max(await asyncio.gather(self._inside.update(weights), self._outside.update(weights)))


class GatewayRenderers:
    """Keep the renderers of a run with workers outside; a swap reaches both sides."""

    def __init__(
        self,
        inside: RendererHost | None,
        scoring: Scoring,
        meet: Callable[[int, RendererSpec], Awaitable[RenderPort]],
    ) -> None:
        """Combine both sides.

        Args:
            inside: starts renderers for the engines inside; None where there are none.
            scoring: renders for the workers outside.
            meet: returns the renderer of a generation, once it is started inside.
        """
        self._inside, self._scoring, self._meet = inside, scoring, meet

    async def add_renderer(self, generation: int, spec: RendererSpec) -> str:
        """Start a renderer for both sides, and return its identity."""
        async with AsyncExitStack() as undo:
            if self._inside is not None:
                await self._inside.add_renderer(generation, spec)
                undo.push_async_callback(self._inside.remove_renderer, generation)
            renderer = await self._meet(generation, spec)
            undo.pop_all()
        self._scoring.add_renderer(generation, renderer)
        return renderer.identity

    async def remove_renderer(self, generation: int) -> None:
        """Remove a renderer on both sides."""
        self._scoring.drop_renderer(generation)
        if self._inside is not None:
            await self._inside.remove_renderer(generation)
