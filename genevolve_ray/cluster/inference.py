"""The parts of inference on Ray: only those that a command asks for; rendering needs no engine, and nothing a learner."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from genevolve_ray.agent.policy_session import PolicySession
from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.cluster.errors import StartError, await_remote
from genevolve_ray.cluster.launch import _Launch
from genevolve_ray.cluster.placement import Demand, check_fits, gang_demands, reserve, service_demands
from genevolve_ray.cluster.proxies import Caller, ServeGrader, ServeJudge, ServeRenderer, ServeTool
from genevolve_ray.cluster.rollouts import RayRollouts, WorkerPool
from genevolve_ray.cluster.services import GradeReplica
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.cluster.workers import MAX_CONCURRENT, ServiceHandle, WorkerStats, worker_environment
from genevolve_ray.evolution.inference import InferencePorts, PolicySource, Wanted, speaking
from genevolve_ray.evolution.monitor import Monitor, NullMonitor
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.rollout import Episodes
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.records.usage import record_usage
from genevolve_ray.tools.protocol import ToolCard

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig
    from genevolve_ray.engines.protocol import SamplingParams


class EpisodeWorker:
    """Plays episodes with one policy and reaches the tools through their service: `start`, `connect`, `rollout`."""

    def __init__(self, config: PlacedConfig, source: PolicySource, date: str) -> None:
        """Keep the settings; `start` does the work."""
        self._config, self._source, self._date = config, source, date
        self._stack = AsyncExitStack()
        self._speak: Callable[[SamplingParams], PolicySession] | None = None
        self._episodes: Episodes | None = None
        self._running = self._finished = 0
        self._seconds_start = 0.0
        self._engine_death: tuple[type[Exception], ...] = ()

    async def start(self) -> WorkerStats:
        """Bring the policy up. Raises FileNotFoundError or ValueError for a model that cannot be sampled."""
        started = perf_counter()
        self._speak = await self._stack.enter_async_context(speaking(self._config, self._source))
        if self._source.model is not None and self._config.engine.kind == "vllm":
            from vllm.v1.engine.exceptions import EngineDeadError

            self._engine_death = (EngineDeadError,)
        self._seconds_start = perf_counter() - started
        return await self.stats()

    async def connect(self, tools: ServiceHandle) -> None:
        """Meet the tools."""
        assert self._speak is not None, "call start before connect"
        caller = tools.caller()
        stand_ins = {card.name: ServeTool(card, caller) for card in await caller("describe")}
        self._episodes = Episodes(self._speak, stand_ins, PROFILES[self._config.profile], self._date)

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play one episode."""
        assert self._episodes is not None, "call connect before rollout"
        self._running += 1
        try:
            trajectory = await self._episodes.rollout(task)
        except self._engine_death:
            os._exit(1)  # To callers the worker is dead, like its engine.
        finally:
            self._running -= 1
        self._finished += 1
        return trajectory

    async def stats(self) -> WorkerStats:
        """Return what this worker has done."""
        return WorkerStats(
            pid=os.getpid(),
            version=0,
            running=self._running,
            finished=self._finished,
            seconds_start=self._seconds_start,
        )

    async def stop(self) -> None:
        """Close the policy."""
        await self._stack.aclose()


class RayAgent:
    """The agent port over the workers; what an episode used is put on the caller's meter."""

    def __init__(
        self, rollouts: RayRollouts, config: PlacedConfig, cards: list[ToolCard], tools: Caller, date: str
    ) -> None:
        """Play through `rollouts`; the cards of the tools stand in the system prompt."""
        self._rollouts, self._profile, self._date = rollouts, PROFILES[config.profile], date
        self._tools = {card.name: ServeTool(card, tools) for card in cards}

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
    """Start the parts on Ray, and end them all at the end, whatever the end.

    Enter it in the main thread. Replicas and workers open the image store and the model folder themselves, so both must
    be reachable from every node.

    Raises:
        PlacementError: when the cluster lacks what is asked for; nothing is started then.
        StartError: when a part does not come up in time; the message names it.
    """
    monitor = monitor or NullMonitor()
    began = perf_counter()
    with ray_session(config.cluster, namespace=run_name):
        launch = _Slim(config, run_name, images_uri, wanted, monitor)
        launch.check()
        try:
            ports = await launch.bring_up()
            monitor.note(f"started in {perf_counter() - began:.1f} s")
            yield ports
        finally:
            await launch.stop()


