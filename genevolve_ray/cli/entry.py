"""Command-line arguments of `genevolve`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from genevolve_ray import __version__
from genevolve_ray.cli.ask import ask
from genevolve_ray.cli.bench import bench
from genevolve_ray.cli.corpus import corpus
from genevolve_ray.cli.data import data
from genevolve_ray.cli.experience import experience
from genevolve_ray.cli.gateway import app as gateway
from genevolve_ray.cli.gateway import worker
from genevolve_ray.cli.new_run import init
from genevolve_ray.cli.output import OutputClosed, drop_output, guard_output
from genevolve_ray.cli.plugins import plugins
from genevolve_ray.cli.serve import serve
from genevolve_ray.cli.share import export
from genevolve_ray.cli.small import small
from genevolve_ray.cli.view import view
from genevolve_ray.records.secrets import mask_output, shown

app = typer.Typer(
    name="genevolve",
    help="Train self-evolving image-generation agents: rollouts, judgment and GRPO as actors on Ray, or in one process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genevolve_ray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options that precede a command."""


Preset = Annotated[str, typer.Argument(help="A preset (atlas, small) or your own YAML file.")]
Run = Annotated[Path | None, typer.Option("--run", help="Folder of the run; an existing run is resumed.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set loop.group_size=8. Repeatable.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="Run the same loop without Ray, in this process.")]


@app.command()
def evolve(
    preset: Preset,
    run: Run = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimization steps (loop.steps).")] = None,
    settings: Sets = None,
    in_process: InProcess = False,
) -> None:
    """Evolve a policy: K rollouts of each request, judged images, one GRPO step, new weights for the engines.

    The run ends with a comparison on held-out requests and a report. If it is stopped or killed, the same command resumes
    it at the first uncommitted step.

    Example: `genevolve evolve atlas --steps 4 --set loop.requests_per_step=4`
    """
    from genevolve_ray.commands.evolve import evolve_run
    from genevolve_ray.config import load_config

    overrides = [*(settings or []), *([f"loop.steps={steps}"] if steps is not None else [])]
    config = load_config(preset, overrides)
    evolve_run(config, run or Path("runs") / config.name, in_process=in_process)


@app.command()
def demo(
    preset: Annotated[str, typer.Argument(help="A preset: atlas, or small after `genevolve small setup`.")] = "atlas",
    run: Run = None,
    cold_start: Annotated[
        bool, typer.Option("--cold-start", help="First train the cold start of the preset atlas.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", help="GRPO steps (default: the preset's, 40 of the atlas).")
    ] = None,
    settings: Sets = None,
    in_process: InProcess = False,
) -> None:
    """Train the agent of a preset from its cold start, compare before and after, and write a report (`make demo`).

    Example: `genevolve demo --run runs/short --steps 4`
    """
    from genevolve_ray.commands.evolve import demo_run
    from genevolve_ray.config import load_config

    config = load_config(preset, [*([f"loop.steps={steps}"] if steps is not None else []), *(settings or [])])
    demo_run(config, run or _demo_folder(preset), cold_start=cold_start, in_process=in_process)


def _demo_folder(preset: str) -> Path:
    """Return where the demo of a preset or a file is written: no file shares the folder of the preset of its name."""
    from genevolve_ray.evolution.layers import is_file

    if is_file(preset):
        path = Path(preset).absolute()
        return Path("runs", f"demo-{path.parent.name}-{path.stem}")
    return Path("runs", "demo" if preset == "atlas" else f"demo-{preset}")


@app.command()
def sft(
    source: Annotated[
        str,
        typer.Argument(
            help="atlas, atlas-sight, atlas-long, atlas-base or atlas-judge, a file of rows, or "
            "hf://datasets/ORG/NAME/FILE."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the trained policy.")] = Path("runs/sft"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps (default: the recipe's).")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the curriculum (default: the recipe's).")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Torch threads (default: all cores).")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Rows only: the model folder or hub id to train.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")] = False,
    settings: Sets = None,
) -> None:
    """Run supervised fine-tuning: the cold start of a preset from scratch, or a model folder on published SFT rows.

    `atlas-base` is a small model from scratch that has read no trajectory: the start of a training on rows of the atlas.
    `atlas-judge` is a small vision-language model from scratch that learns the verdicts of the atlas judge.

    An interrupted training resumes when the same command is given again.

    Example: `genevolve sft samples/sft.jsonl --model runs/demo/sft --out runs/tuned --set dtype=float32`
    """
    from genevolve_ray.remote.hub_rows import is_hub_data

    rows = source.endswith((".jsonl", ".ndjson", ".parquet", ".json")) or is_hub_data(source)
    if model is not None or settings or rows:
        from genevolve_ray.commands.sft import sft_rows_run

        options = settings or []
        sft_rows_run(source, model, out, options, steps=steps, seed=seed, threads=threads, overwrite=overwrite)
        return
    from genevolve_ray.commands.sft import sft_run

    sft_run(source, out, steps=steps, seed=seed, threads=threads, overwrite=overwrite)


app.add_typer(bench, name="bench")


@app.command()
def ablate(
    preset: Annotated[str, typer.Argument(help="The preset: atlas, atlas-sight or atlas-long.")],
    out: Annotated[Path, typer.Option("--json", help="Output file of the result; the runs are kept in its folder.")],
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Any of sft, grpo, full, shuffled, constant, placebo, merged, redraws; full.NAME is a variant of full.",
        ),
    ] = "sft,grpo,full,shuffled,constant",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each arm.")] = 5,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimization steps of each run (loop.steps).")] = None,
    world_seed: Annotated[int, typer.Option("--world-seed", min=0, help="Seed of the test world.")] = 1,
    test_world: Annotated[
        str,
        typer.Option("--test-world", help="Seeds of several test worlds, such as 3,4; curves are then theirs, too."),
    ] = "",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Number of held-out requests.")] = 200,
    settings: Sets = None,
    arm_settings: Annotated[
        list[str] | None,
        typer.Option("--set-arm", help="A key for one arm: --set-arm grpo:learner.lr=2e-4. Repeatable."),
    ] = None,
) -> None:
    """Measure the contribution of each component: arms that differ in one aspect, over several seeds, with intervals.

    `shuffled` gives the teacher another request's experience, `constant` one fixed text, and `placebo` neutral words of
    equal length. They separate the content of experience from the mere presence of a teacher. `merged` teaches the
    majority of near bundles. `redraws` has no teacher: stuck groups are sampled again with a guide. Finished runs are not
    repeated.

    Example: `genevolve ablate atlas --arms grpo,full --seeds 2 --steps 10 --json runs/ablation.json`
    """
    from genevolve_ray.commands.ablation import ablate_run

    ablate_run(
        preset,
        arms,
        out,
        seeds=seeds,
        steps=steps,
        world_seed=world_seed,
        requests=requests,
        settings=settings or [],
        arm_settings=arm_settings or [],
        test_worlds=test_world,
    )


