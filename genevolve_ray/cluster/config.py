"""Layout of a run on Ray. Importing this module is cheap."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from genevolve_ray.evolution.config import EvolutionConfig, InferenceConfig
from genevolve_ray.evolution.patience import time_limit
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.base import Config

EPSILON = 1e-6
"""Sums of fractions of a GPU or core that are closer than this are equal."""


class ServiceConfig(Config):
    """Configure one Ray Serve application: the number of replicas and the resources of each."""

    replicas: int = Field(default=1, ge=1)
    """Replicas that Serve keeps running."""
    max_replicas: int | None = Field(default=None, ge=1)
    """With it Serve adds replicas up to so many while calls pile up, and goes back to `replicas` when they do not."""
    target_ongoing: int | None = Field(default=None, ge=1)
    """Calls on a replica beyond which another is added; None: half of `max_ongoing`."""
    cpus: float = Field(default=0.1, gt=0)
    """CPUs that Ray reserves for a replica; fractions share one."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for a replica; fractions share one."""
    max_ongoing: int = Field(default=64, ge=1)
    """Calls a replica works on at once."""
    max_queued: int = Field(default=1024, ge=1)
    """Calls that may wait at a caller; beyond, the caller receives an overload error and tries again."""
    attempts: int = Field(default=4, ge=1)
    """How often a call is tried when a replica dies or is overloaded, before it is an infrastructure failure."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds that one try may take; None: longer than all tries of the services behind the plug-in, at least 300."""
    health_period: float = Field(default=2.0, gt=0)
    """Seconds between health checks, within which a dead replica is noticed and replaced."""
    health_timeout: float = Field(default=8.0, gt=0)
    """Seconds for the answer to a health check; a replica that misses three in a row is replaced."""

    @model_validator(mode="after")
    def _bounds(self) -> ServiceConfig:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below replicas={self.replicas}")
        return self

    def limited(self, spec: PluginSpec) -> ServiceConfig:
        """Return these settings with a time limit: the given one, or that of the plug-in's own tries."""
        return self if self.timeout is not None else self.model_copy(update={"timeout": time_limit(spec)})

    @property
    def most_replicas(self) -> int:
        """Largest number of concurrent replicas."""
        return self.max_replicas or self.replicas


class ClusterConfig(Config):
    """Configure the placement of a run.

    By default, learner and engines share the machine and take turns, because a synchronous step never needs both
    concurrently. With GPUs, whole ones for each (`rollout_gpus`, `learner_gpus`) keep them apart; fractions that add up
    to one let them share.
    """

    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray lays learner ranks and rollout workers out: together on few nodes, or apart."""
    address: str | None = None
    """Ray address; None starts a private cluster on this machine (or joins RAY_ADDRESS)."""
    rollout_workers: int = Field(default=1, ge=1)
    """Rollout workers, each with an engine of its own."""
    rollout_cpus: float = Field(default=0.35, gt=0)
    """CPUs that Ray reserves for a rollout worker."""
    rollout_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for a rollout worker."""
    rollout_attempts: int = Field(default=3, ge=1)
    """How often a rollout is tried when the worker that plays it dies."""
    max_restarts: int = Field(default=3, ge=0)
    """How often a dead rollout worker, or a dead learner, is replaced before its place is given up."""
    learner_ranks: int = Field(default=1, ge=1)
    """Processes that the learner is sharded over (FSDP2), placed together; each takes the following."""
    learner_cpus: float = Field(default=0.3, gt=0)
    """CPUs that Ray reserves for a rank of the learner."""
    learner_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for a rank of the learner."""
    experience_cpus: float = Field(default=0.05, gt=0)
    """CPUs that Ray reserves for the experience memory."""
    experience_attempts: int = Field(default=3, ge=1)
    """How often a step's experience is worked out when the memory's process dies."""
    learner_timeout: float = Field(default=120.0, gt=0)
    """Seconds that a rank of the learner waits for the others, before they count as lost."""
    hang_timeout: float = Field(default=25.0, gt=0)
    """Shortest time without an answer after which a process counts as stuck and is replaced, in seconds. A call that the
    process cannot interrupt for an answer may take five times its usual time."""
    hang_first: float = Field(default=1800.0, gt=0)
    """The same for such a call before the first of its kind has ended, in seconds."""
    start_timeout: float = Field(default=300.0, gt=0)
    """Seconds that actors and services may take to start."""
    weights: Literal["host", "nccl", "ipc", "gloo"] = "host"
    """Transport of a version's weights to the engines. `host`: as files, once to every node through Ray's object store.
    `nccl`: from GPU to GPU, with separate GPUs for learner and engines. `ipc`: learner and engines share a GPU.
    `gloo`: for tests of the GPU transports on CPUs. Where it is not given: `nccl` or `ipc` where learner and vLLM are on
    GPUs and no outside worker, rehearsal or published adapter needs files (not run on a GPU)."""
    weights_piece_mib: int = Field(default=256, ge=1)
    """Size of the pieces in which tensors travel to engines, in MiB; a larger tensor is a piece of its own. The next
    piece is packed while one is sent, so both ends hold two (`ipc`: one). Not run on a GPU."""
    weights_timeout: float = Field(default=300.0, gt=0)
    """Seconds that a transfer of a version between GPUs may take; processes still in it after that count as dead."""
    object_store_mib: int = Field(default=256, ge=80)
    """Size of Ray's object store in a private cluster, MiB."""
    log_to_driver: bool = False
    """Print what workers print; otherwise it stays in Ray's log files."""
    dashboard: bool = False
    """Start Ray's dashboard with a private cluster, on the loopback; its address is printed. Ray then keeps a record of each
    call for it, which it otherwise does not."""
    metrics: bool = False
    """Rollout workers report samples and versions through Ray's metrics; the address of each node's metrics is printed."""
    tools: ServiceConfig = ServiceConfig()
    """Replicas of the tools."""
    renderer: ServiceConfig = ServiceConfig()
    """Replicas of the renderer."""
    judge: ServiceConfig = ServiceConfig()
    """Replicas of the judge."""
    judges: dict[str, ServiceConfig] = Field(default_factory=dict)
    """Replicas of further judges, by the names of `judges`."""

    def service(self, role: str) -> ServiceConfig | None:
        """Return the settings of the service of a role, `judges.NAME` for a further judge; None for a role without one."""
        first, _, name = role.partition(".")
        if name:
            return self.judges.get(name, ServiceConfig())
        found = getattr(self, first, None)
        return found if isinstance(found, ServiceConfig) else None


