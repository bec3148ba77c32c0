"""Launch of the parts of a run or an inference job on Ray: checked, started concurrently, and removed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from genevolve_ray.cluster.applications import delete, deploy, reason, states, sweep, wait_running
from genevolve_ray.cluster.errors import StartError, Supervise, await_remote, dead
from genevolve_ray.cluster.learners import LearnerWorker, RayLearner, learner_environment
from genevolve_ray.cluster.memory import ExperienceWorker, RayExperience
from genevolve_ray.cluster.meters import metrics_addresses
from genevolve_ray.cluster.placement import (
    Demand,
    check_devices,
    check_environment,
    check_fits,
    check_shared,
    learner_demands,
    reserve,
    service_demands,
    worker_demands,
)
from genevolve_ray.cluster.proxies import Caller
from genevolve_ray.cluster.rollouts import RayRollouts, WorkerPool
from genevolve_ray.cluster.services import GradeReplica, Service, services_of
from genevolve_ray.cluster.session import cluster_address, ray_session
from genevolve_ray.cluster.swaps import RayRenderers
from genevolve_ray.cluster.transports.device import Transfer
from genevolve_ray.cluster.transports.host import forget_weights, run_folder
from genevolve_ray.cluster.workers import MAX_CONCURRENT, RolloutWorker, ServiceHandle, worker_environment
from genevolve_ray.evolution.deadlines import HangLimits, Supervisor
from genevolve_ray.evolution.inference import PolicySource, Wanted
from genevolve_ray.evolution.monitor import Monitor, NullMonitor
from genevolve_ray.evolution.plugin_folders import classes_in, folders_of
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import remove_leftovers

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig


@dataclass
class ClusterPorts:
    """Hold the parts of a run on Ray that the loop needs; `seconds` records the start time of each part."""

    rollouts: RayRollouts
    learner: RayLearner
    experience: RayExperience | None
    renderers: RayRenderers
    seconds: dict[str, float] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)
    """The services by role, for callers other than the rollout workers."""


@asynccontextmanager
async def on_ray(
    config: PlacedConfig, *, run_name: str, images_uri: str, model_dir: str | Path, monitor: Monitor | None = None
) -> AsyncIterator[ClusterPorts]:
    """Start services, rollout workers and learner of a run on Ray; see `launched`."""
    check_devices(config)
    policy = PolicySource(identity=Path(model_dir).name, model=Path(model_dir))
    wanted = Wanted(policy=policy, render=True, judge=True, train=True, date=config.date)
    async with launched(config, wanted, run_name=run_name, images_uri=images_uri, monitor=monitor) as launch:
        rollouts, learner = launch.rollouts, launch.learner
        assert rollouts is not None and learner is not None, "a run that trains has both"
        renderers = RayRenderers(launch.renderers, rollouts, images_uri, config.cluster.start_timeout)
        yield ClusterPorts(rollouts, learner, launch.experience, renderers, launch.seconds, launch.callers())


@asynccontextmanager
async def launched(
    config: PlacedConfig, wanted: Wanted, *, run_name: str, images_uri: str, monitor: Monitor | None = None
) -> AsyncIterator[Launch]:
    """Start the wanted parts on Ray, and end them all in every case.

    Enter it in the main thread. Replicas and workers open the image store and the model folder themselves, so both must
    be reachable from every node.

    Raises:
        PlacementError: when the cluster lacks a required resource; no part is started then.
        StartError: when a part does not start in time; the message names it.
    """
    monitor = monitor or NullMonitor()
    began = perf_counter()
    try:
        with ray_session(config.cluster, namespace=run_name) as dashboard:
            launch = Launch(config, wanted, run_name, images_uri, monitor.note)
            launch.seconds["ray"] = perf_counter() - began
            launch.check()
            launch.tell_addresses(dashboard)
            try:
                await launch.start()
                launch.seconds["total"] = perf_counter() - began
                monitor.note("started " + ", ".join(f"{part} {s:.1f} s" for part, s in launch.seconds.items()))
                yield launch
            finally:
                await launch.stop()
    finally:
        # Killed processes could not remove their weights; the processes of a private cluster have ended by now.
        remove_leftovers()


class Launch:
    """Hold the wanted parts of a run or an inference job on Ray, between start and stop."""

    def __init__(
        self,
        config: PlacedConfig,
        wanted: Wanted,
        run_name: str,
        images_uri: str,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Plan the parts; `start` starts them.

        Args:
            config: the settings and the placement of the parts.
            wanted: the parts to start.
            run_name: prefix of the names of the applications.
            images_uri: the picture store of the run or job.
            say: receives a line for each process that was ended because it no longer answered.
        """
        self._say = say
        self.config, self.wanted, self.images_uri = config, wanted, images_uri
        self.services = wanted_services(config, wanted, run_name)
        self.seconds: dict[str, float] = {}
        """Start time of each part."""
        self.rollouts: RayRollouts | None = None
        self.learner: RayLearner | None = None
        self.experience: RayExperience | None = None
        self.renderers: dict[int, ServiceHandle] = {}
        """Every renderer that the workers use, by generation."""
        self._ranks = learner_demands(config) if wanted.train else []
        self._workers: list[Demand] = []
        if wanted.policy is not None:
            self._workers = worker_demands(config, engines=wanted.policy.endpoint is None)
        self._private = cluster_address(config.cluster) is None
        self._group: Any = None
        self._handles: dict[str, Any] = {}
        self._services_up = asyncio.Event()

    def check(self) -> None:
        """Check that the cluster has the resources that the parts require. Raises PlacementError."""
        import ray

        for service in self.services:
            check_environment(service.role, service.spec.environment(), local=self._private)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # Available resources are reported slightly later than total ones; in a private cluster the two are equal.
        free = ray.cluster_resources() if self._private else ray.available_resources()
        roles = [service.role for service in self.services] + (["experience"] if self.wanted.train else [])
        check_fits([*self._ranks, *self._workers, *service_demands(self.config, roles)], nodes, free)

    def tell_addresses(self, dashboard: str) -> None:
        """Say where Ray's dashboard and metrics are, where the run has them."""
        import ray

        if dashboard:
            self._say(f"Ray's dashboard at {dashboard}")
        if self.config.cluster.metrics:
            self._say(f"Ray's metrics for Prometheus at {', '.join(metrics_addresses(ray.nodes()))}")

    async def start(self) -> None:
        """Start every part concurrently: the engine takes longest, and everything else fits into that time."""
        cluster = self.config.cluster
        parts: dict[str, Awaitable[None]] = {}
        if gang := [*self._ranks, *self._workers]:
            self._group = reserve(gang, cluster.strategy)
        if self.wanted.train:
            self.learner = self._new_learner()
            parts["learner"] = self.learner.start()
        if self._workers:
            self.rollouts = self._new_rollouts()
            parts["rollout workers"] = self.rollouts.start()
        if self.services:
            parts["services"] = self._start_services()
        if self.wanted.train and self.config.experience.enabled:
            self.experience = self._new_experience()
            parts["experience"] = self.experience.start()
        await self._all_up(parts)
        if self.learner is not None and self.rollouts is not None and cluster.weights == "ipc":
            await check_shared(self.learner.workers, self.rollouts.workers)

    def callers(self) -> dict[str, Caller]:
        """Return the services by role, for callers other than the rollout workers."""
        return {service.role: self._handle(service).caller() for service in self.services}

    async def stop(self) -> None:
        """Close the engines and remove the services; a private cluster then ends with the session."""
        if self.rollouts is not None:
            await self.rollouts.stop()
        forget_weights()
        if self._private:
            return
        from ray.util import remove_placement_group

        if self.learner is not None:
            await self.learner.stop()
        await delete([*self.services, *(service_handle.service for service_handle in self.renderers.values())])
        if self._group is not None:
            remove_placement_group(self._group)

    async def _all_up(self, parts: dict[str, Any]) -> None:
        """Wait until all parts are up. Raises the first part's error, or StartError naming the late parts."""
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
            raise StartError(f"{names} did not start within {limit:g} s (cluster.start_timeout){await self._why(late)}")

    async def _timed(self, part: str, work: Awaitable[None]) -> None:
        from ray.exceptions import RayActorError

        started = perf_counter()
        try:
            await work
        except (RayActorError, LearnerLost) as error:
            raise StartError(f"the process of {part} died during startup: {error}") from error
        self.seconds[part] = perf_counter() - started

    async def _why(self, late: set[asyncio.Task[None]]) -> str:
        if not any(task.get_name() == "services" for task in late):
            return ""
        found = await states(self.services)
        return "; " + "; ".join(f"{name}: {status} {reason(message)}" for name, (status, message) in found.items())

    # --- actors ---

    def _new_learner(self) -> RayLearner:
        import ray

        return RayLearner(
            self._create_learner,
            kill=ray.kill,
            max_restarts=self.config.cluster.max_restarts,
            elsewhere=lambda: sum(node["Alive"] for node in ray.nodes()) > 1,
            sends=self.config.cluster.weights != "host",
            supervise=self._supervisor(),
        )

    def _new_rollouts(self) -> RayRollouts:
        import ray

        cluster, transfer = self.config.cluster, None
        if self.learner is not None:
            transfer = Transfer(
                self.learner,
                processes=self.config.engine.vllm.tensor_parallel_size,
                timeout=cluster.weights_timeout,
                piece_bytes=cluster.weights_piece_mib << 20,
                kill=ray.kill,
            )
        return RayRollouts(
            WorkerPool(create=self._create_worker, prepare=self._prepare, kill=ray.kill, cancel=ray.cancel),
            len(self._workers),
            max_restarts=cluster.max_restarts,
            attempts=cluster.rollout_attempts,
            transfer=transfer,
            supervise=self._supervisor(),
        )

    def _new_experience(self) -> RayExperience:
        import ray

        attempts = self.config.cluster.experience_attempts
        return RayExperience(self._create_memory, ray.kill, attempts, self._supervisor())

    def _supervisor(self) -> Supervise:
        import ray

        cluster = self.config.cluster
        limits = HangLimits(cluster.hang_timeout, cluster.hang_first, cluster.hang_timeout / 3)
        return Supervisor(limits, ray.kill, dead, self._say).call

    def _actor(self, kind: type, bundle: int, environment: dict[str, str], options: dict[str, Any]) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        variables = self._folders() | environment
        return ray.remote(kind).options(
            scheduling_strategy=strategy, runtime_env={"env_vars": variables}, max_restarts=0, **options
        )

    def _folders(self) -> dict[str, str]:
        """Return the variable with which other processes find the classes of plug-ins that are not installed."""
        specs = self.config.plugins.values()
        return folders_of(path for spec in specs for path in classes_in(spec.type, spec.config))

    def _create_learner(self) -> list[Any]:
        assert self.wanted.policy is not None, "a learner trains a policy"
        run_folder()  # On one node, the driver keeps the weights while learner and workers are replaced.
        cluster, environment = self.config.cluster, learner_environment(self.config)
        options = {"num_cpus": cluster.learner_cpus, "num_gpus": cluster.learner_gpus}
        model = str(self.wanted.policy.model)
        return [
            self._actor(LearnerWorker, rank, environment, options).remote(self.config, model, self.images_uri, rank)
            for rank in range(len(self._ranks))
        ]

    def _create_worker(self, index: int) -> Any:
        source, cluster = self.wanted.policy, self.config.cluster
        assert source is not None, "workers play with a policy"
        options = {
            "num_cpus": cluster.rollout_cpus,
            "num_gpus": cluster.rollout_gpus if source.endpoint is None else 0.0,
            "max_concurrency": MAX_CONCURRENT,
        }
        environment = worker_environment(self.config.engine) if source.endpoint is None else {}
        transfer = cluster.weights if self.wanted.train and cluster.weights != "host" else None
        actor = self._actor(RolloutWorker, len(self._ranks) + index, environment, options)
        return actor.remote(self.config, source, self.images_uri, date=self.wanted.date, transfer=transfer)

    def _create_memory(self) -> Any:
        import ray

        assert self.wanted.policy is not None, "a run with experience trains a policy"
        options = {"num_cpus": self.config.cluster.experience_cpus, "max_restarts": 0}
        own = self.config.summariser.environment()
        variables = {"HF_HUB_OFFLINE": "1", **self._folders(), **own.get("env_vars", {})}
        environment = {**own, "env_vars": variables}
        actor = ray.remote(ExperienceWorker).options(runtime_env=environment, **options)
        return actor.remote(self.config, str(self.wanted.policy.model))

    async def _prepare(self, worker: Any) -> None:
        """Wait until a worker's policy has started and the worker is connected to the services."""
        limit = self.config.cluster.start_timeout
        try:
            async with asyncio.timeout(limit):
                await await_remote(worker.start.remote())
                await self._services_up.wait()
                met = {service.role: self._handle(service) for service in self.services}
                # Without a learner the job renders and judges in separate steps.
                judges = {role: handle for role, handle in met.items() if role in self.config.judge_specs}
                scoring = (dict(self.renderers), judges) if self.wanted.train else ()
                await await_remote(worker.connect.remote(met["tools"], *scoring))
        except TimeoutError as error:
            raise StartError(f"a rollout worker did not start within {limit:g} s (cluster.start_timeout)") from error

    # --- services ---

    async def _start_services(self) -> None:
        """Start the applications and wait until they run. Raises StartError with the plug-in's line when one cannot."""
        started = perf_counter()
        if not self._private:
            await sweep(self.services)
        handles = await deploy(self.services, self.images_uri)
        self._handles = {service.role: handle for service, handle in zip(self.services, handles, strict=True)}

        def running(service: Service) -> None:
            self.seconds[service.role] = perf_counter() - started

        await wait_running(self.services, running)
        for service in self.services:
            if service.role == "renderer":
                self.renderers[0] = self._handle(service)
        self._services_up.set()

    def _handle(self, service: Service) -> ServiceHandle:
        return ServiceHandle(service, self._handles[service.role])


def wanted_services(config: PlacedConfig, wanted: Wanted, run_name: str) -> list[Service]:
    """Return the wanted services; a judge with another benchmark's scale is served for grading.

    Further judges are for runs that train, and where a job wants them: rows of a benchmark are judged by one.
    """
    roles = {"tools": wanted.policy is not None, "renderer": wanted.render, "judge": wanted.judge or wanted.grade}
    services = [
        service for service in services_of(config, run_name) if roles.get(service.role, wanted.train or wanted.panel)
    ]
    if wanted.grade:
        services = [replace(s, replica=GradeReplica) if s.role == "judge" else s for s in services]
    return services
