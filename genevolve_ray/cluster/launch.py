"""A run's parts on Ray: checked, started side by side, and gone at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from genevolve_ray.cluster.applications import delete, deploy, reason, states, sweep, wait_running
from genevolve_ray.cluster.errors import StartError, await_remote
from genevolve_ray.cluster.learners import LearnerWorker, RayLearner, learner_environment
from genevolve_ray.cluster.memory import ExperienceWorker, RayExperience
from genevolve_ray.cluster.placement import (
    check_devices,
    check_environment,
    check_fits,
    check_shared,
    gang_demands,
    reserve,
    service_demands,
)
from genevolve_ray.cluster.proxies import Caller
from genevolve_ray.cluster.rollouts import RayRollouts, WorkerPool
from genevolve_ray.cluster.services import Service, services_of
from genevolve_ray.cluster.session import cluster_address, ray_session
from genevolve_ray.cluster.swaps import RayRenderers
from genevolve_ray.cluster.transports.device import Transfer
from genevolve_ray.cluster.transports.host import forget_weights
from genevolve_ray.cluster.workers import MAX_CONCURRENT, RolloutWorker, ServiceHandle, worker_environment
from genevolve_ray.evolution.monitor import Monitor, NullMonitor
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import remove_leftovers

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig


@dataclass
class ClusterPorts:
    """What the loop needs, on Ray; `seconds` says how long each part took to start."""

    rollouts: RayRollouts
    learner: RayLearner
    experience: RayExperience | None
    renderers: RayRenderers
    seconds: dict[str, float] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)
    """The services by role, for whoever calls them beside the rollout workers."""


@asynccontextmanager
async def on_ray(
    config: PlacedConfig, *, run_name: str, images_uri: str, model_dir: str | Path, monitor: Monitor | None = None
) -> AsyncIterator[ClusterPorts]:
    """Start services, rollout workers and learner on Ray, and end them all at the end, whatever the end.

    Enter it in the main thread. Replicas and workers open the image store and the model folder themselves, so both must
    be reachable from every node.

    Raises:
        PlacementError: when the cluster lacks what the run asks for; nothing is started then.
        StartError: when a part does not come up in time; the message names it.
    """
    monitor = monitor or NullMonitor()
    check_devices(config)
    began = perf_counter()
    with ray_session(config.cluster, namespace=run_name):
        launch = _Launch(config, run_name, images_uri, str(model_dir), monitor)
        launch.seconds["ray"] = perf_counter() - began
        launch.check()
        try:
            ports = await launch.start()
            launch.seconds["total"] = perf_counter() - began
            monitor.note("started " + ", ".join(f"{part} {s:.1f} s" for part, s in launch.seconds.items()))
            yield ports
        finally:
            await launch.stop()
    # What was published by processes that could not remove it themselves; a private cluster's are gone by now.
    remove_leftovers()


class _Launch:
    """The parts of one run, between start and stop."""

    def __init__(self, config: PlacedConfig, run_name: str, images_uri: str, model_dir: str, monitor: Monitor) -> None:
        self.config, self.images_uri, self.model_dir, self.monitor = config, images_uri, model_dir, monitor
        self.services = services_of(config, run_name)
        self.seconds: dict[str, float] = {}
        self.private = cluster_address(config.cluster) is None
        self.group: Any = None
        self.rollouts: RayRollouts | None = None
        self.learner: RayLearner | None = None
        self.handles: dict[str, Any] = {}
        self.renderers: dict[int, ServiceHandle] = {}
        """Every renderer that a worker must know, by generation."""
        self.services_up = asyncio.Event()

    def check(self) -> None:
        """Check that the cluster has what the run asks for."""
        import ray

        for service in self.services:
            check_environment(service.role, service.spec.runtime_env, local=self.private)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # What is available is known a moment later than what exists; in a private cluster it is the same.
        free = ray.cluster_resources() if self.private else ray.available_resources()
        check_fits([*gang_demands(self.config), *service_demands(self.config)], nodes, free)

    async def start(self) -> ClusterPorts:
        """Start every part side by side: the engine takes longest, and everything else fits into that time."""
        import ray

        cluster = self.config.cluster
        self.group = reserve(gang_demands(self.config), cluster.strategy)
        self.learner = learner = RayLearner(
            self._create_learner,
            kill=ray.kill,
            max_restarts=cluster.max_restarts,
            elsewhere=lambda: sum(node["Alive"] for node in ray.nodes()) > 1,
            sends=cluster.weights != "host",
        )
        transfer = Transfer(
            learner,
            processes=self.config.engine.vllm.tensor_parallel_size,
            timeout=cluster.weights_timeout,
            kill=ray.kill,
        )
        pool = WorkerPool(create=self._create_worker, prepare=self._prepare, kill=ray.kill, cancel=ray.cancel)
        self.rollouts = RayRollouts(
            pool,
            cluster.rollout_workers,
            max_restarts=cluster.max_restarts,
            attempts=cluster.rollout_attempts,
            transfer=transfer,
        )
        parts = {
            "learner": learner.start(),
            "rollout workers": self.rollouts.start(),
            "services": self._start_services(),
        }
        experience = None
        if self.config.experience.enabled:
            experience = RayExperience(self._create_memory, ray.kill, cluster.experience_attempts)
            parts["experience"] = experience.start()
        await self._all_up(parts)
        if cluster.weights == "ipc":
            await check_shared(learner.workers, self.rollouts.workers)
        renderers = RayRenderers(self.renderers, self.rollouts, self.images_uri, cluster.start_timeout)
        callers = {s.role: ServiceHandle(s, self.handles[s.role]).caller() for s in self.services}

        return ClusterPorts(self.rollouts, learner, experience, renderers, self.seconds, callers)

    async def stop(self) -> None:
        """Close the engines and take the services away; a private cluster then ends with the session."""
        if self.rollouts is not None:
            await self.rollouts.stop()
        forget_weights()
        if self.private:
            return
        if self.learner is not None:
            await self.learner.stop()
        from ray.util import remove_placement_group

        await delete([*self.services, *(service_handle.service for service_handle in self.renderers.values())])
        if self.group is not None:
            remove_placement_group(self.group)

    async def _all_up(self, parts: dict[str, Any]) -> None:
        """Wait until all parts are up. Raises the first part's error, or StartError naming those that are late."""
        tasks = {asyncio.create_task(self._timed(part, work), name=part) for part, work in parts.items()}
        limit = self.config.cluster.start_timeout
        try:
            done, late = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
        if late:
            names = ", ".join(sorted(task.get_name() for task in late))
            raise StartError(
                f"{names} did not come up within {limit:g} s (cluster.start_timeout){await self._why(late)}"
            )

    async def _timed(self, part: str, work: Awaitable[None]) -> None:
        from ray.exceptions import RayActorError

        started = perf_counter()
        try:
            await work
        except (RayActorError, LearnerLost) as error:
            raise StartError(f"the process of {part} died while it started: {error}") from error
        self.seconds[part] = perf_counter() - started

    async def _why(self, late: set[asyncio.Task[None]]) -> str:
        if not any(task.get_name() == "services" for task in late):
            return ""
        found = await states(self.services)
        return "; " + "; ".join(f"{name}: {status} {reason(message)}" for name, (status, message) in found.items())

    # --- actors ---

    def _actor(self, kind: type, bundle: int, environment: dict[str, str], options: dict[str, Any]) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return ray.remote(kind).options(
            scheduling_strategy=strategy, runtime_env={"env_vars": environment}, max_restarts=0, **options
        )

    def _create_learner(self) -> list[Any]:
        cluster, environment = self.config.cluster, learner_environment(self.config)
        options = {"num_cpus": cluster.learner_cpus, "num_gpus": cluster.learner_gpus}
        return [
            self._actor(LearnerWorker, rank, environment, options).remote(self.config, self.model_dir, rank)
            for rank in range(cluster.learner_ranks)
        ]

    def _create_worker(self, index: int) -> Any:
        cluster = self.config.cluster
        options = {
            "num_cpus": cluster.rollout_cpus,
            "num_gpus": cluster.rollout_gpus,
            "max_concurrency": MAX_CONCURRENT,
        }
        actor = self._actor(
            RolloutWorker, cluster.learner_ranks + index, worker_environment(self.config.engine), options
        )
        return actor.remote(self.config, self.model_dir)

    def _create_memory(self) -> Any:
        import ray

        options = {"num_cpus": self.config.cluster.experience_cpus, "max_restarts": 0}
        own = self.config.summariser.runtime_env
        environment = {**own, "env_vars": {"HF_HUB_OFFLINE": "1", **own.get("env_vars", {})}}
        return ray.remote(ExperienceWorker).options(runtime_env=environment, **options).remote(self.config)

    async def _prepare(self, worker: Any) -> None:
        """Wait until a worker's engine runs and it has met the services."""
        limit = self.config.cluster.start_timeout
        try:
            async with asyncio.timeout(limit):
                await await_remote(worker.start.remote())
                await self.services_up.wait()
                generations = {s.role: ServiceHandle(s, self.handles[s.role]) for s in self.services}
                await await_remote(
                    worker.connect.remote(generations["tools"], dict(self.renderers), generations["judge"])
                )
        except TimeoutError as error:
            raise StartError(f"a rollout worker did not come up within {limit:g} s (cluster.start_timeout)") from error

    # --- services ---

    async def _start_services(self) -> None:
        """Deploy the applications and wait until they run. Raises StartError with the plug-in's line when one cannot."""
        started = perf_counter()
        if not self.private:
            await sweep(self.services)
        handles = await deploy(self.services, self.images_uri)
        self.handles = {service.role: handle for service, handle in zip(self.services, handles, strict=True)}

        def running(service: Service) -> None:
            self.seconds[service.role] = perf_counter() - started

        await wait_running(self.services, running)
        for service in self.services:
            if service.role == "renderer":
                self.renderers[0] = ServiceHandle(service, self.handles[service.role])
        self.services_up.set()
