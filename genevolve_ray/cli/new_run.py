"""The command `genevolve init`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

_DEFAULTS = {"policy": "atlas", "renderer": "atlas", "judge": "atlas", "tools": "atlas", "gpus": "0"}


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new run; existing files are never overwritten.")],
    policy: Annotated[str | None, typer.Option("--policy", help="atlas, a model folder, or ORG/NAME of a hub.")] = None,
    renderer: Annotated[
        str | None,
        typer.Option(
            "--renderer", help="atlas, qwen-service[:URL], diffusers:MODEL, preset:NAME, gemini, images-api:MODEL@URL."
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="atlas, gemini[:MODEL], endpoint:MODEL@URL, vllm:MODEL.")
    ] = None,
    tools: Annotated[
        str | None, typer.Option("--tools", help="atlas, serper, brave, searxng:URL, folder:FOLDER, local:FOLDER.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", help="Number of GPUs (4), or their indices with commas (0,1,6).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="File or folder of requests: train*, validation*, test*.")
    ] = None,
) -> None:
    """Write a new run: a short YAML, scripts that start its services, and a README of five steps; then run the doctor.

    On a terminal it asks for what is not given. Without a choice, a part is that of the atlas, which needs nothing. A
    policy other than atlas extends the preset `paper`.

    Example: `genevolve init my-run --policy Qwen/Qwen3-VL-8B-Instruct --renderer qwen-service --judge gemini --tools serper --gpus 4`
    """
    given = {"policy": policy, "renderer": renderer, "judge": judge, "tools": tools, "gpus": gpus}
    if _on_terminal():
        given = _asked(given)
    from genevolve_ray.commands.init import InitOptions, init_run

    chosen = {name: value or _DEFAULTS[name] for name, value in given.items()}
    files = init_run(folder, InitOptions(**chosen, data=data))
    typer.echo(f"written: {', '.join(str(file) for file in files)}")
    typer.echo(f"next: the five steps of {folder / 'README.md'}")


def _on_terminal() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _asked(given: dict[str, str | None]) -> dict[str, str | None]:
    """Ask for what is not given."""
    from genevolve_ray.commands.init_parts import CHOICES

    answers = dict(given)
    for name, value in given.items():
        if value is None:
            about = CHOICES.get(name, "a number, or indices with commas")
            answers[name] = typer.prompt(f"{name} ({about})", default=_DEFAULTS[name])
    return answers
