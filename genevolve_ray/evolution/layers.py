"""Layers of a configuration: a YAML file extends a preset or another file, and holds only what differs.

`extends: NAME_OR_PATH` at the top level names the base: a preset, or a file relative to the file that names it. Mappings
are merged key by key; lists and plain values replace those of the base. A plug-in of another `type` takes nothing from
the base's plug-in, because settings belong to their class.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import Role, same_plugin
from genevolve_ray.records.strict_text import YamlFault, key_lines, load_yaml
from genevolve_ray.records.suggestions import meant

EXTENDS = "extends"
"""The key that names the base."""
_CHOICES: Mapping[str, str] = {"backend": "model", "name": "overrides"}
"""Keys of a plug-in's `config` that select what it uses, and the settings that fit that selection only."""
_EMBEDDER = ("experience", "embedder")
"""The one plug-in that may also be selected by `kind`."""


class LayerFault(UserFault, ValueError):
    """Report a layer that cannot be read; the message names file, line, key and value."""


@dataclass(frozen=True)
class Layer:
    """Hold one file or preset of a configuration."""

    name: str
    """The preset's name, or the path of the file."""
    text: str
    """The YAML text."""
    values: dict[str, Any]
    """Its values without `extends`."""

    @property
    def source(self) -> str:
        """The layer as messages name it."""
        return self.name if is_file(self.name) else f"preset {self.name}"


def presets() -> list[str]:
    """Return the names of the presets that ship with the package."""
    folder = resources.files("genevolve_ray") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def is_file(name: str) -> bool:
    """Return whether a name is the path of a YAML file, and not a preset."""
    return name.endswith((".yaml", ".yml"))


def read_layers(name: str) -> list[Layer]:
    """Return a preset or file and what it extends, the nearest first.

    Raises:
        LayerFault: for an unknown preset, an unreadable file, text that is no mapping, or bases in a cycle.
    """
    layers: list[Layer] = []
    seen: list[object] = []
    place = ""
    while True:
        identity = Path(name).resolve() if is_file(name) else name
        if identity in seen:
            raise LayerFault(f"{place}{' -> '.join([*(layer.name for layer in layers), name])} is a cycle")
        seen.append(identity)
        text = _read(name, place)
        values = _values(name, text, place)
        extending = EXTENDS in values
        base = values.pop(EXTENDS, None)
        layer = Layer(name, text, values)
        layers.append(layer)
        if not extending:
            break
        place = f"{layer.source}: line {key_lines(text)[EXTENDS,]}: {EXTENDS}: "
        name = _base(base, name, place)
    return layers


def merge_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the values of layers, the nearest first, as one mapping."""
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        values = _merge(values, copy.deepcopy(layer.values), (), {})
    return values


def key_places(layers: Sequence[Layer]) -> dict[tuple[str, ...], str]:
    """Return, by the path of each key, file and line where its value stands, as a message begins."""
    values: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for layer in reversed(layers):
        values = _merge(values, layer.values, (), places)
        places |= {path: f"{layer.source}: line {line}: " for path, line in key_lines(layer.text).items()}
    return places


def _merge(base: Any, top: Any, path: tuple[str, ...], places: dict[tuple[str, ...], str]) -> Any:
    """Return `top` over `base`; places of keys that the base loses are removed."""
    if not (isinstance(base, dict) and isinstance(top, dict)) or _other_type(base, top, path):
        _forget(places, path)
        return top
    merged = dict(base)
    if len(path) == 2 and path[0] in set(Role) and path[1] == "config":
        for choice, dependent in _CHOICES.items():
            if choice in base and choice in top and base[choice] != top[choice]:
                merged.pop(dependent, None)
                _forget(places, (*path, dependent))
    for key, value in top.items():
        merged[key] = _merge(merged[key], value, (*path, str(key)), places) if key in merged else value
    return merged


def _other_type(base: Mapping[str, Any], top: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Return whether two mappings configure plug-ins of different classes, or embedders of which one is built in."""
    if path == _EMBEDDER and bool(top.get("type")) != bool(base.get("type")):
        return bool(top.get("type")) or "kind" in top
    if not path or "type" not in base or "type" not in top:
        return False
    return not same_plugin(path[-1], base["type"], top["type"])


def _forget(places: dict[tuple[str, ...], str], path: tuple[str, ...]) -> None:
    for found in [key for key in places if key[: len(path)] == path]:
        del places[found]


def _base(base: Any, name: str, place: str) -> str:
    """Return the base as a preset's name, or as a path that is relative to the working directory."""
    if not isinstance(base, str) or not base:
        raise LayerFault(f"{place}name one preset or .yaml file, got {base!r}")
    return str(Path(name).parent / Path(base).expanduser()) if is_file(base) else base


def _read(name: str, place: str) -> str:
    try:
        if is_file(name):
            return Path(name).read_text(encoding="utf-8-sig")
        if name in presets():
            return (resources.files("genevolve_ray") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        preset = Path(name).stem
        same = f"; the preset is `{preset}`" if isinstance(error, FileNotFoundError) and preset in presets() else ""
        raise LayerFault(f"{place}{name}: {error}{same}") from error
    near = meant(name, presets())
    raise LayerFault(f"{place}unknown preset {name!r}{near}; known: {', '.join(presets())}, or pass a .yaml file")


def _values(name: str, text: str, place: str) -> dict[str, Any]:
    try:
        values = load_yaml(text, name)
    except YamlFault as error:
        raise LayerFault(f"{place}{error}") from error
    if not isinstance(values, dict):
        raise LayerFault(f"{place}{name}: a configuration is a mapping of keys, got {type(values).__name__}")
    return values
