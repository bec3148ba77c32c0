"""`genevolve serve renderer` and `judge`: one part of a configuration behind HTTP, on Ray or in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from genevolve_ray.cluster.config import ClusterConfig, ServiceConfig
from genevolve_ray.cluster.session import cluster_address
from genevolve_ray.config import ConfigError, RunConfig, config_fault, layered_values
from genevolve_ray.doctor.preflight import check_plugin, check_secrets, require_gpus
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.patience import SHORTEST
from genevolve_ray.evolution.plugins import JudgeSpec, PluginFault, PluginSpec, RendererSpec, build_here
from genevolve_ray.gateway.config import LOOPBACK
from genevolve_ray.judges.protocol import AsksChatModels
from genevolve_ray.records.base import Config
from genevolve_ray.serving.access import Access, read_access
from genevolve_ray.serving.chat import ChatDoor
from genevolve_ray.serving.door import Door, DoorLimits
from genevolve_ray.serving.generate import RenderDoor
from genevolve_ray.serving.local import bound_socket, serve_here, stop_event

GRACE_SECONDS = 10.0
_TOKEN_VARIABLE = "GENEVOLVE_SERVE_TOKEN"  # noqa: S105 - the name of a variable
_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class Served:
    """Hold the options of a served part: its role, address, tokens and limits."""

    role: str
    host: str
    port: int
    token_env: str | None = None
    tokens: Path | None = None
    concurrent: int | None = None
    queue: int = 256
    body_mib: float = 64.0
    fetch: bool = False
    in_process: bool = False


class ServedConfig(Config):
    """Configure what is served: the part of a run's configuration that `genevolve serve` reads."""

    renderer: RendererSpec | None = None
    """Plug-in that draws programs."""
    judge: JudgeSpec | None = None
    """Plug-in that scores pictures and programs."""
    cluster: ClusterConfig = ClusterConfig()
    """Replicas and resources, under `cluster.renderer` and `cluster.judge`."""


def load_served(preset: str, overrides: Sequence[str], role: str) -> tuple[PluginSpec, ClusterConfig]:
    """Return a part of a configuration, which need not be one of a whole run.

    Raises:
        ConfigError: naming the file and key that is unknown, missing or invalid.
    """
    others = set(RunConfig.model_fields) - {role, "cluster"}
    values = {key: value for key, value in layered_values(preset, overrides).items() if key not in others}
    try:
        config = ServedConfig.model_validate(values)
    except ValidationError as error:
        raise config_fault(error, preset, overrides) from error
    spec: PluginSpec | None = getattr(config, role)
    if spec is None:
        raise ConfigError(f"{preset}: {role}: missing; write {role}: {{type: ..., config: {{...}}}}")
    return spec, config.cluster


def serve_run(preset: str, overrides: Sequence[str], served: Served) -> None:
    """Serve a renderer or a judge until SIGTERM or Ctrl-C.

    Raises:
        UserFault: before anything is loaded, for a configuration, address or token that cannot be used.
        StartError: when the part cannot start on Ray.
    """
    spec, cluster = load_served(preset, overrides, served.role)
    access = read_access(served.host, served.token_env, served.tokens)
    check_secrets({served.role: spec.model_dump(mode="json")}, here=not cluster_address(cluster))
    check_plugin(served.role, spec, served.in_process)
    _check_chat(spec, served)
    listener = bound_socket(served.host, served.port)
    port = int(listener.getsockname()[1])
    _check_circle(spec, served, port)
    service: ServiceConfig = getattr(cluster, served.role).limited(spec)
    limits = DoorLimits(
        body_mib=served.body_mib,
        concurrent=served.concurrent or service.max_ongoing,
        queue=served.queue,
        seconds=service.timeout or SHORTEST,
    )
    build = partial(build_door, served.role, spec, access, limits, fetch=served.fetch)
    if served.in_process:
        with listener:  # A signal while the part is loaded ends the process at once.
            asyncio.run(_in_process(build(), listener, served))
    else:
        if not cluster_address(cluster):
            require_gpus({f"cluster.{served.role}.gpus": service.gpus})
        asyncio.run(_on_ray(build, listener, served, spec=spec, cluster=cluster, limits=limits))
    print(f"the {served.role} has stopped", flush=True)


def build_door(role: str, spec: PluginSpec, access: Access, limits: DoorLimits, *, fetch: bool) -> Door:
    """Build a plug-in and return what answers its requests.

    Raises:
        PluginFault: when the plug-in cannot be built.
        UserFault: for a judge that asks no chat model.
    """
    plugin = build_here(spec)
    if role == "renderer":
        return RenderDoor(plugin, access, limits, fetch=fetch)
    if not isinstance(plugin, AsksChatModels):
        raise _no_chat(spec)
    return ChatDoor(plugin.chat_models(), access, limits, fetch=fetch)


