"""Searches in a run's configuration: values to fill in, plug-ins' settings, services and the tokens they need."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from genevolve_ray.config import RunConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.patience import children, joined, nodes, plain_settings
from genevolve_ray.evolution.plugins import PluginFault, PluginSpec
from genevolve_ray.records.secrets import references
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.small.stages import MANIFEST, PRESET_FOLDER

SMALL = "small"
"""The preset whose parts a setup makes."""
MARK = "FILL_IN"
"""Placeholder in a preset for a value that only the user knows."""


@dataclass(frozen=True)
class ConfiguredService:
    """Identify a service outside the run: the role that calls it, the key of its settings, and the settings."""

    role: str
    key: str
    config: RemoteConfig


@dataclass(frozen=True)
class Token:
    """Identify a token that the settings at `key` need, by the name of its environment variable."""

    role: str
    key: str
    variable: str


def plugin_roles(config: RunConfig) -> tuple[str, ...]:
    """Return the roles whose plug-ins a run uses."""
    return tuple(config.plugins)


def fill_ins(config: RunConfig) -> list[tuple[str, str]]:
    """Return (key, value) of every value that is still to be filled in; parts that are switched off are left out."""
    unused = () if config.experience.enabled else ("experience.", "summariser.")
    embedder = config.experience.embedder.kind
    unused = (*unused, *(f"experience.embedder.{kind}." for kind in ("transformers", "endpoint") if kind != embedder))
    return [found for found in _marked(config.model_dump(mode="json"), "") if not found[0].startswith(unused)]


def waits(value: Any) -> bool:
    """Return whether a value, or one inside it, is still to be filled in."""
    return next(_marked(value, ""), None) is not None


def _marked(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and MARK in value:
        yield path, value
    for name, inner in children(value):
        yield from _marked(inner, joined(path, name))


def unmade(config: RunConfig) -> list[tuple[str, str]]:
    """Return (key, path) of every file and folder of the preset `small` that does not exist."""
    folders, values = (PRESET_FOLDER, setup_folder(config)), config.model_dump(mode="json")
    return [
        (key, path)
        for key, path in _texts(values, "")
        if any(Path(path).is_relative_to(folder) for folder in folders) and not Path(path).exists()
    ]


def setup_folder(config: RunConfig) -> Path:
    """Return the folder of the setup of the preset `small` that a run names: at least two keys name their parts in it.

    Two hub ids of one owner, or two relative names, are no setup: a folder that exists must hold the files of one.
    """
    from genevolve_ray.small.preset import preset_values

    if SMALL not in config.layers:
        return PRESET_FOLDER
    named, found = dict(_texts(config.model_dump(mode="json"), "")), Counter[Path]()
    for key, path in _texts(preset_values(), ""):
        inner = Path(path).relative_to(PRESET_FOLDER) if Path(path).is_relative_to(PRESET_FOLDER) else None
        if inner is not None and (given := named.get(key)) and Path(given).parts[-len(inner.parts) :] == inner.parts:
            found[Path(*Path(given).parts[: -len(inner.parts)])] += 1
    [(folder, times)] = found.most_common(1) or [(PRESET_FOLDER, 0)]
    return folder if times > 1 and _is_setup(folder) else PRESET_FOLDER


def _is_setup(folder: Path) -> bool:
    """Return whether a folder is that of a setup; one that was removed is known by its absolute path alone."""
    if any((folder / name).is_file() for name in (MANIFEST, f"{SMALL}.yaml")):
        return folder != Path()
    return folder.is_absolute() and not folder.exists()


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    for name, inner in children(value):
        yield from _texts(inner, joined(path, name))


def plugin_settings(role: str, spec: PluginSpec) -> tuple[Any, Any]:
    """Return a plug-in's class and its validated settings.

    Raises:
        UserFault: naming the invalid value.
    """
    try:
        kind = spec.resolve()
        return kind, spec.settings(kind)
    except PluginFault as error:
        raise UserFault(str(error) if str(error).startswith(f"{role}.") else f"{role}: {error}") from error
    except (ValueError, OSError, AttributeError) as error:
        raise UserFault(f"{role}: {error}") from error


def settings_nodes(config: RunConfig) -> list[tuple[str, str, BaseModel]]:
    """Return (role, key, settings) of every settings object of plug-ins and embedder.

    Plug-ins that are broken, or importable only in their own processes, are left out.
    """
    found: list[tuple[str, str, BaseModel]] = []
    for role in plugin_roles(config):
        spec = config.plugin(role)
        if spec.isolated:
            continue
        try:
            _, settings = plugin_settings(role, spec)
        except UserFault:
            continue
        found += [(role, key, node) for key, node in nodes(plain_settings(settings), f"{role}.config")]
    embedder = config.experience.embedder
    if config.experience.enabled and embedder.kind == "endpoint":
        found += [("embedder", key, node) for key, node in nodes(embedder.endpoint, "experience.embedder.endpoint")]
    return found


def services(config: RunConfig) -> list[ConfiguredService]:
    """Return every service outside the run that its parts call."""
    return [
        ConfiguredService(role, key, node)
        for role, key, node in settings_nodes(config)
        if isinstance(node, RemoteConfig)
    ]


def tokens(config: RunConfig) -> list[Token]:
    """Return every token that the parts of a run need."""
    named = ((role, key, getattr(node, "token_env", "")) for role, key, node in settings_nodes(config))
    return [Token(role, key, name) for role, key, name in named if isinstance(name, str) and name]


def unset_tokens(config: RunConfig) -> list[Token]:
    """Return the tokens whose variable is set neither here nor in the role's `runtime_env`. No value is returned."""
    return [token for token in tokens(config) if not (_set_here(token.variable) or _set_there(config, token))]


def _set_here(variable: str) -> bool:
    return bool(os.environ.get(variable, "").strip())


def _set_there(config: RunConfig, token: Token) -> bool:
    spec = config.plugin(token.role) if token.role in plugin_roles(config) else None
    variables = spec.runtime_env.get("env_vars") if spec is not None else None
    given = str(variables.get(token.variable, "")).strip() if isinstance(variables, Mapping) else ""
    return bool(given) and all(_set_here(name) for _, name in references(given))


def unset_references(settings: Mapping[str, Any], *, here: bool) -> list[tuple[str, str]]:
    """Return (key, variable) of every `${NAME}` whose variable is not set where it is read.

    Variables of a `runtime_env` are read by this process; others by the processes of the run: `here` says whether these
    are on this machine.
    """
    found = references(settings)
    return [(key, name) for key, name in found if (here or ".runtime_env." in key) and not _set_here(name)]
