"""The commands `genevolve plugins list`, `check` and `swap`."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genevolve_ray.config import load_config, with_overrides
from genevolve_ray.contracts import embedder, group_judge, judge, renderer, requests, samples, summariser, tools
from genevolve_ray.contracts.running import Check, run_checks
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.layers import EXTENDS, is_file, merge_layers, read_layers
from genevolve_ray.evolution.plugin_folders import look_beside
from genevolve_ray.evolution.plugins import (
    SPECS,
    PluginFault,
    PluginSpec,
    Registered,
    RendererSpec,
    Role,
    build_here,
    registered,
)
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.swaps import Swap, Swaps, SwapState
from genevolve_ray.judges.protocol import judges_groups
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import plain_secrets, shown
from genevolve_ray.records.strict_text import YamlFault, load_yaml, read_yaml

_PIPE_COLUMNS = 1000
_SECRET = re.compile(r"token|key|secret|password", re.IGNORECASE)


def role_of(name: str) -> Role:
    """Return a role by its name; `tool` is a toolbox with one. Raises UserFault listing the roles."""
    try:
        return Role.TOOLS if name == "tool" else Role(name)
    except ValueError as error:
        raise UserFault(f"unknown role {name!r} of plug-ins; known: {', '.join(Role)}") from error


def settings_of(file: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return settings from a YAML file and `key=value` overrides. Raises UserFault for a file that holds none."""
    values: Any = {}
    if file is not None:
        try:
            values = read_yaml(file) or {}
            if isinstance(values, dict) and EXTENDS in values and is_file(str(file)):
                values = merge_layers(read_layers(str(file)))
            look_beside([str(file)])
        except (OSError, YamlFault) as error:
            raise UserFault(f"--config {file}: {error}") from error
        if not isinstance(values, dict):
            raise UserFault(f"--config {file}: settings are a mapping of keys, got {type(values).__name__}")
    return with_overrides(values, overrides)


def spec_of(
    role: Role, type_: str, settings: Mapping[str, Any], runtime_env: Mapping[str, Any] | None = None
) -> PluginSpec:
    """Return a specification. Raises UserFault for a type that is neither path nor name."""
    try:
        return SPECS[role](type=type_, config=dict(settings), runtime_env=dict(runtime_env or {}))
    except ValueError as error:
        raise UserFault(f"{role} {type_!r}: write package.module:Class, or the name of a registered plug-in") from error


# --- list ---


def print_plugins(role: str | None) -> None:
    """Print the registered plug-ins as a table. One that cannot be imported is listed with the reason."""
    roles = list(Role) if role is None else [role_of(role)]
    table = Table("role", "name", "from", "class", "about", "settings")
    for each in roles:
        for plugin in registered(each):
            table.add_row(
                each,
                plugin.name,
                f"{plugin.distribution} {plugin.version}",
                plugin.path,
                *map(escape, _about(plugin)),
            )
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    console.print(table)
    if not table.row_count:
        console.print(f"nothing is registered in {', '.join(each.group for each in roles)}")


def _about(plugin: Registered) -> tuple[str, str]:
    """Return the first line of a plug-in's documentation and the keys of its settings."""
    spec = SPECS[plugin.role](type=plugin.path)
    try:
        kind = spec.resolve()
    except PluginFault as fault:
        return str(fault), ""
    return (inspect.getdoc(kind) or "").partition("\n")[0], ", ".join(kind.Config.model_fields)


# --- check ---


def check_plugin(role_name: str, type_: str, overrides: Sequence[str], file: Path | None, posed_by: str | None) -> bool:
    """Run the contract of a role against a plug-in, print each check, and return whether all passed."""
    role = role_of(role_name)
    spec = spec_of(role, type_, settings_of(file, overrides))
    images = MemoryImages()
    try:
        subject = build_here(spec, *([images] if role in (Role.TOOLS, Role.REQUESTS) else []))
    except PluginFault as fault:
        _say(False, "is built", f"{fault}")
        return False
    _say(True, "is built", f"{type(subject).__module__}:{type(subject).__name__}")
    checks, case = _contract(role, spec, images, posed_by)
    return asyncio.run(_check(checks, subject, case))


async def _check(checks: Sequence[Check], subject: Any, case: Any) -> bool:
    good = True
    async for finding in run_checks(checks, subject, case):
        _say(finding.passed, finding.name, finding.reason or finding.about)
        good = good and finding.passed is not False
    return good


def _say(passed: bool | None, name: str, text: str) -> None:
    mark = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]skip[/]"}[passed]
    Console(soft_wrap=True, highlight=False).print(f"{mark}  {escape(name)}: {escape(shown(text))}")


