"""Arguments of `genevolve ask`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genevolve_ray.cli.inference import Date, Policy, Sets


def ask(
    request: Annotated[
        str | None,
        typer.Argument(help="What to draw. With --suggest: a number of requests, or a text that they are near."),
    ] = None,
    policy: Policy = None,
    config: Annotated[
        str, typer.Option("--config", "--preset", help="A preset (atlas) or your own YAML file.")
    ] = "atlas",
    settings: Sets = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Read requests from the prompt, or from standard input.")
    ] = False,
    suggest: Annotated[bool, typer.Option("--suggest", help="Only print requests that can be played.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the files (default: a new one below runs/ask).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of sampling and rendering (seed).")] = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", help="A ground-truth picture, for judges that compare with one.")
    ] = None,
    date: Date = None,
    pictures: Annotated[
        str, typer.Option("--pictures", help="Pictures in the terminal: auto, kitty, iterm, blocks or none.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write events for machines, one JSON object a line.")] = False,
) -> None:
    """Ask for one picture and look: thoughts, searches, references, program, picture and verdict, as they come.

    Everything runs in this process. The picture and a page of the whole trajectory are written to a folder, and their
    paths are printed. Without a policy and a preset, the trained agent of the atlas answers.

    Exit code: 0 a picture; 1 the policy gave no usable program; 2 bad input, or a request that is not understood; 75 a
    service failed; 130 and 143 stopped by a signal.

    Example: `genevolve ask "Show two red lanterns of glass"`
    """
    from genevolve_ray.commands.ask import AskOptions, ask_run, chat_run, suggest_run
    from genevolve_ray.commands.inference import Common

    if request is None and not (chat or suggest):
        raise typer.BadParameter("give a request, --chat or --suggest", param_hint="request")
    if chat and (request is not None or suggest or truth):
        raise typer.BadParameter("takes neither a request, --suggest nor --truth", param_hint="--chat")
    common = Common(config, tuple(settings or ()), in_process=True)
    options = AskOptions(common, policy, out, truth, seed, date, pictures, as_json)
    if suggest:
        raise typer.Exit(suggest_run(request, options))
    raise typer.Exit(chat_run(options) if chat or request is None else ask_run(request, options))