class _Slim(_Launch):
    """The parts of inference, between start and stop."""

    def __init__(self, config: PlacedConfig, run_name: str, images_uri: str, wanted: Wanted, monitor: Monitor) -> None:
        super().__init__(config, run_name, images_uri, "", monitor)
        self.wanted = wanted
        roles = {
            "tools": wanted.policy is not None,
            "renderer": wanted.render,
            "judge": wanted.judge or wanted.grade,
        }
        self.services = [s for s in self.services if roles[s.role]]
        if wanted.grade:
            self.services = [replace(s, replica=GradeReplica) if s.role == "judge" else s for s in self.services]

    def _workers(self) -> list[Demand]:
        """Return the demands of the workers: an endpoint's need no GPU."""
        if self.wanted.policy is None:
            return []
        demands = gang_demands(self.config)[self.config.cluster.learner_ranks :]
        if self.wanted.policy.endpoint is None:
            return demands
        return [replace(d, resources={k: v for k, v in d.resources.items() if k != "GPU"}) for d in demands]

    def check(self) -> None:
        """Check that the cluster has what is asked for."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        free = ray.cluster_resources() if self.private else ray.available_resources()
        roles = {service.role for service in self.services}
        services = [d for d in service_demands(self.config) if d.part.split()[0] in roles]
        check_fits([*self._workers(), *services], nodes, free)

    async def bring_up(self) -> InferencePorts:
        """Start every part side by side, and meet the services."""
        import ray

        parts: dict[str, Any] = {"services": self._start_services()} if self.services else {}
        if workers := self._workers():
            self.group = reserve(workers)
            pool = WorkerPool(create=self._create_worker, prepare=self._prepare, kill=ray.kill, cancel=ray.cancel)
            cluster = self.config.cluster
            self.rollouts = RayRollouts(
                pool, len(workers), max_restarts=cluster.max_restarts, attempts=cluster.rollout_attempts
            )
            parts["rollout workers"] = self.rollouts.start()
        await self._all_up(parts)
        return await self._meet()

    async def _meet(self) -> InferencePorts:
        ports = InferencePorts()
        callers = {s.role: Caller.of(s.role, self.handles[s.role], s.config) for s in self.services}
        if self.rollouts is not None:
            cards = await callers["tools"]("describe")
            ports.agent = RayAgent(self.rollouts, self.config, cards, callers["tools"], self.wanted.date)
        if self.wanted.render:
            caller = callers["renderer"]
            renderer = ServeRenderer(await caller("describe"), caller)
            renderer.takes_references = await caller("takes_references")
            ports.renderer = renderer
        if self.wanted.judge:
            ports.judge = ServeJudge(await callers["judge"]("describe"), callers["judge"])
        if self.wanted.grade:
            ports.grader = ServeGrader(await callers["judge"]("describe"), callers["judge"])
        return ports

    def _create_worker(self, index: int) -> Any:
        source = self.wanted.policy
        assert source is not None
        cluster = self.config.cluster
        gpus = cluster.rollout_gpus if source.endpoint is None else 0.0
        options = {"num_cpus": cluster.rollout_cpus, "num_gpus": gpus, "max_concurrency": MAX_CONCURRENT}
        environment = worker_environment(self.config.engine) if source.endpoint is None else {}
        return self._actor(EpisodeWorker, index, environment, options).remote(self.config, source, self.wanted.date)

    async def _prepare(self, worker: Any) -> None:
        """Wait until a worker's policy is there and it has met the tools."""
        limit = self.config.cluster.start_timeout
        try:
            async with asyncio.timeout(limit):
                await await_remote(worker.start.remote())
                await self.services_up.wait()
                tools = next(s for s in self.services if s.role == "tools")
                await await_remote(worker.connect.remote(ServiceHandle(tools, self.handles["tools"])))
        except TimeoutError as error:
            raise StartError(f"a rollout worker did not start within {limit:g} s (cluster.start_timeout)") from error
