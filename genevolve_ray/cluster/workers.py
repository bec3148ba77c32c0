"""Rollout worker: an async actor around one engine, with many episodes in flight."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from genevolve_ray.cluster.meters import NullMeters, WorkerMeters
from genevolve_ray.cluster.proxies import Caller, ServeRenderer, connect, connect_judges, connect_tools
from genevolve_ray.cluster.transports.host import forget_weights
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.factory import let_sleep
from genevolve_ray.engines.protocol import Engine, Probe, WeightUpdateError
from genevolve_ray.engines.transports.queue import TransferCall, TransferQueue
from genevolve_ray.engines.vllm import VllmEngine
from genevolve_ray.engines.vllm_settings import vllm_environment, waiting_threads
from genevolve_ray.evolution.inference import PolicySource, RunningPolicy, open_policy
from genevolve_ray.evolution.plugins import build_here, held_by_workers
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.rollout import Rollouts, Scoring
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.records.base import Record
from genevolve_ray.records.images import FilesystemImages, ImageStore
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.protocol import Tool
from genevolve_ray.tools.running import close_toolbox, running_tools

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig
    from genevolve_ray.cluster.services import Service

MAX_CONCURRENT = 4096
"""Concurrent calls of a worker; requests beyond the engine's batch wait in the engine."""


class WorkerStats(Record):
    """Report the work of a rollout worker since its start; `version` is -1 without an engine."""

    pid: int
    version: int
    running: int
    finished: int
    seconds_start: float


@dataclass(frozen=True)
class ServiceHandle:
    """Describe how a worker reaches a service: the handle of its application, and its limits."""

    service: Service
    handle: Any

    def caller(self) -> Caller:
        """Return a caller of the service."""
        return Caller.of(self.service.role, self.handle, self.service.config)


