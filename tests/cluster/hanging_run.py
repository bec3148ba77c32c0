"""A rehearsed run on Ray, as a script, whose parts a test stops: prints the names and ids of its processes, then runs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
from cluster_run import run_config

from genevolve_ray.cluster.launch import on_ray
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.store.run import RunStore


class Spoken(NullMonitor):
    """Prints notes."""

    def note(self, text: str) -> None:
        """Print one line."""
        print(f"note: {text}", flush=True)


async def main(root: Path, model: Path, steps: int) -> None:
    """Run, and print a line for each committed step."""
    config = run_config(
        root,
        "rehearsal={tool_calls: 1, turn_seconds: 0.2}",
        "experience.enabled=true",
        "learner.ved.coefficient=0",
        "loop.validate_every=0",
        "heldout.requests=0",
        "loop.requests_per_step=2",
        "loop.group_size=2",
        f"loop.steps={steps}",
        "cluster.hang_timeout=3",
        *(
            f"cluster.{role}.{key}"
            for role in ("tools", "renderer", "judge")
            for key in ("health_timeout=1", "health_period=0.5")
        ),
    )
    monitor = Spoken()
    with RunStore.open(str(root / "run"), config, run_seed=config.seed, keep=config.checkpoints) as store:
        requests = config.requests.build(store.images)
        async with on_ray(
            config, run_name="hang", images_uri=store.images.uri, model_dir=model, monitor=monitor
        ) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, monitor, ports.experience)
            version = await loop.start()
            for process in psutil.Process().children(recursive=True):
                print(f"process: {process.pid} {process.name()}", flush=True)
            print("ready", flush=True)
            await loop.run(version)
        print("done", len(store.committed_steps()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
