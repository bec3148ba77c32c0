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
