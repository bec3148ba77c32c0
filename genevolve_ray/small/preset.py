"""The preset `small` as the setup reads it: its tools, and the same preset over another folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.strict_text import load_yaml
from genevolve_ray.small.stages import PRESET_FOLDER

if TYPE_CHECKING:
    from genevolve_ray.tools.folder.toolbox import FolderToolsConfig


def tools_config(root: Path) -> FolderToolsConfig:
    """Return the settings of the preset's tools over the folder of a setup."""
    from genevolve_ray.tools.folder.toolbox import FolderToolsConfig

    return FolderToolsConfig.model_validate(moved_values(preset_values()["tools"]["config"], root))


@dataclass(frozen=True)
class OwnPreset:
    """Name the preset `small` over another folder."""

    path: Path
    current: bool
    """Whether its text is the one that is written; a user may have changed it."""


def own_preset(out: Path) -> OwnPreset:
    """Write OUT/small.yaml unless there is one: the preset `small` over another folder, which it names absolutely."""
    import yaml

    path = out / "small.yaml"
    changed = _differences(preset_values(), moved_values(preset_values(), out.absolute()))
    text = yaml.safe_dump({"extends": "small", **changed}, sort_keys=False).encode()
    if path.exists():
        return OwnPreset(path, path.read_bytes() == text)
    return OwnPreset(write_bytes(path, text), True)


def preset_values() -> dict[str, Any]:
    """Return the values of the preset `small` alone, without those that it extends."""
    text = (resources.files("genevolve_ray") / "configs" / "small.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = load_yaml(text, "preset small")
    return values


def moved_values(value: Any, out: Path) -> Any:
    """Return values of the preset with every path below `PRESET_FOLDER` as the same path below another folder."""
    if isinstance(value, Mapping):
        return {key: moved_values(inner, out) for key, inner in value.items()}
    if isinstance(value, list):
        return [moved_values(inner, out) for inner in value]
    if isinstance(value, str) and Path(value).is_relative_to(PRESET_FOLDER):
        return str(out / Path(value).relative_to(PRESET_FOLDER))
    return value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `new` that differ, with their keys; a list is one value."""
    return {
        key: _differences(old[key], value) if isinstance(value, Mapping) else value
        for key, value in new.items()
        if value != old[key]
    }
