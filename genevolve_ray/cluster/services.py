"""Tools, renderer and judge as Ray Serve applications: each replica builds its plug-in; nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genevolve_ray.cluster.replies import Reply, replied
from genevolve_ray.evolution.plugin_folders import classes_in, folders_of
from genevolve_ray.evolution.plugins import PluginFault, PluginSpec, build_here, held_by_workers
from genevolve_ray.evolution.ports import RenderedAttempt
from genevolve_ray.evolution.services import GradeService, GroupJudgeService, JudgeService, RenderService, judge_service
from genevolve_ray.records.components import ComponentRange
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.remote.client import share_limits
from genevolve_ray.tools.protocol import EpisodeContext, ToolCard, keeps_state
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations

if TYPE_CHECKING:
    from ray.serve import Application

    from genevolve_ray.cluster.config import PlacedConfig, ServiceConfig

_CONSTRUCTOR_TRIES = 2
_GRACE_SECONDS = 2.0


class _Replica:
    """Hold the shared parts of all services: the plug-in, and its share of the limits common to the replicas."""

    def __init__(self, plugin: Any, replicas: int) -> None:
        """Serve a plug-in as one of `replicas`.

        For a varying number pass the largest, so that a rate is never exceeded.
        """
        share_limits(replicas)
        self.plugin = plugin

    def check_health(self) -> None:
        """Answer Serve's health check by the plug-in's own `check_health`, if it has one.

        Serve replaces a replica that raises here. A plug-in should therefore raise for faults that a new process would
        fix (a lost device, a worker that hangs). Clients of external services have no such check. A backend that is
        down is a typed outcome of each call. A new replica would find it down as well, while the calls of the old one
        are lost.
        """
        check = getattr(self.plugin, "check_health", None)
        if check is not None:
            check()


class ToolReplica(_Replica):
    """Serve every tool of the tools plug-in."""

    def __init__(
        self, spec: PluginSpec, images_uri: str, replicas: int = 1, observations: Observations | None = None
    ) -> None:
        """Build the plug-in over the run's image store; `observations` tells which pictures the policy sees."""
        images = FilesystemImages(images_uri)
        super().__init__(build_here(spec, images), replicas)
        self._tools = running_tools(self.plugin.tools, observations or Observations(), images)
        if not held_by_workers(spec) and (stateful := [t.name for t in self._tools.values() if keeps_state(t)]):
            raise PluginFault(
                f"tools.type={spec.type}: {', '.join(stateful)} has state for each episode, which replicas cannot share: "
                "declare `local = True` in the class, and set no tools.runtime_env"
            )

    def __del__(self) -> None:
        """Close the toolbox, where it records or holds connections: Serve calls this when a replica ends."""
        if (close := getattr(getattr(self, "plugin", None), "close", None)) is not None:
            close()

    async def describe(self) -> list[ToolCard]:
        """Return the descriptions of the tools for the system prompt."""
        tools = self._tools.values()
        return [ToolCard.of(t) for t in tools]

    async def call(self, name: str, arguments: dict[str, Any], episode: EpisodeContext) -> Reply:
        """Call one tool; the reply holds an observation, or the error of the tool."""
        return await replied(self._tools[name].call(arguments, episode))


class RenderReplica(_Replica):
    """Serve the renderer plug-in."""

    def __init__(self, spec: PluginSpec, images_uri: str, replicas: int = 1) -> None:
        """Build the plug-in over the run's image store."""
        images = FilesystemImages(images_uri)
        super().__init__(build_here(spec), replicas)
        self._service = RenderService(self.plugin, images)

    async def describe(self) -> str:
        """Return the renderer's identity."""
        return self._service.identity

    async def takes_references(self) -> bool:
        """Return whether reference pictures reach the generator."""
        return self._service.takes_references

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> Reply:
        """Render a program; the reply holds an image reference, or an InfraFailure."""
        return await replied(self._service.render(prompt, references, seed))


