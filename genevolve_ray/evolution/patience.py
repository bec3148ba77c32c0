"""Time limits of plug-ins from their own settings: all tries of the services behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.renderers.presets import NamedConfig

SHORTEST = 300.0
"""Time limit of a call of a plug-in without services, in seconds."""
_MARGIN = 60.0


def time_limit(spec: PluginSpec) -> float:
    """Return the seconds after which a call of a plug-in counts as lost, longer than all its own tries.

    Services may be called one after the other, and an answer that cannot be read is requested again. A plug-in whose
    settings cannot be read here (an environment of its own, a class that is not found) gets the shortest limit.
    """
    servers = getattr(spec, "mcp", None)
    slowest = max(SHORTEST, servers.patience_s + _MARGIN) if servers is not None else SHORTEST
    return max(slowest, _own_limit(spec))


def _own_limit(spec: PluginSpec) -> float:
    parts = [node for _, node in nodes(_own_settings(spec))]
    rounds = 1 + max((many for node in parts if isinstance(many := getattr(node, "repairs", 0), int)), default=0)
    tries = sum(node.patience_s for node in parts if isinstance(node, RemoteConfig))
    return max(SHORTEST, tries * rounds + _MARGIN) if tries else SHORTEST


def _own_settings(spec: PluginSpec) -> Any:
    """Return the validated settings of a plug-in inside another's settings; as they are, where they are not valid."""
    if spec.isolated:
        return spec.config
    try:
        return plain_settings(spec.settings(spec.resolve()))
    except (UserFault, ValueError, OSError, AttributeError):  # Checks before the start report it.
        return spec.config


def plain_settings(settings: Any) -> Any:
    """Return the settings that a plug-in works with: of a renderer by name, those behind the name."""
    return settings.resolve()[1] if isinstance(settings, NamedConfig) else settings


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Yield every settings object inside a value with its key, outermost first."""
    if isinstance(value, BaseModel):
        yield path, value
    for name, inner in children(value):
        yield from nodes(inner, joined(path, name))


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each part of a settings object, a mapping or a list; of a plug-in, its own settings."""
    if isinstance(value, PluginSpec):
        yield "config", _own_settings(value)
    elif isinstance(value, BaseModel):
        yield from ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, Mapping):
        yield from ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(number), inner) for number, inner in enumerate(value))


def joined(path: str, name: str) -> str:
    """Return the dotted key of a part."""
    return f"{path}.{name}" if path else name