@app.command()
def plan(
    preset: Preset,
    settings: Sets = None,
    nodes: Annotated[
        list[str] | None, typer.Option("--node", help="Plan for these nodes: --node 4x64cpu+8gpu. Repeatable.")
    ] = None,
) -> None:
    """Show the resources that a run requests and whether they fit, without starting anything. Exit code 1 if they do not.

    Without --node, the plan uses the cluster that the run would join (cluster.address, RAY_ADDRESS), or this machine.

    Example: `genevolve plan paper --set cluster.rollout_workers=8 --node 2x64cpu+8gpu`
    """
    from genevolve_ray.config import load_config
    from genevolve_ray.doctor.plan import make_plan, parse_nodes, print_plan

    try:
        named = parse_nodes(nodes) if nodes else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--node") from error
    made = make_plan(load_config(preset, settings or []), named)
    print_plan(made)
    raise typer.Exit(0 if made.fits else 1)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, or the output of another command.")],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Folder with pictures that rows name, such as ground truths.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The page; by default beside the output.")] = None,
) -> None:
    """Write the page of an output again: one self-contained HTML file.

    Outputs are runs, data sets, benchmarks, rollouts, renderings, judgments, ablations, lifts, calibrations and suite results.

    Example: `genevolve report runs/demo`
    """
    from genevolve_ray.commands.report import write_page_of

    found, page = write_page_of(path, data or (), output)
    typer.echo(f"{path}: {found.kind}\nreport: {page}")


app.add_typer(experience, name="experience")
app.add_typer(plugins, name="plugins")
app.add_typer(data, name="data")
app.add_typer(gateway, name="gateway")
app.add_typer(serve, name="serve")
app.add_typer(corpus, name="corpus")
app.add_typer(small, name="small")
app.command("ask")(ask)
app.command("worker")(worker)
app.command("export")(export)
app.command("init")(init)
app.command("view")(view)


def _register() -> None:
    from genevolve_ray.cli.inference import register

    register(app, bench)


_register()


@app.command()
def doctor(
    preset: Annotated[
        str | None, typer.Argument(help="A preset or a YAML file; omit it to check the machine only.")
    ] = None,
    run: Run = None,
    settings: Sets = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also check services and cluster, over the network, and sample a large policy."),
    ] = False,
    spend: Annotated[
        bool, typer.Option("--spend", help="With --deep: one small call to each service that may cost money.")
    ] = False,
) -> None:
    """Report what this machine can run, or what a run still lacks before it can start, and how to fix it.

    Exit code 0: no problem found; 1: at least one problem; 2: the configuration cannot be read.

    Example: `genevolve doctor paper --set policy.model=/models/policy --deep`
    """
    from genevolve_ray.doctor.machine import diagnose, exit_status, print_diagnosis

    if preset is None:
        if settings or deep or spend or run:
            raise typer.BadParameter(
                "--run, --set, --deep and --spend need a run: name its preset", param_hint="preset"
            )
        checks, title = diagnose(), "genevolve doctor"
    else:
        from genevolve_ray.config import load_config
        from genevolve_ray.doctor.run import examine

        if spend and not deep:
            raise typer.BadParameter("--spend requires --deep", param_hint="--spend")
        config = load_config(preset, settings or [])
        checks = examine(config, run or Path("runs") / config.name, deep=deep, spend=spend)
        title = f"genevolve doctor {preset}"
    print_diagnosis(checks, title=title)
    raise typer.Exit(exit_status(checks))


def main() -> None:
    """Run a command. An error that the user can fix ends with one line and exit code 2, an outage of services with 75."""
    # The progress bars of libraries would interleave with ours and with the error lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    mask_output()
    guard_output()
    try:
        try:
            app()
        except SystemExit:
            sys.stdout.flush()
            raise
    except asyncio.CancelledError:
        sys.exit(143)  # SIGTERM closed every component cleanly; shells report 128 + 15.
    except Exception as error:
        # The edge of the process: an error of no known kind propagates as a traceback.
        from genevolve_ray.errors import as_ending

        ending = as_ending(error)
        if ending is None:
            raise
        if ending[1] == OutputClosed.exit_code:
            drop_output()
        with contextlib.suppress(BrokenPipeError):  # Standard error may be closed as well.
            typer.secho(f"error: {shown(ending[0])}", fg="red", err=True)
        sys.exit(ending[1])
