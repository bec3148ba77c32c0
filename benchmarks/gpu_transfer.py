"""Weights from the learner's memory into vLLM's, checked on the machine at hand: `python -m benchmarks.gpu_transfer`.

A short evolution of the shipped policy on real Ray, vLLM and learner. Every version goes the way that is asked for
(`nccl` needs two GPUs, `ipc` one, `gloo` none), is verified by the probe, and sampled from; a rollout worker is killed
on the way and has to come back with the current version. Prints JSON. Exit code 0 when every check holds, 1 when one does
not, 2 when the devices are not there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import prepare_process

WAYS = ("nccl", "ipc", "gloo")
_LIMITS = {"float32": 1e-4, "bfloat16": 0.03}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; without `--way` the best for the GPUs that are there, which may be none."""
    parser = argparse.ArgumentParser(prog="gpu_transfer", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--way", choices=WAYS, help="how weights travel (default: nccl on 2 GPUs, ipc on 1)")
    parser.add_argument("--steps", type=int, default=4, help="learner steps (default 4, at least 3)")
    parser.add_argument("--workers", type=int, default=1, help="rollout workers (default 1)")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the learner (default 1; one with ipc)")
    parser.add_argument("--dtype", choices=list(_LIMITS), default="float32", help="of engine and learner")
    parser.add_argument("--sleep", action="store_true", help="engines sleep during the learner's step")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="model folder (default: the shipped cold start)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here as well")
    parsed = parser.parse_args(arguments)
    if parsed.steps < 3 or parsed.workers < 1 or parsed.ranks < 1:
        parser.error(
            f"--steps {parsed.steps} must be at least 3, --workers {parsed.workers} and --ranks {parsed.ranks} 1"
        )
    return parsed


def settings(parsed: argparse.Namespace, policy: Path) -> list[str]:
    """Return the overrides of the atlas preset."""
    overrides = [
        f"policy.model={policy}",
        f"cluster.weights={parsed.way}",
        f"cluster.rollout_workers={parsed.workers}",
        f"cluster.learner_ranks={parsed.ranks}",
        f"engine.dtype={parsed.dtype}",
        f"learner.dtype={parsed.dtype}",
        f"loop.parity_limit={_LIMITS[parsed.dtype]}",
        f"engine.vllm.sleep={parsed.sleep}",
        f"loop.steps={parsed.steps}",
        "cluster.start_timeout=600",
        "loop.requests_per_step=2",
        "loop.group_size=4",
        "loop.validate_every=0",
        "heldout.requests=0",
        "experience.enabled=false",
        "learner.ved.coefficient=0",
    ]
    if parsed.way == "gloo":
        return overrides
    share = 1.0 if parsed.way == "nccl" else round(1 / (1 + parsed.workers), 2)
    gpus = [f"{part}.device=cuda" for part in ("engine", "learner")]
    return [*overrides, *gpus, f"cluster.learner_gpus={share}", f"cluster.rollout_gpus={share}"]


async def transfer(parsed: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Evolve, kill a worker after the first step, and return what came of it; `ok` says whether every check holds."""
    from benchmarks.world import default_policy
    from genevolve_ray.cluster.launch import on_ray
    from genevolve_ray.config import load_config
    from genevolve_ray.evolution.loop import Evolution
    from genevolve_ray.evolution.monitor import NullMonitor
    from genevolve_ray.evolution.store.run import RunStore

    class Killer(NullMonitor):
        """Kills a rollout worker once the first step is committed."""

        def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
            if step == 1:
                kill("ray::RolloutWorker")

    policy = parsed.policy or default_policy()
    config = load_config("atlas", settings(parsed, policy))
    with (
        RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store,
    ):
        requests = config.requests.build(store.images)
        async with on_ray(config, run_name="transfer", images_uri=store.images.uri, model_dir=policy) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, Killer(), None)
            before = {worker.pid for worker in await ports.rollouts.stats()}
            await loop.run(await loop.start())
            after = await ports.rollouts.stats()
        rows, manifests = list(store.metrics()), list(store.manifests())
    limit = config.loop.parity_limit
    checks = {
        "steps": len(rows) == parsed.steps,
        "weights_changed": len({manifest.state_hash for manifest in manifests}) == parsed.steps,
        "probes_agree": all(row["probe_difference"] <= limit for row in rows),
        "samples_agree": all(row["parity"] <= limit and row["staleness_max"] == 0 for row in rows),
        "one_worker_came_back": len(before - {worker.pid for worker in after}) == 1,
        "every_worker_has_the_last_version": {worker.version for worker in after} == {parsed.steps},
    }
    return {
        "ok": all(checks.values()),
        "way": parsed.way,
        "device": _device(parsed.way),
        "dtype": parsed.dtype,
        "sleep": parsed.sleep,
        "workers": parsed.workers,
        "ranks": parsed.ranks,
        "checks": checks,
        "limit": limit,
        "probe_difference": [row["probe_difference"] for row in rows],
        "parity": [row["parity"] for row in rows],
        "seconds_sync": [row["seconds_sync"] for row in rows],
    }


def kill(title: str) -> None:
    """Kill one process of a kind among ours with SIGKILL."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # another that ends at this very moment
            if title in " ".join(process.cmdline()):
                process.kill()
                return
    raise RuntimeError(f"there is no process {title!r}")


def _device(way: str) -> str:
    import torch

    return "cpu" if way == "gloo" else torch.cuda.get_device_name()


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parsed = parse(arguments)
    import torch

    there = torch.cuda.device_count()
    parsed.way = parsed.way or ("nccl" if there > 1 else "ipc")
    needed = {"nccl": parsed.ranks + parsed.workers, "ipc": 1, "gloo": 0}[parsed.way]
    if there < needed:
        print(
            f"skipped: --way {parsed.way} with --ranks {parsed.ranks} and --workers {parsed.workers} needs {needed} GPUs, "
            f"torch {torch.__version__} sees {there} (--way gloo tries everything but the copying itself)",
            file=sys.stderr,
        )
        return 2
    prepare_process(1)  # for the processes that start from here: this one computes nothing
    with TemporaryDirectory(prefix="genevolve-transfer-") as folder:
        result = asyncio.run(transfer(parsed, Path(folder) / "run"))
    text = json.dumps(result, indent=2)
    print(text)
    if parsed.json:
        parsed.json.write_text(text + "\n", encoding="utf-8")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
