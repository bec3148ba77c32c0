"""The commands of `genevolve data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Build and examine data sets.", no_args_is_help=True)


@data.command("leaks")
def leaks(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set: JSON lines or Parquet, a file for each part.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="Another data set, a folder or a file, such as a benchmark.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Output file of the report with all pairs.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file of the settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A key: --set limits.picture_bits=4. Repeatable.")
    ] = None,
) -> None:
    """Find rows of different parts that overlap: equal or near requests, shared entities, the same picture.

    Exit code 1 if there are leaks. With --against, the parts are compared with those of the other data set, too.

    Example: `genevolve data leaks samples --against bench/test.jsonl --json leaks.json`
    """
    from genevolve_ray.commands.data import check_data

    raise typer.Exit(0 if check_data(folder, against, out, config, settings or []) else 1)


@data.command("build")
def build(
    config: Annotated[str, typer.Argument(help="A build that ships with the package (atlas), or your own YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the build; an unfinished build there is resumed.")],
    recipes: Annotated[int | None, typer.Option("--recipes", min=1, help="Recipes (data.recipes).")] = None,
    until: Annotated[
        str,
        typer.Option(
            "--until", help="Last stage: recipes, prompts, trajectories, audit, truths, filter, split or card."
        ),
    ] = "card",
    policy: Annotated[
        str | None, typer.Option("--policy", help="The teacher, as for rollout: openai:MODEL@URL, a run or a folder.")
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Carry all rows in this process, without Ray.")
    ] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a key. Repeatable.")] = None,
) -> None:
    """Build a data set: recipes, prompts, trajectories of a teacher, audit, truths, filter, split, card.

    Each finished row of each stage is kept, so a build that was killed, or that reached a cap, resumes where it was. Parts
    with card and pages are in OUT/dataset, counts in OUT/summary.json, and every rejected row with its reason in
    OUT/rejected.jsonl. Exit code 1 with leaks between parts or when no row is left, 3 at a cap, 75 when services failed.

    Example: `genevolve data build atlas --recipes 200 --out runs/data --in-process`
    """
    from rich.console import Console

    from genevolve_ray.commands.build_config import BuildStage
    from genevolve_ray.commands.build_run import build_data
    from genevolve_ray.errors import UserFault

    if until not in set(BuildStage):
        raise UserFault(f"--until {until}: the stages are {', '.join(BuildStage)}")
    overrides = [*(settings or []), *([] if recipes is None else [f"data.recipes={recipes}"])]
    code = build_data(
        config,
        out,
        overrides=overrides,
        until=BuildStage(until),
        policy=policy,
        in_process=in_process,
        console=Console(stderr=True),
    )
    raise typer.Exit(code)