class PlacedConfig(EvolutionConfig):
    """Configure the results and the placement of a run: the settings that its parts on Ray need."""

    cluster: ClusterConfig = ClusterConfig()
    """Where the parts of the run are placed."""
    inference: InferenceConfig = InferenceConfig()
    """How rows are processed outside training."""

    @property
    def services(self) -> dict[str, ServiceConfig]:
        """The settings of the run's services by role, with the time limits of their plug-ins."""
        roles = ("tools", "renderer", *self.judge_specs)
        return {role: service.limited(self.plugin(role)) for role in roles if (service := self.cluster.service(role))}

    @model_validator(mode="after")
    def _judges_exist(self) -> PlacedConfig:
        if unknown := sorted(set(self.cluster.judges) - set(self.judges)):
            raise ValueError(f"cluster.judges.{unknown[0]}: judges has {', '.join(self.judges) or 'no entries'}")
        return self

    @property
    def samples_per_engine(self) -> int:
        """Samples that one engine plays at once, at most: the workers share those of a step."""
        return math.ceil(super().samples_per_engine / self.cluster.rollout_workers)

    @property
    def part_tokens(self) -> int:
        """Least number of tokens with which the learner begins early: as many as its ranks compute side by side."""
        return super().part_tokens * self.cluster.learner_ranks // self.learner.context_parallel

    @model_validator(mode="after")
    def _sampled_as_the_profile(self) -> PlacedConfig:
        """Sample rows as the profile proposes, where nothing else is set."""
        if (proposed := self.protocol.sampling) is not None:
            left = proposed.model_dump().keys() - self.inference.model_fields_set
            sampling = {key: getattr(proposed, key) for key in left}
            # Frozen from the end of construction.
            object.__setattr__(self, "inference", self.inference.model_copy(update=sampling))
        return self


def usual_way(config: PlacedConfig) -> Literal["host", "nccl", "ipc"]:
    """Return the transport of weights that suits the devices of a run without workers outside.

    An adapter that the learner publishes is small as files. A transport without files would send whole weights.
    """
    cluster, engine, learner = config.cluster, config.engine, config.learner
    if config.rehearsal is not None or engine.kind != "vllm" or learner.publishes_adapter:
        return "host"
    reserved = (cluster.learner_gpus, cluster.rollout_gpus)
    if "cpu" in (engine.device, learner.device) or not all(reserved):
        return "host"
    if all(gpus.is_integer() for gpus in reserved):
        return "nccl"
    one_process_each = cluster.learner_ranks == engine.vllm.tensor_parallel_size == 1
    return "ipc" if one_process_each and on_one_gpu(cluster) else "host"


def on_one_gpu(cluster: ClusterConfig) -> bool:
    """Return whether learner and engines reserve fractions of a GPU that add up to at most one."""
    learner, engines = cluster.learner_ranks * cluster.learner_gpus, cluster.rollout_workers * cluster.rollout_gpus
    return bool(learner and engines) and learner + engines <= 1 + EPSILON
