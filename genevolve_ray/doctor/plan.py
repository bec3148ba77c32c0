"""`genevolve plan`: the resources that a run requests from a cluster, and whether they fit, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from genevolve_ray.cluster.errors import PlacementError
from genevolve_ray.cluster.placement import Demand, check_devices, check_fits, gang_demands, service_demands
from genevolve_ray.cluster.session import cluster_address, cluster_nodes
from genevolve_ray.doctor import settings_tree
from genevolve_ray.doctor.machine import find_gpus

if TYPE_CHECKING:
    from genevolve_ray.config import RunConfig

Resources = Mapping[str, float]


@dataclass(frozen=True)
class PlanLine:
    """Describe equal processes: their resources, and how many more may start while a service is under load."""

    part: str
    count: int
    each: Resources
    more: int = 0


@dataclass(frozen=True)
class PlacementPlan:
    """Describe the requested resources, the available nodes, and the reason for a misfit (empty where the run fits)."""

    lines: Sequence[PlanLine]
    nodes: Sequence[Resources]
    where: str
    obstacle: str
    flow: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """True when the run can start."""
        return not self.obstacle

    def total(self, resource: str, *, most: bool = False) -> float:
        """Return the amount of a resource that all processes request; `most` includes those of a loaded service."""
        return sum((line.count + (line.more if most else 0)) * line.each.get(resource, 0.0) for line in self.lines)


def make_plan(config: RunConfig, nodes: Sequence[Resources] | None = None) -> PlacementPlan:
    """Return the plan of a run.

    Args:
        config: the run.
        nodes: the nodes to plan for; by default those of the cluster that the run would join, or this machine.

    Raises:
        PlacementError: when the named cluster cannot be reached.
    """
    where = "the given nodes"
    if nodes is None:
        nodes, where = _existing(config)
    free: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            free[name] = free.get(name, 0.0) + amount
    demands = [*gang_demands(config), *service_demands(config)]
    obstacle = ""
    try:
        check_devices(config)
        _check_sharded(config)
        check_fits(demands, nodes, free)
    except PlacementError as error:
        obstacle = str(error)
    return PlacementPlan(_lines(demands, config), nodes, where, obstacle, _flow(config))


def parse_nodes(texts: Sequence[str]) -> list[dict[str, float]]:
    """Parse nodes such as `8cpu`, `64cpu+8gpu`, `4x64cpu+8gpu`. Raises ValueError naming the invalid text."""
    nodes: list[dict[str, float]] = []
    for text in texts:
        count, times, rest = text.lower().partition("x")
        try:
            copies = int(count) if times else 1
            node = {"CPU": 0.0, "GPU": 0.0}
            for part in (rest if times else text.lower()).split("+"):
                name = next(n for n in ("cpu", "gpu") if part.endswith(n))
                node[name.upper()] += float(part.removesuffix(name))
        except (ValueError, StopIteration) as error:
            raise ValueError(f"node {text!r}: write 8cpu, 64cpu+8gpu or 4x64cpu+8gpu") from error
        if copies < 1 or min(node.values()) < 0:
            raise ValueError(f"node {text!r}: numbers must be positive")
        nodes += [dict(node) for _ in range(copies)]
    return nodes


def print_plan(plan: PlacementPlan) -> None:
    """Print a plan as a table, and its conclusion."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("part", "processes", "CPU each", "GPU each", "CPU", "GPU", title="resources of the run")
    for line in plan.lines:
        cpu, gpu = line.each.get("CPU", 0.0), line.each.get("GPU", 0.0)
        count = f"{line.count} to {line.count + line.more}" if line.more else str(line.count)
        table.add_row(line.part, count, f"{cpu:g}", f"{gpu:g}", f"{line.count * cpu:g}", f"{line.count * gpu:g}")
    table.add_row("all", "", "", "", f"{plan.total('CPU'):g}", f"{plan.total('GPU'):g}", style="bold")
    console.print(table)
    for name, text in plan.flow.items():
        console.print(f"{name}: {text}")
    there = ", ".join(f"{n.get('CPU', 0):g} CPU + {n.get('GPU', 0):g} GPU" for n in plan.nodes) or "nothing"
    console.print(f"available on {plan.where}: {there}", soft_wrap=True)
    if not plan.fits:
        console.print(f"[red]does not fit:[/] {plan.obstacle}", soft_wrap=True)
        return
    console.print("[green]fits[/]")
    total = sum(n.get("CPU", 0.0) for n in plan.nodes), sum(n.get("GPU", 0.0) for n in plan.nodes)
    most = plan.total("CPU", most=True), plan.total("GPU", most=True)
    if most[0] > total[0] or most[1] > total[1]:
        console.print(
            f"services at their maximum would need {most[0]:g} CPU and {most[1]:g} GPU: they scale up only as far as resources permit"
        )


