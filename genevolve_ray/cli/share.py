"""The command `genevolve export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: missing, empty, or an earlier export.")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="A step with a checkpoint (default: last).")] = None,
    best: Annotated[bool, typer.Option("--best", help="The checkpoint with the best validation.")] = False,
    merge: Annotated[
        bool, typer.Option("--merge-lora", help="Merge the adapter into its base: whole weights.")
    ] = False,
    base: Annotated[
        str | None, typer.Option("--base", help="ORG/NAME of the base model, for the card and the adapter.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Identifier for the card, such as apache-2.0.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="Upload to ORG/NAME on the hub (HF_ENDPOINT); the token is HF_TOKEN.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that --push creates is public.")] = False,
) -> None:
    """Write the policy of a run as a model folder with tokenizer, generation settings and a model card.

    A LoRA run gives a folder in peft's layout, or whole weights with --merge-lora. `genevolve rollout --policy` takes
    either.

    Example: `genevolve export runs/mine --out exported --best --licence apache-2.0`
    """
    from genevolve_ray.commands.export import ExportOptions, export_run

    for line in export_run(run, out, ExportOptions(step, best, merge, base, licence, push, public)):
        typer.echo(line)
