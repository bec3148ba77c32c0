"""`genevolve serve tools --mcp`: the tools of a configuration for any client of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from genevolve_ray.commands.serve import GRACE_SECONDS
from genevolve_ray.config import ConfigError, RunConfig, config_fault, layered_values
from genevolve_ray.doctor.preflight import check_plugin, check_secrets
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import ToolsSpec, build_here
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.serving.access import read_access
from genevolve_ray.serving.local import bound_socket, stop_event
from genevolve_ray.tools.running import close_toolbox


@dataclass(frozen=True)
class ServedTools:
    """Hold the options of served tools: an address for HTTP, or none for stdio, and tokens."""

    address: str | None = None
    token_env: str | None = None
    tokens: Path | None = None


class ServedToolsConfig(Config):
    """Configure what is served: the part of a run's configuration that `genevolve serve tools` reads."""

    tools: ToolsSpec | None = None
    """Plug-in that holds the tools."""


def load_tools(preset: str, overrides: Sequence[str]) -> ToolsSpec:
    """Return the tools of a configuration, which need not be one of a whole run.

    Raises:
        ConfigError: naming the file and key that is unknown, missing or invalid.
    """
    others = set(RunConfig.model_fields) - {"tools"}
    values = {key: value for key, value in layered_values(preset, overrides).items() if key not in others}
    try:
        spec = ServedToolsConfig.model_validate(values).tools
    except ValidationError as error:
        raise config_fault(error, preset, overrides) from error
    if spec is None:
        raise ConfigError(f"{preset}: tools: missing; write tools: {{type: ..., config: {{...}}}}")
    return spec


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises UserFault."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise UserFault(f"--http {text}: write HOST:PORT, for instance 127.0.0.1:8003")
    return host.removeprefix("[").removesuffix("]"), int(port)


def serve_tools(preset: str, overrides: Sequence[str], served: ServedTools) -> None:
    """Serve the tools of a configuration, as `serve_spec`.

    Raises:
        ConfigError: as `load_tools`.
        UserFault: as `serve_spec`.
    """
    serve_spec(load_tools(preset, overrides).model_copy(update={"record": False}), served)


def serve_spec(spec: ToolsSpec, served: ServedTools) -> None:
    """Serve tools until the client leaves (stdio), or until SIGTERM or Ctrl-C (HTTP).

    Raises:
        UserFault: before anything is served, for a configuration, address or token that cannot be used, and without the
            package mcp.
    """
    if served.address is None and (served.token_env or served.tokens):
        raise UserFault("--token-env and --tokens are for --http: over stdio the client starts this command itself")
    check_secrets({"tools": spec.model_dump(mode="json")}, here=True)
    check_plugin("tools", spec, local=True)
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise UserFault(f"--mcp needs the package mcp: pip install 'genevolve_ray[mcp]' ({error})") from error
    with tempfile.TemporaryDirectory(prefix="genevolve-mcp-") as folder:
        asyncio.run(_serve(spec, FilesystemImages(f"{folder}/images"), served))


async def _serve(spec: ToolsSpec, images: FilesystemImages, served: ServedTools) -> None:
    from genevolve_ray.serving.mcp import PATH, ToolServer, serve_http, serve_stdio

    if served.address is None:
        toolbox = build_here(spec, images)
        work = serve_stdio(ToolServer(toolbox.tools, images))
    else:
        host, port = parse_address(served.address)
        access = read_access(host, served.token_env, served.tokens)
        listener = bound_socket(host, port)
        toolbox = build_here(spec, images)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}{PATH}"
        said = f"{len(toolbox.tools)} tools listen at {url}; Ctrl-C or SIGTERM ends it"
        work = serve_http(
            ToolServer(toolbox.tools, images),
            access,
            host,
            listener,
            stop_event(),
            lambda: print(said, file=sys.stderr, flush=True),
            grace=GRACE_SECONDS,
        )
    try:
        await work
    finally:
        await close_toolbox(toolbox)
