"""Arguments of the benchmarks on atlas. Nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(
    help="Run a policy on a benchmark and score it: `genevolve bench genevolve --data DIR --output DIR`.",
    no_args_is_help=True,
)
BenchPolicy = Annotated[
    str,
    typer.Option("--policy", help="A run (its best checkpoint), a model folder, or cold-start: the shipped policy."),
]
BenchOut = Annotated[Path, typer.Option("--json", help="Output file of the result.")]
WorldSeed = Annotated[int, typer.Option("--world-seed", min=0, help="Seed of the test world.")]
BenchRequests = Annotated[int, typer.Option("--requests", min=1, help="Number of held-out requests.")]
BenchEngine = Annotated[str, typer.Option("--engine", help="vllm or transformers.")]
BenchExperience = Annotated[str, typer.Option("--experience", help="Guidance: none, ideal or misleading.")]


@bench.command("atlas")
def bench_atlas(
    policy: BenchPolicy,
    out: BenchOut,
    world_seed: WorldSeed = 1,
    requests: BenchRequests = 200,
    engine: BenchEngine = "vllm",
    experience: BenchExperience = "none",
) -> None:
    """Score a policy on held-out requests, sampled and greedy. Names come from the test partition for every seed.

    Example: `genevolve bench atlas --policy runs/demo --requests 50 --json out/atlas.json`
    """
    from genevolve_ray.commands.benchmarks import bench_run

    bench_run("atlas", policy, out, world_seed=world_seed, requests=requests, engine=engine, experience=experience)


@bench.command("atlas-long")
def bench_atlas_long(
    policy: BenchPolicy,
    out: BenchOut,
    world_seed: WorldSeed = 1,
    requests: BenchRequests = 200,
    engine: BenchEngine = "vllm",
    experience: BenchExperience = "none",
) -> None:
    """Score a policy where the generator obeys one of several wordings. Names come from the test partition.

    Example: `genevolve bench atlas-long --policy cold-start --experience ideal --json out/ideal.json`
    """
    from genevolve_ray.commands.benchmarks import bench_run

    bench_run("atlas-long", policy, out, world_seed=world_seed, requests=requests, engine=engine, experience=experience)


@bench.command("atlas-sight")
def bench_atlas_sight(
    policy: BenchPolicy,
    out: BenchOut,
    world_seed: WorldSeed = 1,
    requests: BenchRequests = 200,
    engine: BenchEngine = "vllm",
    experience: BenchExperience = "none",
    images: Annotated[
        str,
        typer.Option("--images", help="Pictures for the policy: shown, blank (gray) or shuffled (among the hits)."),
    ] = "shown",
) -> None:
    """Score a policy where only sight tells the right picture. Names and looks come from the test partition.

    Example: `genevolve bench atlas-sight --policy cold-start --images blank --json out/blank.json`
    """
    from genevolve_ray.commands.benchmarks import bench_run

    bench_run(
        "atlas-sight",
        policy,
        out,
        world_seed=world_seed,
        requests=requests,
        engine=engine,
        experience=experience,
        pictures=images,
    )
