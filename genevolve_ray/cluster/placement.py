"""Resource demands of a run, and checks of a cluster against them before anything expensive starts."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genevolve_ray.cluster.config import EPSILON, on_one_gpu
from genevolve_ray.cluster.errors import PlacementError

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig, ServiceConfig

_PLACEMENT_SECONDS = 10.0


@dataclass(frozen=True)
class Demand:
    """Describe the resources of one process; they must be on one node."""

    part: str
    resources: Mapping[str, float]

    def __str__(self) -> str:
        """Return the demand for messages."""
        return f"{self.part} ({_listed(self.resources)})"


def gang_demands(config: PlacedConfig) -> list[Demand]:
    """Return the demands of learner and rollout workers: bundle i is rank i of the learner, the workers follow."""
    return [*learner_demands(config), *worker_demands(config)]


def learner_demands(config: PlacedConfig) -> list[Demand]:
    """Return the demands of the learner, one for each rank."""
    cluster = config.cluster
    ranks = range(cluster.learner_ranks)
    names = [f"learner rank {i}" for i in ranks] if len(ranks) > 1 else ["learner"]
    return [Demand(name, _resources(cluster.learner_cpus, cluster.learner_gpus)) for name in names]


def worker_demands(config: PlacedConfig, *, engines: bool = True) -> list[Demand]:
    """Return the demands of the rollout workers; workers without an engine need no GPU."""
    cluster = config.cluster
    resources = _resources(cluster.rollout_cpus, cluster.rollout_gpus if engines else 0.0)
    return [Demand(f"rollout worker {i}", resources) for i in range(cluster.rollout_workers)]


def service_demands(config: PlacedConfig, roles: Collection[str] | None = None) -> list[Demand]:
    """Return the demands of the replicas of services and of the experience memory, where there is one; None: of all."""
    cluster, services = config.cluster, config.services
    wanted = [*services, "experience"] if roles is None else roles
    demands = [demand for role in services if role in wanted for demand in replica_demands(role, services[role])]
    if "experience" in wanted and config.experience.enabled:
        demands.append(Demand("experience memory", _resources(cluster.experience_cpus, 0)))
    return demands


def replica_demands(role: str, service: ServiceConfig) -> list[Demand]:
    """Return the demands of the replicas of one service."""
    return [Demand(f"{role} replica {i}", _resources(service.cpus, service.gpus)) for i in range(service.replicas)]


def check_devices(config: PlacedConfig) -> None:
    """Check that each part that computes on a GPU reserves one.

    Raises PlacementError naming the invalid keys and values.
    """
    cluster = config.cluster
    check_weights_way(config)
    pairs = (
        ("engine.device", config.engine.device, "cluster.rollout_gpus", cluster.rollout_gpus),
        ("learner.device", config.learner.device, "cluster.learner_gpus", cluster.learner_gpus),
    )
    if config.rehearsal is not None:
        return
    if cluster.learner_ranks % config.learner.context_parallel:
        raise PlacementError(
            f"learner.context_parallel={config.learner.context_parallel} does not divide "
            f"cluster.learner_ranks={cluster.learner_ranks}"
        )
    if cluster.learner_ranks > 1 and config.learner.device != "cpu" and 0 < cluster.learner_gpus < 1:
        raise PlacementError(
            f"cluster.learner_ranks={cluster.learner_ranks} needs a whole GPU for each, "
            f"cluster.learner_gpus={cluster.learner_gpus:g} may put two on one"
        )
    ways = config.engine.vllm.tensor_parallel_size
    if config.engine.kind == "vllm" and config.engine.device != "cpu" and ways > 1 and cluster.rollout_gpus < ways:
        raise PlacementError(
            f"engine.vllm.tensor_parallel_size={ways} needs this many GPUs for each rollout worker, "
            f"cluster.rollout_gpus={cluster.rollout_gpus:g}"
        )
    if config.engine.vllm.sleep and config.engine.device != "cpu" and not on_one_gpu(cluster):
        raise PlacementError(
            "engine.vllm.sleep=true is for engines on the learner's GPU, but cluster.learner_gpus="
            f"{cluster.learner_gpus:g} and cluster.rollout_gpus={cluster.rollout_gpus:g} reserve more than one"
        )
    for key, device, reservation, gpus in pairs:
        if device != "cpu" and not gpus:
            raise PlacementError(f"{key}={device} computes on a GPU, but {reservation}={gpus:g} reserves none")


def check_weights_way(config: PlacedConfig) -> None:
    """Check that the transport `cluster.weights` is possible. Raises PlacementError naming the invalid values."""
    cluster, engine = config.cluster, config.engine
    way = cluster.weights
    if way == "host":
        return
    if config.rehearsal is not None:
        raise PlacementError(f"cluster.weights={way} sends a policy's weights, and a rehearsal has none: use host")
    if engine.kind != "vllm":
        raise PlacementError(f"cluster.weights={way} needs engine.kind=vllm, got {engine.kind}")
    devices = f"engine.device={engine.device} and learner.device={config.learner.device}"
    on_cpu = [device == "cpu" for device in (engine.device, config.learner.device)]
    if way == "gloo" and not all(on_cpu):
        raise PlacementError(f"cluster.weights=gloo sends between CPUs, got {devices}: use nccl, ipc or host")
    if way != "gloo" and any(on_cpu):
        raise PlacementError(f"cluster.weights={way} sends between GPUs, got {devices}: use gloo or host")
    reserved = f"cluster.learner_gpus={cluster.learner_gpus:g} and cluster.rollout_gpus={cluster.rollout_gpus:g}"
    if way == "nccl" and not all(gpus.is_integer() for gpus in (cluster.learner_gpus, cluster.rollout_gpus)):
        raise PlacementError(f"cluster.weights=nccl needs whole GPUs for each, {reserved} may put two on one: use ipc")
    if way == "ipc" and (cluster.learner_ranks > 1 or engine.vllm.tensor_parallel_size > 1):
        raise PlacementError(
            "cluster.weights=ipc is for one GPU that learner and engines share, got "
            f"cluster.learner_ranks={cluster.learner_ranks} and "
            f"engine.vllm.tensor_parallel_size={engine.vllm.tensor_parallel_size}: use nccl"
        )
    if way == "ipc" and not on_one_gpu(cluster):
        raise PlacementError(
            f"cluster.weights=ipc is for one GPU that learner and engines share, {reserved} for each of "
            f"cluster.rollout_workers={cluster.rollout_workers} are more: use nccl"
        )


async def check_shared(learner: Sequence[Any], workers: Sequence[Any]) -> None:
    """Check that actors are on one GPU, as `cluster.weights=ipc` requires.

    Raises PlacementError naming their places.
    """
    places = [await actor.__ray_call__.remote(_gpus_of) for actor in (*learner, *workers)]
    if any(place != places[0] for place in places):
        names = [*(f"learner rank {i}" for i in range(len(learner))), *(f"worker {i}" for i in range(len(workers)))]
        listed = ", ".join(f"{name} {place}" for name, place in zip(names, places, strict=True))
        raise PlacementError(
            f"cluster.weights=ipc needs learner and engines on one GPU, got {listed}: use host or nccl"
        )


def _gpus_of(_: Any) -> str:
    import ray

    context = ray.get_runtime_context()
    return f"on GPU {', '.join(context.get_accelerator_ids().get('GPU', ()))} of node {context.get_node_id()[:8]}"


def check_environment(role: str, environment: Mapping[str, Any], *, local: bool) -> None:
    """Check a plug-in's runtime environment as far as possible without building it.

    Args:
        role: the role of the plug-in.
        environment: the environment that Ray would build.
        local: whether the cluster is this machine, so that an interpreter must be here.

    Raises:
        PlacementError: naming the key, with Ray's own reason.
    """
    from ray.runtime_env import RuntimeEnv

    try:
        RuntimeEnv(**environment)
    except (TypeError, ValueError) as error:
        raise PlacementError(f"{role}.runtime_env: {' '.join(str(error).split())}") from error
    # Ray would otherwise try to start it without a limit.
    python = str(environment.get("py_executable") or "").split(" ")[0]
    if local and python and shutil.which(python) is None:
        raise PlacementError(f"{role}.runtime_env.py_executable: no such program: {python!r}")


def check_fits(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]], free: Mapping[str, float]) -> None:
    """Check that each demand fits on some node, and all of them into the free resources.

    Args:
        demands: the required resources.
        nodes: resources of each living node.
        free: unreserved resources of the whole cluster.

    Raises:
        PlacementError: naming required and existing resources.
    """
    for demand in demands:
        if not any(_within(demand.resources, node) for node in nodes):
            raise PlacementError(f"no node can hold the {demand}: the cluster has {_nodes(nodes)}")
    total: dict[str, float] = {}
    for demand in demands:
        for name, amount in demand.resources.items():
            total[name] = total.get(name, 0.0) + amount
    if not _within(total, free):
        relevant = {name: free.get(name, 0.0) for name in total}
        raise PlacementError(
            f"the run requests {_listed(total)} in total, and {_listed(relevant)} is free on {_nodes(nodes)}; "
            f"demands: {', '.join(map(str, demands))}"
        )


def reserve(demands: Sequence[Demand], strategy: str = "PACK") -> Any:
    """Return a placement group with one bundle per demand.

    Raises PlacementError when it is not ready within seconds.
    """
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(demand.resources) for demand in demands], strategy=strategy)
    if not group.wait(_PLACEMENT_SECONDS):
        remove_placement_group(group)
        raise PlacementError(
            f"{', '.join(map(str, demands))} could not be placed together within {_PLACEMENT_SECONDS:g} s: "
            "other work occupies the nodes that are large enough"
        )
    return group


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _within(asked: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(amount <= there.get(name, 0.0) + EPSILON for name, amount in asked.items())


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    sizes = [_listed({name: node.get(name, 0.0) for name in ("CPU", "GPU")}) for node in nodes]
    return f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} with {' | '.join(sizes)}"
