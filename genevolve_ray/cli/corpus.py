"""The commands `genevolve corpus freeze`, `stats` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

corpus = typer.Typer(
    help="Keep what the tools of runs answered, and answer it again offline (docs/tools.md).", no_args_is_help=True
)
CorpusFolder = Annotated[Path, typer.Argument(help="Folder of a corpus, written by freeze.")]


@corpus.command("freeze")
def freeze(
    sources: Annotated[list[Path], typer.Argument(help="Folders of runs, of jobs, or of earlier corpora.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the corpus; it must not exist, or be empty.")],
) -> None:
    """Write every question, answer and picture that the tools of runs gave to one folder: JSON, Parquet and pictures.

    A run records its answers while it runs (tools.record). Of two different answers to one question the first counts; the
    others are counted and named. A corpus among the sources is merged, so the same command exports, imports and joins.
    A run with `tools: {type: frozen, config: {corpus: DIR}}` then has the same answers without a network.

    Example: `genevolve corpus freeze runs/demo --out corpora/demo`
    """
    from genevolve_ray.commands.corpus import freeze_runs

    for line in freeze_runs(sources, out):
        typer.echo(line)


@corpus.command("stats")
def stats(
    folder: CorpusFolder,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run that used the corpus: also list what it asked in vain.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Verify a corpus and show what it holds: answers, questions, how often these were asked, hits, errors, pictures.

    Every file is read and compared with its hash; the first that is damaged is named.

    Example: `genevolve corpus stats corpora/demo`
    """
    from genevolve_ray.commands.corpus import print_stats

    print_stats(folder, run, as_json=as_json)


@corpus.command("serve")
def serve(
    folder: CorpusFolder,
    http: Annotated[
        str | None, typer.Option("--http", help="HOST:PORT for streamable HTTP; without it over stdio.")
    ] = None,
    on_miss: Annotated[
        str, typer.Option("--on-miss", help="For a question without an answer: fail, report or nearest.")
    ] = "fail",
    token_env: Annotated[
        str | None, typer.Option("--token-env", help="Environment variable that holds the token of the callers.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens", help="File of hashed tokens: genevolve gateway token new NAME --scope serve --file FILE."
        ),
    ] = None,
) -> None:
    """Serve the tools of a corpus as an MCP server, as `genevolve serve tools` serves those of a configuration.

    Over stdio the client starts this command. With --http it listens at http://HOST:PORT/mcp; beyond loopback it needs
    tokens.

    Example: `genevolve corpus serve corpora/demo --http 127.0.0.1:8003`
    """
    from genevolve_ray.commands.corpus import serve_corpus
    from genevolve_ray.commands.serve_tools import ServedTools

    serve_corpus(folder, on_miss, ServedTools(http, token_env, tokens))
