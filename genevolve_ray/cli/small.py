"""The commands of `genevolve small`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

small = typer.Typer(
    help="Make what the preset `small` needs: real parts that run on a laptop, without a hub (docs/small.md).",
    no_args_is_help=True,
)


@small.command("setup")
def setup(
    out: Annotated[Path, typer.Option("--out", help="Folder of the setup; an unfinished one is continued.")] = Path(
        "runs/small"
    ),
    from_nothing: Annotated[
        bool | None,
        typer.Option(
            "--from-nothing/--prebuilt",
            help="Train renderer, image tower and cold start here, for hours, or take the trained weights of the package. "
            "Without the option a setup stays as it was begun; a new one is prebuilt.",
            show_default=False,
        ),
    ] = None,
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help="Only this stage, with those that it needs. Repeatable.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare every file with its hash, and make damaged stages again.")
    ] = False,
    trainings: Annotated[
        Path | None,
        typer.Option("--trainings", help="With --from-nothing: a YAML file with settings of the trainings."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="With --from-nothing: one of these settings, as key=value (renderer.denoiser.steps=400). Repeatable. "
            "Without --trainings and --set, the settings stay as the setup was begun.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Train again where an input of a training changed, without a question.")
    ] = False,
) -> None:
    """Convert, assemble and index the parts of `small`: policy, embedder, corpus, requests, judge and renderer.

    First run `make setup-small`. It installs the parts, each pinned by hash; `genevolve small parts` lists them. No network
    is needed after that. Every stage writes one folder below OUT and is recorded in OUT/manifest.json with its inputs and
    the hashes of its files. A second run keeps what is there, and a killed one continues. A changed input makes again only
    what depends on it; before a training would be repeated, the command names the input and asks.

    Example: `genevolve small setup --stage corpus --stage requests`
    """
    # Bars of libraries would interleave with ours; tqdm reads the variable when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # Likewise what it says about unused weights.
    from genevolve_ray.commands.small import setup_run
    from genevolve_ray.commands.small_trainings import AskedTrainings

    asked = AskedTrainings(trainings, tuple(settings or ()))
    setup_run(out, stages or [], from_nothing=from_nothing, check=check, asked=asked, yes=yes)


@small.command("parts")
def parts(
    out: Annotated[Path, typer.Option("--out", help="Folder of the setup whose stages are listed.")] = Path(
        "runs/small"
    ),
) -> None:
    """List the parts: role, license, publisher, how each is installed, and whether its files have the pinned hashes.

    Where OUT holds a setup, its stages follow, each with what the next `genevolve small setup` would do. Nothing is made.
    `genevolve small setup --stage parts` ends with an error instead if one is missing or differs.

    Example: `genevolve small parts`
    """
    from genevolve_ray.commands.small import print_parts

    print_parts(out)


@small.command("clipart")
def clipart(
    folder: Annotated[
        Path, typer.Argument(help="A folder with SVG files, such as Debian's /usr/share/openclipart/svg.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the setup whose corpus receives them.")] = Path(
        "runs/small"
    ),
    most: Annotated[int, typer.Option("--most", min=1, help="Drawings that are taken at most.")] = 1000,
) -> None:
    """Add drawings of your own to the corpus: neighbors that an image search confuses with the right picture.

    Taken are those whose file names share a word with a subject of the requests. They lie in OUT/corpus/clipart: remove this
    folder to be without them. The requests and their truths stay the same.

    Example: `genevolve small clipart /usr/share/openclipart/svg --most 300`
    """
    from genevolve_ray.commands.small import clipart_run

    clipart_run(folder, out, most)