class JudgeReplica(_Replica):
    """Serve a judge plug-in, which judges pictures or groups of them."""

    def __init__(self, spec: PluginSpec, images_uri: str, replicas: int = 1) -> None:
        """Build the plug-in over the run's image store."""
        images = FilesystemImages(images_uri)
        super().__init__(build_here(spec), replicas)
        self._service = judge_service(self.plugin, images)

    async def describe(self) -> str:
        """Return the judge's identity."""
        return self._service.identity

    async def components(self) -> dict[str, ComponentRange]:
        """Return the components that the judge declares, by name."""
        return dict(self._service.components)

    async def gives_kscore(self) -> bool:
        """Return whether the verdicts have the four grades of a KScore."""
        return self._service.gives_kscore

    async def judge(self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]) -> Reply:
        """Judge a rendered program; the reply holds a verdict, or an InfraFailure."""
        assert isinstance(self._service, JudgeService), f"{self._service.identity} judges groups"
        return await replied(self._service.judge(request, image, program, references))

    async def judges_groups(self) -> bool:
        """Return whether the judge judges groups."""
        return isinstance(self._service, GroupJudgeService)

    async def judge_group(self, request: Request, attempts: Sequence[RenderedAttempt]) -> Reply:
        """Judge the attempts of a group; the reply holds their verdicts, or an InfraFailure."""
        assert isinstance(self._service, GroupJudgeService), f"{self._service.identity} judges pictures"
        return await replied(self._service.judge_group(request, attempts))


class GradeReplica(_Replica):
    """Serve a judge plug-in with the scale of another benchmark."""

    def __init__(self, spec: PluginSpec, images_uri: str, replicas: int = 1) -> None:
        """Build the plug-in over the run's image store."""
        super().__init__(build_here(spec), replicas)
        self._service = GradeService(self.plugin, FilesystemImages(images_uri))

    async def describe(self) -> str:
        """Return the judge's identity."""
        return self._service.identity

    async def grade(self, prompt: Any, image: ImageRef) -> Reply:
        """Grade a picture; the reply holds the grades, or an InfraFailure."""
        return await replied(self._service.grade(prompt, image))


@dataclass(frozen=True)
class Service:
    """Describe one application of a run: `role` is tools, renderer, judge, or `judges.NAME` of a further judge."""

    role: str
    name: str
    replica: type
    spec: PluginSpec
    config: ServiceConfig
    arguments: tuple[Any, ...] = ()
    """What the replicas get besides the plug-in, the image store and their number."""


def services_of(config: PlacedConfig, run_name: str) -> list[Service]:
    """Return the services of a run, their applications named by run and role."""
    prefix, limited = re.sub(r"[^\w.-]+", "-", run_name), config.services
    observations = (config.protocol.observations,)
    return [
        Service("tools", f"{prefix}-tools", ToolReplica, config.tools, limited["tools"], observations),
        Service("renderer", f"{prefix}-renderer", RenderReplica, config.renderer, limited["renderer"]),
        *(
            Service(role, f"{prefix}-{role.replace('judges.', 'judge-')}", JudgeReplica, spec, limited[role])
            for role, spec in config.judge_specs.items()
        ),
    ]


def _replicas(config: ServiceConfig) -> dict[str, Any]:
    if config.max_replicas is None:
        return {"num_replicas": config.replicas}
    bounds = {
        "min_replicas": config.replicas,
        "initial_replicas": config.replicas,
        "max_replicas": config.max_replicas,
        "target_ongoing_requests": config.target_ongoing or max(1, config.max_ongoing // 2),
    }
    return {"autoscaling_config": bounds}


def application(service: Service, images_uri: str) -> Application:
    """Return the Serve application of a service."""
    replica = deployment_of(service, service.replica)
    bound: Application = replica.bind(service.spec, images_uri, service.config.most_replicas, *service.arguments)
    return bound


def deployment_of(service: Service, replica: type) -> Any:
    """Return the deployment of a class with the replicas, resources and limits of a service."""
    from ray import serve

    config = service.config
    deploy = serve.deployment(
        name=service.role.replace(".", "-"),
        **_replicas(config),
        max_ongoing_requests=config.max_ongoing,
        max_queued_requests=config.max_queued,
        max_constructor_retry_count=_CONSTRUCTOR_TRIES,
        health_check_period_s=config.health_period,
        health_check_timeout_s=config.health_timeout,
        graceful_shutdown_timeout_s=_GRACE_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus, "runtime_env": _environment(service.spec)},
    )
    return deploy(replica)


def _environment(spec: PluginSpec) -> dict[str, Any]:
    """Return the runtime environment of a plug-in's replicas, which find its class where this process finds it."""
    own, found = spec.environment(), folders_of(classes_in(spec.type, spec.config))
    return {**own, "env_vars": {**found, **own.get("env_vars", {})}} if found else own