def _contract(role: Role, spec: PluginSpec, images: MemoryImages, posed_by: str | None) -> tuple[Sequence[Check], Any]:
    """Return the checks of a role and their inputs."""
    secrets = tuple(secrets_of(spec.settings(spec.resolve()).model_dump(mode="json")))
    request = _request(posed_by, images)
    if role is Role.RENDERER:
        return renderer.CHECKS, renderer.RendererCase(secrets=secrets)
    if role is Role.TOOLS:
        return tools.CHECKS, tools.ToolsCase(images=images, request=request)
    if role is Role.JUDGE:
        truth = samples.picture() if request.truth_image is None else images.get(request.truth_image)
        checks = group_judge.CHECKS if judges_groups(spec.resolve()) else judge.CHECKS
        return checks, judge.JudgeCase(request=request, truth=truth, secrets=secrets)
    if role is Role.SUMMARISER:
        case = summariser.SummariserCase(request, samples.pair(request, images), secrets)
        return summariser.CHECKS, case
    if role is Role.EMBEDDER:
        return embedder.CHECKS, embedder.EmbedderCase(secrets=secrets)
    return requests.CHECKS, requests.RequestsCase(images=images, again=lambda: spec.build(MemoryImages()))


def _request(posed_by: str | None, images: MemoryImages) -> Request:
    if posed_by is None:
        return samples.REQUEST
    request: Request = load_config(posed_by).requests.build(images).train(0)
    return request


def secrets_of(settings: Any, key: str = "") -> Iterator[str]:
    """Yield secret values: those of keys that sound secret, or of the variables that `*_env` keys name."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from secrets_of(value, str(name))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from secrets_of(value, key)
    elif isinstance(settings, str) and key.endswith("_env"):
        yield from filter(None, [os.environ.get(settings, "").strip()])
    elif isinstance(settings, str) and settings and _SECRET.search(key):
        yield settings


_POLL_SECONDS = 0.5


def swap_renderer(
    run: Path, type_: str, overrides: Sequence[str], file: Path | None, runtime_env: str | None, wait: float
) -> bool:
    """Request another renderer for a run and wait for the outcome; return False when it was refused.

    A plug-in without its own environment is loaded here first, with its settings, so that an error is reported at once.

    Raises:
        UserFault, PluginFault: naming the invalid value; the swap was not requested then.
    """
    spec = spec_of(Role.RENDERER, type_, settings_of(file, overrides), _environment(runtime_env))
    assert isinstance(spec, RendererSpec)
    if not spec.isolated:
        spec.settings(spec.resolve())
    if plain := [key for key, _ in plain_secrets(spec.model_dump(mode="json"))]:
        raise UserFault(
            f"{', '.join(plain)}: a swap is a file of the run, which holds no secret: put it into an environment "
            "variable of the run and write '${NAME}'"
        )
    swaps = swaps_of(run)
    swap = swaps.ask(spec)
    print(f"swap {swap.number} of {run}: {type_} requested", flush=True)
    ended = _wait(swaps, swap.number, wait)
    print(shown(_told(ended, run)), flush=True)
    return ended.state is not SwapState.REFUSED


def print_swaps(run: Path) -> None:
    """Print the swaps of a run."""
    table = Table("swap", "asked", "renderer", "state", "identity or reason", title=escape(str(run)))
    for swap in swaps_of(run).all():
        said = escape(shown(swap.identity or swap.message))
        table.add_row(str(swap.number), swap.asked, escape(swap.renderer.type), swap.state, said)
    Console().print(table if table.row_count else f"{run}: no swaps")


def swaps_of(run: Path) -> Swaps:
    """Return the swaps of a run. Raises UserFault when there is no run."""
    if not (run / "run.json").is_file():
        raise UserFault(f"no run found at {run}")
    return Swaps(Folder(str(run)))


def _environment(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = load_yaml(text, "value")
    except YamlFault as error:
        raise UserFault(f"--runtime-env {text!r} is not YAML: {error}") from error
    if not isinstance(value, dict) or not value:
        raise UserFault(f"--runtime-env {text!r}: write a mapping such as {{pip: [diffusers]}}")
    return value


def _wait(swaps: Swaps, number: int, seconds: float) -> Swap:
    """Return a swap once it has ended, or as it is after `seconds`."""
    end = time.monotonic() + seconds
    while (swap := swaps.get(number)).state is SwapState.ASKED and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return swap


def _told(swap: Swap, run: Path) -> str:
    if swap.state is SwapState.DONE:
        return f"swap {swap.number} is done: new groups use {swap.identity}"
    if swap.state is SwapState.REFUSED:
        return f"swap {swap.number} was rejected; the renderer is unchanged: {swap.message}"
    return (
        f"swap {swap.number} is not done yet: the renderer is still starting, or the run is stopped. "
        f"`genevolve plugins swap {run}` shows the outcome"
    )
