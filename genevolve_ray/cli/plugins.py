"""The commands `genevolve plugins`: list plug-ins, write a new one, check one, and swap a running evolution's renderer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

plugins = typer.Typer(
    help="Plug-ins: list them, write a new one, check one against its contract, swap the renderer of a running evolution.",
    no_args_is_help=True,
)

Sets = Annotated[list[str] | None, typer.Option("--set", help="A setting of the plug-in: --set steps=8. Repeatable.")]
File = Annotated[Path | None, typer.Option("--config", help="A YAML file of the plug-in's settings.")]
Role = Annotated[str, typer.Argument(help="requests, tools, renderer, judge, summariser or embedder.")]
Type = Annotated[str, typer.Argument(help="package.module:Class, or a registered name.")]


@plugins.command("list")
def list_plugins(role: Annotated[str | None, typer.Argument(help="Only this role.")] = None) -> None:
    """List the plug-ins of installed packages: role, name, origin, class, and the keys of their settings.

    Example: `genevolve plugins list renderer`
    """
    from genevolve_ray.commands.plugins import print_plugins

    print_plugins(role)


@plugins.command("new")
def new(
    role: Annotated[str, typer.Argument(help="renderer, judge, tool, summariser, requests or embedder.")],
    name: Annotated[str, typer.Argument(help="Name of the package, which becomes a folder here: my_painter.")],
) -> None:
    """Write a package with one working plug-in: its class, a run that uses it, and a test of its contract.

    The class is found where it lies, without an installation. Nothing is overwritten.

    Example: `genevolve plugins new renderer my_painter`
    """
    from genevolve_ray.commands.new_plugin import new_plugin

    files, commands = new_plugin(role, name, Path())
    typer.echo(f"written: {', '.join(map(str, files))}")
    typer.echo("\n".join(["next:", *(f"  {command}" for command in commands)]))


@plugins.command("check")
def check(
    role: Role,
    type_: Type,
    settings: Sets = None,
    config: File = None,
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests", help="A preset or YAML file of a run whose request source supplies the sample request."
        ),
    ] = None,
) -> None:
    """Run the contract of a role against a plug-in. Exit code 1 if a check fails.

    A judge that reads more of a request than its prompt needs --requests.

    Example: `genevolve plugins check judge atlas --requests atlas`
    """
    from genevolve_ray.commands.plugins import check_plugin

    raise typer.Exit(0 if check_plugin(role, type_, settings or [], config, requests) else 1)


@plugins.command("swap")
def swap(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    type_: Annotated[
        str | None, typer.Argument(help="The new renderer: package.module:Class, or a registered name.")
    ] = None,
    settings: Sets = None,
    config: File = None,
    runtime_env: Annotated[
        str | None, typer.Option("--runtime-env", help="Its Ray runtime environment, as YAML: {pip: [diffusers]}.")
    ] = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the outcome.")] = 300.0,
) -> None:
    """Replace the renderer of a running evolution, between groups; without a TYPE, list the swaps of the run.

    The new renderer starts next to the old one. New groups use it once it serves. Groups in progress finish on the old
    one, which is then removed. If the new renderer does not start, nothing changes. A stopped run performs the swap when
    it resumes. Exit code 1 if the swap was rejected.

    Example: `genevolve plugins swap runs/mine diffusers --set model=/models/edit --set steps=8`
    """
    from genevolve_ray.commands.plugins import print_swaps, swap_renderer

    if type_ is None:
        print_swaps(run)
        return
    raise typer.Exit(0 if swap_renderer(run, type_, settings or [], config, runtime_env, wait) else 1)
