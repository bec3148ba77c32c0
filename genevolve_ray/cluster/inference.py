"""Inference on Ray: only the parts that a command needs. Rendering needs no engine, and no command a learner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from genevolve_ray.agent.profile import ProtocolProfile, prompt_messages
from genevolve_ray.cluster.launch import Launch, launched
from genevolve_ray.cluster.proxies import ServeGrader, ServeRenderer, connect_judge, connect_judges, connect_tools
from genevolve_ray.cluster.rollouts import RayRollouts
from genevolve_ray.evolution.inference import InferencePorts, Wanted
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.services import judges_of_pictures, kscore_judge
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.records.usage import record_usage
from genevolve_ray.tools.protocol import Tool

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig


class RayAgent:
    """Serve the agent port over the workers; the usage of an episode is recorded on the caller's meter."""

    def __init__(self, rollouts: RayRollouts, profile: ProtocolProfile, tools: Mapping[str, Tool], date: str) -> None:
        """Play through `rollouts`; the system prompt names the tools."""
        self._rollouts, self._profile, self._tools, self._date = rollouts, profile, tools, date

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play one episode on the least loaded worker. Raises WorkersLost when workers keep dying."""
        trajectory = await self._rollouts.rollout(task)
        for service, usage in trajectory.usage.items():
            record_usage(service, usage)
        return trajectory

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return the messages before the first turn."""
        return prompt_messages(request.prompt, self._profile, self._tools, date=self._date)


@asynccontextmanager
async def inference_on_ray(
    config: PlacedConfig, wanted: Wanted, *, run_name: str, images_uri: str, monitor: Monitor | None = None
) -> AsyncIterator[InferencePorts]:
    """Start the wanted parts on Ray, and end them all at the end; see `launched`."""
    async with launched(config, wanted, run_name=run_name, images_uri=images_uri, monitor=monitor) as launch:
        yield await _ports(launch)


async def _ports(launch: Launch) -> InferencePorts:
    """Connect to the services that were started."""
    ports, wanted, callers = InferencePorts(), launch.wanted, launch.callers()
    if launch.rollouts is not None:
        tools = await connect_tools(callers["tools"])
        ports.agent = RayAgent(launch.rollouts, launch.config.protocol, tools, wanted.date)
    if wanted.render:
        caller = callers["renderer"]
        renderer = ServeRenderer(await caller("describe"), caller)
        renderer.takes_references = await caller("takes_references")
        ports.renderer = renderer
    if wanted.judge:
        judge = await connect_judge(callers["judge"])
        ports.judge = kscore_judge(judge) if wanted.kscore else judge
    if wanted.panel:
        ports.judges = judges_of_pictures(await connect_judges(callers))
    if wanted.grade:
        ports.grader = ServeGrader(await callers["judge"]("describe"), callers["judge"])
    return ports