def _existing(config: RunConfig) -> tuple[list[dict[str, float]], str]:
    address = cluster_address(config.cluster)
    if address is None:
        return [{"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(len(find_gpus()))}], "this machine"
    return cluster_nodes(address), f"the cluster at {address}"


def _check_sharded(config: RunConfig) -> None:
    """Check that a service whose model is sharded over GPUs reserves as many for each replica.

    Raises PlacementError naming both keys.
    """
    for role, key, node in settings_tree.settings_nodes(config):
        service, model = config.cluster.service(role), getattr(node, "model", None)
        if service is None or not isinstance(model, Mapping) or str(model.get("device", "cpu")) == "cpu":
            continue
        ways = model.get("tensor_parallel_size", 1)
        if isinstance(ways, int) and ways > max(1, service.gpus):
            raise PlacementError(
                f"{key}.model.tensor_parallel_size={ways} needs this many GPUs for each replica, "
                f"cluster.{role}.gpus={service.gpus:g}"
            )


def _lines(demands: Sequence[Demand], config: RunConfig) -> list[PlanLine]:
    """Return demands with equal ones in one line, for any number of each."""
    lines = []
    for part, same in groupby(demands, key=lambda d: d.part.rstrip("0123456789 ")):
        group = list(same)
        role = part.removesuffix(" replica")
        service = config.cluster.service(role) if part.endswith(" replica") else None
        more = service.most_replicas - service.replicas if service is not None else 0
        lines.append(PlanLine(part, len(group), group[0].resources, more))
    return lines


def _flow(config: RunConfig) -> dict[str, str]:
    loop = config.loop
    batch = loop.requests_per_step * loop.group_size
    leased = batch * (loop.max_staleness + 1)
    running = min(leased, loop.max_running or leased)
    kind = f"asynchronous, tokens at most {loop.max_staleness} versions old" if loop.mode == "async" else "synchronous"
    places = config.cluster.rollout_workers * config.engine.max_concurrent
    ways = {
        "host": "as files, once to every node",
        "nccl": "from GPU to GPU in one NCCL group (cluster.weights=nccl)",
        "ipc": "within the GPU shared by learner and engines (cluster.weights=ipc)",
        "gloo": "from memory to memory over gloo (cluster.weights=gloo)",
    }
    return _shards(config) | {
        "loop": f"{kind}; {loop.steps} steps of {loop.requests_per_step} x {loop.group_size} samples",
        "in flight": f"at most {leased} samples leased, {running} running concurrently, {places} decoded concurrently",
        "weights": ways[config.cluster.weights],
    }


def _shards(config: RunConfig) -> dict[str, str]:
    """Return the line about an engine that is sharded over GPUs; {} where none is."""
    engine, reserved = config.engine, config.cluster.rollout_gpus
    ways = engine.vllm.tensor_parallel_size
    if config.rehearsal is not None or engine.kind != "vllm" or engine.device == "cpu" or ways == 1:
        return {}
    unused = f"; the other {reserved - ways:g} that each reserves stay unused" if reserved > ways else ""
    return {"engines": f"each over {ways} GPUs of one node, in processes of vLLM (executor mp){unused}"}