def _no_chat(spec: PluginSpec) -> PluginFault:
    return PluginFault(
        f"judge.type={spec.type!r} asks no chat model, so it cannot answer chat requests: it scores a picture with the "
        "request, its truth and its program, which a chat message does not carry; name it in the YAML of the run, where "
        "it needs no server"
    )


def _check_chat(spec: PluginSpec, served: Served) -> None:
    """Check that a judge asks chat models, before anything is loaded. Raises UserFault."""
    if served.role == "judge" and not spec.isolated and not hasattr(spec.resolve(), "chat_models"):
        raise _no_chat(spec)


def _check_circle(spec: PluginSpec, served: Served, port: int) -> None:
    """Refuse a client of the address that is to be served. Raises UserFault."""
    for key, url in _urls(spec.config, f"{served.role}.config"):
        parts = urlsplit(url)
        here = {*LOOPBACK, served.host, socket.gethostname()}
        if parts.port == port and parts.hostname in here:
            raise UserFault(f"{key}={url!r} is the address of this server itself: name the part that does the work")


def _urls(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [found for name, inner in value.items() for found in _urls(inner, f"{key}.{name}")]
    if isinstance(value, list | tuple):
        return [found for inner in value for found in _urls(inner, key)]
    return [(key, value)] if isinstance(value, str) and value.startswith(("http://", "https://")) else []


async def _in_process(door: Door, listener: socket.socket, served: Served) -> None:
    port = int(listener.getsockname()[1])
    await serve_here(
        door,
        listener,
        stop_event(),
        lambda: print(_lines(served, port, door.describe()), flush=True),
        grace=GRACE_SECONDS,
    )


async def _on_ray(
    build: Callable[[], Door],
    listener: socket.socket,
    served: Served,
    *,
    spec: PluginSpec,
    cluster: ClusterConfig,
    limits: DoorLimits,
) -> None:
    from genevolve_ray.cluster.http import SPARE_CALLS, HttpReplica, serve_on_ray
    from genevolve_ray.cluster.services import Service

    stop = stop_event()
    port = int(listener.getsockname()[1])
    listener.close()  # Serve's proxy binds the address itself.
    own: ServiceConfig = getattr(cluster, served.role).limited(spec)
    # The replicas bound and queue calls themselves; Serve adds replicas by the calls that they hold.
    changed = {
        "max_ongoing": limits.concurrent + limits.queue + SPARE_CALLS,
        "target_ongoing": own.target_ongoing or max(1, limits.concurrent // 2),
    }
    name = f"genevolve-serve-{served.role}-{port}"
    service = Service(served.role, name, HttpReplica, spec, own.model_copy(update=changed))
    await serve_on_ray(
        service,
        build,
        cluster,
        stop,
        lambda described: print(_lines(served, port, described), flush=True),
        host=served.host,
        port=port,
    )


def client_spec(role: str, url: str, token_env: str | None, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's configuration that calls a served part."""
    token = {"token_env": token_env} if token_env else {}
    if role == "renderer":
        return {
            "renderer": {"type": "qwen-service", "config": {"url": url, "health_path": "health", **token, **described}}
        }
    first, *others = described["models"]
    models = {"kscore": first, **({"sufficiency": others[0]} if others else {})}
    # Always stated: a base such as the preset `paper` has a token of its own.
    token = {"token_env": token_env or ""}
    config = {name: {"url": f"{url}/v1", "model": model, **token} for name, model in models.items()}
    return {"judge": {"type": "endpoint", "config": config}}


def _lines(served: Served, port: int, described: Mapping[str, Any]) -> str:
    """Return the lines that a user reads once a part is served."""
    host = socket.gethostname() if served.host in _EVERYWHERE else served.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    path = "/generate" if served.role == "renderer" else "/v1/chat/completions"
    token_env = served.token_env or (_TOKEN_VARIABLE if served.tokens else None)
    lines = [f"the {served.role} listens at {url}{path} (health: {url}/health); Ctrl-C or SIGTERM ends it"]
    if token_env and served.host not in LOOPBACK:
        lines.append("tokens travel unencrypted: keep it inside a network that you trust, or behind a proxy with TLS")
    spec = yaml.safe_dump(client_spec(served.role, url, token_env, described), sort_keys=False)
    lines += ["", "Put this into the YAML of the run:", "", spec.rstrip()]
    if token_env:
        lines += ["", f"and start the run with the token in the environment variable {token_env}."]
    return "\n".join(lines)