class RolloutWorker:
    """Play episodes with one policy, and reach tools, renderer and judge through their services.

    Tools that are only look-ups in memory, or have state for each episode, run in the worker itself (`local_toolbox`).

    Call `start`, then `connect`, then `rollout` any number of times. With renderers and a judge it scores its episodes,
    and where an engine samples the policy it loads new weights. A worker whose engine process has died ends itself, so
    that callers see only one kind of death.
    """

    def __init__(
        self,
        config: PlacedConfig,
        source: PolicySource,
        images_uri: str,
        *,
        date: str = "",
        transfer: str | None = None,
    ) -> None:
        """Keep the settings; `start` does the work.

        Args:
            config: the settings of the run or job.
            source: the policy.
            images_uri: the picture store, from which the policy sees.
            date: required by profiles that append the date.
            transfer: the transport of weights over device memory; None for files only.
        """
        self._config, self._source, self._date, self._transfer = config, source, date, transfer
        self._images = FilesystemImages(images_uri)
        self._stack = AsyncExitStack()
        self._policy: RunningPolicy | None = None
        self._scoring: Scoring | None = None
        self._rollouts: Rollouts | None = None
        self._transfer_queue = TransferQueue()
        self._meters = WorkerMeters() if config.cluster.metrics else NullMeters()
        self._running = self._finished = 0
        self._seconds_start = 0.0
        self._engine_death: tuple[type[Exception], ...] = ()

    async def start(self) -> WorkerStats:
        """Start the policy. Raises FileNotFoundError or UserFault for a model that cannot be sampled."""
        started = perf_counter()
        opening = open_policy(self._config, self._source, self._images, self._transfer)
        self._policy = await self._stack.enter_async_context(opening)
        if self._policy.engine is not None and self._policy.engine.name == "vllm":
            from vllm.v1.engine.exceptions import EngineDeadError

            self._engine_death = (EngineDeadError,)
        self._seconds_start = perf_counter() - started
        return await self.stats()

    async def connect(
        self,
        tools: ServiceHandle,
        renderers: Mapping[int, ServiceHandle] | None = None,
        judges: Mapping[str, ServiceHandle] | None = None,
    ) -> None:
        """Connect to the services; with judges by role, and at least one renderer by its generation, rollouts are scored."""
        assert self._policy is not None, "call start before connect"
        if not judges or not renderers:
            stand_ins = await connect_tools(tools.caller())
        else:
            (first, renderer), *others = renderers.items()
            stand_ins, painter, critic = await connect(tools.caller(), renderer.caller(), judges["judge"].caller())
            further = await connect_judges({role: handle.caller() for role, handle in judges.items()})
            self._scoring = Scoring(painter, critic, self._config.reward, first, further)
            for generation, service_handle in others:
                await self.add_renderer(generation, service_handle)
        profile, toolbox = self._config.protocol, local_toolbox(self._config, self._images)
        own: dict[str, Tool] = {}
        if toolbox is not None:
            self._stack.push_async_callback(close_toolbox, toolbox)
            own = running_tools(toolbox.tools, profile.observations, self._images)
        self._rollouts = Rollouts(self._policy.open_session, {**stand_ins, **own}, profile, self._date, self._scoring)

    async def add_renderer(self, generation: int, renderer: ServiceHandle) -> None:
        """Connect to another renderer, for the tasks of its generation."""
        assert self._scoring is not None, "only a worker that scores has renderers"
        caller = renderer.caller()
        self._scoring.add_renderer(generation, ServeRenderer(await caller("describe"), caller))

    async def drop_renderer(self, generation: int) -> None:
        """Disconnect from a renderer that no task needs any more."""
        assert self._scoring is not None, "only a worker that scores has renderers"
        self._scoring.drop_renderer(generation)

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Draw one sample."""
        assert self._rollouts is not None, "call connect before rollout"
        self._running += 1
        self._meters.running(self._running)
        try:
            trajectory = await self._rollouts.rollout(task)
        except self._engine_death:
            self._exit()
            raise
        finally:
            self._running -= 1
            self._meters.running(self._running)
        self._finished += 1
        self._meters.ended()
        return trajectory

    async def update(self, weights: PublishedWeights) -> float:
        """Load published weights into the engine and verify them; return the probe difference."""
        engine, folder = self._engine(), await weights.folder()
        try:
            difference = await engine.update(folder, weights.version, weights.probe)
        except self._engine_death:
            self._exit()
            raise
        self._meters.loaded(weights.version)
        return difference

    async def rest(self) -> None:
        """Let the engine free its GPU until the next update."""
        try:
            await let_sleep(self._engine())
        except self._engine_death:
            self._exit()
            raise

    async def expect(self) -> None:
        """Prepare for weights that arrive over device memory."""
        self._transfer_queue = TransferQueue()

    async def receive(self, version: int, probe: Probe) -> float:
        """Receive weights from the learner's end and verify them; return the probe difference.

        Raises:
            WeightUpdateError: see `VllmEngine.receive`.
        """
        engine, transfer_queue = cast("VllmEngine", self._engine()), self._transfer_queue
        try:
            difference = await engine.receive(transfer_queue.calls(), version, probe)
            self._meters.loaded(version)
            return difference
        except WeightUpdateError as error:
            transfer_queue.close(str(error))
            raise
        except self._engine_death:
            self._exit()
            raise
        finally:
            transfer_queue.close("the engine ended with this version")

    async def deliver(self, call: TransferCall, argument: dict[str, Any] | None = None) -> None:
        """Make a call of the learner's end on the engine, and wait until it is executed."""
        await self._transfer_queue.deliver(call, argument)

    async def abandon(self, reason: str) -> None:
        """Stop waiting for weights that will not arrive."""
        self._transfer_queue.close(reason)

    async def ping(self) -> None:
        """Answer: the event loop of this process runs."""

    async def stats(self) -> WorkerStats:
        """Return the statistics of this worker."""
        engine = self._policy.engine if self._policy is not None else None
        return WorkerStats(
            pid=os.getpid(),
            version=engine.version if engine is not None else -1,
            running=self._running,
            finished=self._finished,
            seconds_start=self._seconds_start,
        )

    async def stop(self) -> None:
        """Close the tools and the policy."""
        await self._stack.aclose()
        forget_weights()

    def _engine(self) -> Engine:
        assert self._policy is not None and self._policy.engine is not None, "an endpoint takes no weights"
        return self._policy.engine

    def _exit(self) -> None:
        """End this process without cleanup: to callers the worker is dead, like its engine."""
        os._exit(1)


def local_toolbox(config: PlacedConfig, images: ImageStore) -> Any:
    """Return the toolbox of a run where it is `local`, for calls in this process; None for tools of a service.

    A call of a service takes more than a look-up in memory. Raises PluginFault.
    """
    spec = config.tools
    return build_here(spec.alone(), images) if held_by_workers(spec) else None


def worker_environment(engine: EngineConfig) -> dict[str, str]:
    """Return the environment variables that a worker's process needs before it imports anything."""
    if engine.kind == "vllm":
        return vllm_environment(device=engine.device, threads=engine.vllm.threads or 1, eager=engine.vllm.enforce_eager)
    threads = {"OMP_NUM_THREADS": str(engine.transformers.threads or 1)}
    return {"HF_HUB_OFFLINE": "1"} | threads | waiting_threads(engine.device)
