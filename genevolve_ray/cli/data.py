"""The commands of `genevolve data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Examine data sets.", no_args_is_help=True)


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
