"""A run without its model on real Ray, for what is measured about the loop and its distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Options, say
from genevolve_ray.config import RunConfig, load_config

ROOT = Path(__file__).parents[1]


def rehearsal_config(options: Options, *overrides: str, render: float = 0.0, judge: float = 0.0) -> RunConfig:
    """Return a run over the null parts; `render` and `judge` are the medians of their latencies in seconds."""
    environment = f"{{env_vars: {{PYTHONPATH: '{ROOT}'}}}}"
    return load_config(
        "atlas",
        [
            f"policy.model={options.policy}",
            "rehearsal={turn_seconds: 0.02}",
            "profile=release",
            "loop.validate_every=0",
            "loop.checkpoint_every=1000000",
            "heldout.requests=0",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:Tools'}",
            f"renderer={{type: 'benchmarks.null_parts:Renderer', config: {{median: {render}}}}}",
            f"judge={{type: 'benchmarks.null_parts:Judge', config: {{median: {judge}}}}}",
            *(f"{role}.runtime_env={environment}" for role in ("tools", "renderer", "judge")),
            "cluster.renderer.max_ongoing=1000",
            "cluster.judge.max_ongoing=1000",
            "cluster.tools.max_ongoing=1000",
            "cluster.renderer.timeout=600",
            *overrides,
        ],
    )


async def rehearse(config: RunConfig, folder: Path, policy: Path) -> list[dict[str, Any]]:
    """Run it on Ray and return the metrics of its steps."""
    from genevolve_ray.cluster.launch import on_ray
    from genevolve_ray.evolution.loop import Evolution
    from genevolve_ray.evolution.monitor import NullMonitor
    from genevolve_ray.evolution.store.run import RunStore

    with (
        RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store,
    ):
        requests = config.requests.build(store.images)
        async with on_ray(config, run_name=folder.name, images_uri=store.images.uri, model_dir=policy) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, NullMonitor(), None)
            await loop.run(await loop.start())
        return store.metrics()


@contextmanager
def simulated_nodes(count: int, cpus: float) -> Iterator[str]:
    """Start Ray with several nodes on this machine and return its address."""
    from genevolve_ray.cluster.session import set_defaults

    set_defaults()
    from ray.cluster_utils import Cluster

    say(f"starting {count} simulated nodes")
    node: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": 400 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            cluster.add_node(**node)
        yield str(cluster.address)
    finally:
        cluster.shutdown()
