"""The commands `genevolve gateway ...` and `genevolve worker`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from genevolve_ray.gateway.client import GatewayClient

app = typer.Typer(help="Run rollouts on machines outside the cluster (docs/gateway.md).", no_args_is_help=True)
tokens = typer.Typer(help="Create, list and revoke the bearer tokens of workers.", no_args_is_help=True)
app.add_typer(tokens, name="token")

TOKEN_VARIABLE = "GENEVOLVE_TOKEN"  # noqa: S105 - the name of a variable
TokenFilePath = Annotated[Path, typer.Option("--file", help="The file of hashed tokens (gateway.tokens).")]
TokenEnv = Annotated[str, typer.Option("--token-env", help="Environment variable that holds the token.")]
Plaintext = Annotated[
    bool, typer.Option("--plaintext", help="Permit sending the token unencrypted to another machine.")
]
CaFile = Annotated[Path | None, typer.Option("--ca-file", help="Certificates to trust in addition to the system's.")]
_TOKENS = Path("gateway-tokens.json")


@app.command("serve")
def serve(
    preset: Annotated[str, typer.Argument(help="A preset (atlas) or your own YAML file.")],
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run; an existing run is resumed.")] = None,
    port: Annotated[int, typer.Option("--port", help="Port to listen on (gateway.port).")] = 8470,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a key. Repeatable.")] = None,
) -> None:
    """Evolve with rollouts of outside workers only: no local engine; learner, tools, renderer and judge in this process.

    To use engines inside the cluster as well: `genevolve evolve CONFIG --set gateway.port=8470`.

    Example: `genevolve gateway serve atlas --run runs/outside --set gateway.tokens=gateway-tokens.json`
    """
    from genevolve_ray.commands.evolve import evolve_run
    from genevolve_ray.config import load_config

    config = load_config(preset, [f"gateway.port={port}", "gateway.only=true", *(settings or [])])
    evolve_run(config, run or Path("runs") / config.name, in_process=True)


@app.command("status")
def status(
    url: Annotated[str, typer.Argument(help="The gateway, as https://host:port.")],
    token_env: TokenEnv = TOKEN_VARIABLE,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show workers, leases, versions, throughput, and rejections by reason; the token needs the scope `status`.

    Example: `GENEVOLVE_TOKEN=... genevolve gateway status http://127.0.0.1:8470`
    """
    import json

    from genevolve_ray.gateway.console import status_lines

    async def ask() -> dict[str, Any]:
        client = _client(url, token_env, ca_file, plaintext)
        try:
            found: dict[str, Any] = (await client.call("GET", "/v1/status", attempts=2)).json()
            return found
        finally:
            await client.close()

    found = asyncio.run(ask())
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(status_lines(found)))


@tokens.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="Name of the worker; each worker has its own token.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="rollout, own-tools, status, serve. Repeatable.")
    ] = None,
    days: Annotated[float | None, typer.Option("--days", min=0, help="Days until it expires (default: never).")] = None,
    file: TokenFilePath = _TOKENS,
) -> None:
    """Create a token and print it once; only its hash is stored.

    Example: `genevolve gateway token new worker-1 --days 30`
    """
    from genevolve_ray.errors import UserFault
    from genevolve_ray.gateway.auth import Scope, TokenFile

    try:
        scopes = [Scope(text) for text in scope or ["rollout"]]
    except ValueError as error:
        raise UserFault(f"--scope: {error}; valid scopes: {', '.join(Scope)}") from error
    typer.echo(TokenFile(file).new(name, scopes, None if days is None else days * 86400))


@tokens.command("ls")
def token_ls(file: TokenFilePath = _TOKENS) -> None:
    """List the tokens: name, scopes, expiry.

    Example: `genevolve gateway token ls --file gateway-tokens.json`
    """
    from datetime import UTC, datetime

    from genevolve_ray.gateway.auth import TokenFile

    for entry in TokenFile(file).entries():
        until = "never" if entry.expires is None else f"{datetime.fromtimestamp(entry.expires, UTC):%Y-%m-%d %H:%M}"
        typer.echo(f"{entry.name:<24} {','.join(entry.scopes):<24} expires {until}")


@tokens.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.")], file: TokenFilePath = _TOKENS
) -> None:
    """Revoke a token; its next request is rejected.

    Example: `genevolve gateway token revoke worker-1`
    """
    from genevolve_ray.gateway.auth import TokenFile

    TokenFile(file).revoke(name)


def worker(
    gateway: Annotated[str, typer.Option("--gateway", help="The gateway, as https://host:port.")],
    token_env: TokenEnv = TOKEN_VARIABLE,
    engine: Annotated[
        str | None, typer.Option("--engine", help="vllm, transformers or null (default: the run's own).")
    ] = None,
    concurrent: Annotated[int, typer.Option("--concurrent", min=1, help="Number of concurrent episodes.")] = 8,
    device: Annotated[str, typer.Option("--device", help="Device of the engine: cpu, cuda.")] = "cpu",
    folder: Annotated[
        Path, typer.Option("--folder", help="Folder of model and weights; reused by the next start.")
    ] = Path("worker"),
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Local folder of the run's base model; without it, the base is downloaded once."),
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option("--tools", help="Worker-side toolbox, package.module:Class; the token needs the scope own-tools."),
    ] = None,
    ca_file: CaFile = None,
    plaintext: Plaintext = False,
    drain: Annotated[float, typer.Option("--drain", min=0, help="Seconds to finish episodes after SIGTERM.")] = 60.0,
    patience: Annotated[
        float, typer.Option("--patience", min=1, help="Seconds without the gateway before giving up.")
    ] = 600.0,
) -> None:
    """Generate rollouts for a remote run: requests, weights and tools come from the gateway, and the engine is local.

    Ctrl-C or SIGTERM drains: no new episodes start, and those in progress finish or are returned.

    Example: `GENEVOLVE_TOKEN=... genevolve worker --gateway https://train.example:8470 --engine vllm --concurrent 32`
    """
    from functools import partial

    from genevolve_ray.gateway.console import run_worker
    from genevolve_ray.gateway.worker import WorkerConfig

    settings = WorkerConfig(concurrent=concurrent, drain_seconds=drain, patience=patience)
    connect = partial(_client, gateway, token_env, ca_file, plaintext)
    run_worker(connect, settings, folder, kind=engine, device=device, tools=tools, base=model)


def _client(url: str, token_env: str, ca_file: Path | None, plaintext: bool) -> GatewayClient:
    """Return a client with the token from the environment."""
    from urllib.parse import urlsplit

    from genevolve_ray.errors import UserFault
    from genevolve_ray.gateway.client import GatewayClient
    from genevolve_ray.gateway.config import LOOPBACK

    token = os.environ.get(token_env, "").strip()
    if not token:
        raise UserFault(f"--token-env {token_env}: the environment variable is not set")
    if not url.startswith(("https://", "http://")):
        raise UserFault(f"--gateway {url!r}: write http(s)://host:port")
    if url.startswith("http://") and urlsplit(url).hostname not in LOOPBACK and not plaintext:
        raise UserFault(f"--gateway {url}: http would send the token unencrypted; use https or pass --plaintext")
    return GatewayClient(url, token, ca_file=ca_file)
