"""The commands `genevolve serve renderer`, `judge` and `tools`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

serve = typer.Typer(
    help="Put a renderer, a judge's models or the tools behind a protocol of their own (docs/services.md).",
    no_args_is_help=True,
)

ConfigFile = Annotated[
    str, typer.Argument(help="A preset (atlas), or a YAML file: a run's, or one with this part alone.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback it needs tokens.")]
TokenEnv = Annotated[
    str | None, typer.Option("--token-env", help="Environment variable that holds the token of the callers.")
]
Tokens = Annotated[
    Path | None,
    typer.Option("--tokens", help="File of hashed tokens: genevolve gateway token new NAME --scope serve --file FILE."),
]
Concurrent = Annotated[
    int | None,
    typer.Option("--concurrent", min=1, help="Calls in progress of a replica (default: cluster.ROLE.max_ongoing)."),
]
Queue = Annotated[int, typer.Option("--queue", min=0, help="Calls of a replica that wait; more are refused with 503.")]
BodyMib = Annotated[float, typer.Option("--body-mib", min=0.001, help="Largest request, MiB.")]
Fetch = Annotated[
    bool, typer.Option("--fetch-urls", help="Also fetch pictures at public addresses, not only data URLs.")
]
InProcess = Annotated[bool, typer.Option("--in-process", help="One copy in this process, without Ray.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set cluster.renderer.gpus=1.")]


@serve.command("renderer")
def renderer(
    config: ConfigFile,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8001,
    token_env: TokenEnv = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    queue: Queue = 256,
    body_mib: BodyMib = 64.0,
    fetch: Fetch = False,
    in_process: InProcess = False,
    settings: Sets = None,
) -> None:
    """Serve the renderer of a configuration at POST /generate, as the Qwen-Image-Edit service does.

    It prints the lines by which a run calls it, and ends at Ctrl-C or SIGTERM. Replicas and GPUs come from
    cluster.renderer.

    Example: `genevolve serve renderer atlas --port 8001 --in-process`
    """
    _serve("renderer", config, host, port, token_env, tokens, concurrent, queue, body_mib, fetch, in_process, settings)


@serve.command("judge")
def judge(
    config: ConfigFile,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8002,
    token_env: TokenEnv = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    queue: Queue = 256,
    body_mib: BodyMib = 64.0,
    fetch: Fetch = False,
    in_process: InProcess = False,
    settings: Sets = None,
) -> None:
    """Serve the chat models of a judge at POST /v1/chat/completions, as OpenAI-style servers do.

    A judge of the type local or endpoint can be served. The atlas judge measures pixels and answers no chat. Replicas
    and GPUs come from cluster.judge.

    Example: `genevolve serve judge judge.yaml --port 8002 --set cluster.judge.gpus=1`
    """
    _serve("judge", config, host, port, token_env, tokens, concurrent, queue, body_mib, fetch, in_process, settings)


@serve.command("tools")
def tools(
    config: ConfigFile,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="As an MCP server, the one form in which tools are served.")
    ] = False,
    http: Annotated[
        str | None, typer.Option("--http", help="HOST:PORT for streamable HTTP; without it over stdio.")
    ] = None,
    token_env: TokenEnv = None,
    tokens: Tokens = None,
    settings: Sets = None,
) -> None:
    """Serve the tools of a configuration as an MCP server: search, image search, skills and any other.

    Over stdio the client starts this command. With --http it listens at http://HOST:PORT/mcp; beyond loopback it needs
    tokens. Pictures are sent as pictures.

    Example: `genevolve serve tools atlas --mcp --http 127.0.0.1:8003`
    """
    if not mcp:
        raise typer.BadParameter("tools are served as an MCP server: add --mcp", param_hint="--mcp")
    from genevolve_ray.commands.serve_tools import ServedTools, serve_tools

    serve_tools(config, settings or [], ServedTools(http, token_env, tokens))


def _serve(
    role: str,
    config: str,
    host: str,
    port: int,
    token_env: str | None,
    tokens: Path | None,
    concurrent: int | None,
    queue: int,
    body_mib: float,
    fetch: bool,
    in_process: bool,
    settings: list[str] | None,
) -> None:
    from genevolve_ray.commands.serve import Served, serve_run

    served = Served(role, host, port, token_env, tokens, concurrent, queue, body_mib, fetch, in_process)
    serve_run(config, settings or [], served)
