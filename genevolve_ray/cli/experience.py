"""Command-line arguments of `genevolve experience`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

experience = typer.Typer(
    help="Inspect the experience memory of a run, as of its last committed step.", no_args_is_help=True
)
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]


@experience.command("ls")
def experience_ls(run: RunFolder) -> None:
    """List the bundles: step, request, gap, and number of uses.

    Example: `genevolve experience ls runs/demo`
    """
    from genevolve_ray.commands.experience import print_bundles

    print_bundles(run)


@experience.command("show")
def experience_show(run: RunFolder, number: Annotated[int, typer.Argument(help="Number of a bundle, see ls.")]) -> None:
    """Show one bundle: its guidance, the attempts it came from, and its later retrievals.

    Example: `genevolve experience show runs/demo 12`
    """
    from genevolve_ray.commands.experience import print_bundle

    print_bundle(run, number)


@experience.command("search")
def experience_search(
    run: RunFolder,
    text: Annotated[str, typer.Argument(help="A request, as a user would write it.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Number of bundles.")] = 5,
) -> None:
    """Find the bundles nearest to a request, with their cosine, using the run's own embedder.

    Example: `genevolve experience search runs/demo "Show two blue lanterns" --top 3`
    """
    from genevolve_ray.commands.experience import print_search

    print_search(run, text, top)


@experience.command("calibrate")
def experience_calibrate(
    run: RunFolder,
    embedder: Annotated[
        str | None, typer.Option("--embedder", help="hashing, or a model folder or hub id (default: the run's own).")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Requests that ask, the youngest (default: all).")
    ] = None,
    precision: Annotated[
        float, typer.Option("--precision", min=0, max=1, help="Precision that the recommended threshold has.")
    ] = 0.9,
    against: Annotated[
        str, typer.Option("--against", help="own: the request's own bundle; ideal: what its world knows to be right.")
    ] = "own",
    out: Annotated[
        Path | None, typer.Option("--json", help="Output file (default: calibration.json in the run's folder).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key: --set experience.embedder.transformers.pooling=mean. Repeatable."),
    ] = None,
) -> None:
    """Measure how right recalled guidance is, by the threshold of the memory, and recommend a threshold.

    Example: `genevolve experience calibrate runs/demo --precision 0.9`
    """
    from genevolve_ray.commands.calibration import CalibrationOptions, calibrate_run

    options = CalibrationOptions(embedder, tuple(settings or ()), requests, precision, against, out)
    calibrate_run(run, options)


@experience.command("lift")
def experience_lift(
    run: RunFolder,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Step of memory and policy (default: the last checkpoint's).")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", min=1, help="Training requests, the youngest.")] = 100,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples of each request.")] = 1,
    start: Annotated[bool, typer.Option("--start", help="Measure the policy that the run began with as well.")] = False,
    out: Annotated[
        Path | None, typer.Option("--json", help="Output file (default: lift-STEP.json in the run's folder).")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set engine.kind=transformers. Repeatable.")
    ] = None,
) -> None:
    """Measure what bundles are worth in the prompt of today's policy: own, remembered, merged, placebo, constant.

    The same requests are played with a guide and without, with the same random seeds. Nothing is trained.

    Example: `genevolve experience lift runs/demo --step 40 --start`
    """
    from genevolve_ray.commands.lift import LiftOptions, lift_run

    lift_run(run, LiftOptions(step, requests, samples, start, tuple(settings or ()), out))
