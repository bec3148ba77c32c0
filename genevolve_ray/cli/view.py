"""Arguments of `genevolve view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    places: Annotated[
        list[str],
        typer.Argument(
            help="Folders (or addresses) of runs, or JSON files of results; a folder shows all that it holds."
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; beyond loopback a token is made and printed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        bool, typer.Option("--token", help="Make a token on loopback too: others of this machine cannot look.")
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    static: Annotated[
        Path | None,
        typer.Option("--static", help="Write the pages into this folder instead; it opens without a server."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="With --static: most pages of a run.")] = 5000,
) -> None:
    """Show runs in the browser: progress, curves, services, and every trajectory; a run that is going is followed.

    Lifts and calibrations in the folder of a run have a page there. The JSON file of an ablation, of lifts, of a calibration or
    of a suite is shown alone or beside runs.

    The viewer is a process of its own and only reads, so it cannot harm a run. It ends at Ctrl-C.

    Example: `genevolve view runs/demo`

    Example: `genevolve view runs --port 8080`

    Example: `genevolve view runs/demo --static pages`

    Example: `genevolve view runs/ablation.json`
    """
    from genevolve_ray.commands.view import Viewed, view_run

    view_run(Viewed(tuple(places), host, port, open_browser, static, limit, token))
