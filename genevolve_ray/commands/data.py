"""The commands of `genevolve data`: checks of a data set."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genevolve_ray.commands.plugins import settings_of
from genevolve_ray.config import explain
from genevolve_ray.data.build.leaks import LeakCheckConfig, LeakReport, check_leaks
from genevolve_ray.data.build.overlaps import OverlapKind
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.evolution.plugins import PluginSpec, build_here
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.secrets import shown

_SHOWN = 20
"""Leaks that the terminal lists."""
_PIPE_COLUMNS = 1000


class LeakCommandConfig(LeakCheckConfig):
    """Configure `genevolve data leaks`."""

    picture_embedder: PluginSpec | None = None
    """A class that embeds pictures (`data.build.leaks.PictureEmbedder`), as `package.module:Class`; without one, pictures
    are compared by their hashes alone."""


def check_data(
    folder: Path, against: Path | None, out: Path | None, file: Path | None, overrides: Sequence[str]
) -> bool:
    """Print the leaks of a data set as tables, write the report where asked, and return whether there are none.

    Raises:
        UserFault: for settings or a folder that cannot be used.
        InfraFailure: when an embedder gave up.
    """
    settings = settings_of(file, overrides)
    try:
        config = LeakCommandConfig.model_validate(settings)
    except ValidationError as error:
        raise UserFault(f"genevolve data leaks: {explain(error, kind=LeakCommandConfig)}") from error
    try:
        embedder = build_run_embedder(config.embedder)
    except ValueError as error:
        raise UserFault(f"genevolve data leaks: {error}") from error
    pictures = None if config.picture_embedder is None else build_here(config.picture_embedder)
    report = asyncio.run(check_leaks(folder, config, embedder, pictures, against))
    if out is not None:
        write_object(out, {"folder": str(folder), "against": str(against or ""), **report.as_dict()})
    print_leaks(report)
    return report.clean


def print_leaks(report: LeakReport) -> None:
    """Print what was compared, the leaks by kind, and the first of them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    compared = Table("part", "rows", "pictures", "rows not read", "pictures not read")
    for name, part in report.parts.items():
        numbers = (part.rows, part.pictures, part.rejected, part.unreadable_pictures)
        compared.add_row(escape(shown(name)), *(f"{number:,}" for number in numbers))
    console.print(compared)
    console.print(
        f"embedder of requests: {report.embedder}, cosine from {report.text_cosine:g}; "
        f"of pictures: {report.picture_embedder or 'none, hashes alone'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if report.clean:
        console.print("no leaks")
        return
    kinds = Table("kind", "leaks")
    for kind, count in report.counts.items():
        kinds.add_row(_named(kind), f"{count:,}")
    console.print(kinds)
    listed = Table(
        "first", "second", "what they share", title=f"{'at least ' if report.cut else ''}{report.total:,} leaks"
    )
    for leak in report.leaks[:_SHOWN]:
        sides = (f"{side.part}:{side.number} {side.id}" for side in (leak.first, leak.second))
        values = ", ".join(f"{_named(kind)} {value:g}" for kind, value in leak.values.items())
        listed.add_row(*(escape(shown(side)) for side in sides), values)
    console.print(listed)
    if report.total > _SHOWN:
        console.print(f"{report.total - _SHOWN:,} more: --json FILE lists them", markup=False, highlight=False)


def _named(kind: OverlapKind) -> str:
    return kind.value.replace("_", " ")
