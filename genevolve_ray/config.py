"""The configuration of a whole run, composed of the packages' config classes; `configs/*.yaml` are presets.

The module reads no environment variables and starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from genevolve_ray.cluster.config import PlacedConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.metric_writers import MetricsConfig
from genevolve_ray.gateway.config import GatewayConfig
from genevolve_ray.records.secrets import masked
from genevolve_ray.records.strict_text import YamlFault, key_lines, load_yaml


class ConfigError(UserFault, ValueError):
    """Signal a configuration that cannot run; the message names each invalid key and its value."""


class RunConfig(PlacedConfig):
    """Configure a whole run: what it computes, where it runs, what it logs, and which outside workers may roll out."""

    logging: MetricsConfig = MetricsConfig()
    """Metric writers in addition to `metrics.jsonl`."""
    gateway: GatewayConfig = GatewayConfig()
    """Rollouts from machines outside the cluster."""

    @model_validator(mode="after")
    def _outside_fits(self) -> RunConfig:
        if self.deterministic and self.gateway.port is not None:
            raise ValueError(
                f"deterministic=true and gateway.port={self.gateway.port}: outside workers are not bit-exact"
            )
        if self.gateway.port is not None and self.cluster.weights != "host":
            raise ValueError(
                f"cluster.weights={self.cluster.weights} writes no files, "
                f"but gateway.port={self.gateway.port} sends files to outside workers: use host"
            )
        if self.gateway.lag > self.loop.max_staleness:
            raise ValueError(
                f"gateway.lag={self.gateway.lag} exceeds loop.max_staleness={self.loop.max_staleness}: "
                "such samples would be discarded"
            )
        return self


def presets() -> list[str]:
    """Return the names of the presets that ship with the package."""
    folder = resources.files("genevolve_ray") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(preset: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a preset by name or a YAML file by path, apply `key.path=value` overrides, and validate the result.

    Raises:
        ConfigError: for an unknown preset, unreadable YAML, an override without "=", an unknown key or a bad value.
    """
    text = _read(preset)
    values = with_overrides(_values(preset, text), overrides)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = {path: f"{preset}: line {line}: " for path, line in key_lines(text).items()} if _is_file(preset) else {}
        raise ConfigError(explain(error, lines, [o.partition("=")[0].strip() for o in overrides])) from error


def with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key.path=value` overrides, with YAML values, to plain values in place and return them.

    Raises:
        ConfigError: for an override without "=", a value that is not YAML, or a key below a plain value.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override!r}: write key=value, for instance loop.group_size=6")
        try:
            _assign(values, key.strip().split("."), load_yaml(text, "value"))
        except YamlFault as error:
            said = str(error).removeprefix("value: line 1: ")
            raise ConfigError(f"--set {key}: {_value(key, text)} is not a YAML value: {said}") from error
    return values


def validate_config(values: dict[str, Any]) -> RunConfig:
    """Validate plain values. Raises ConfigError naming each invalid key and its value."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(
    error: ValidationError, places: Mapping[tuple[str, ...], str] | None = None, overrides: Sequence[str] = ()
) -> str:
    """Return all errors of a validation on one line.

    Args:
        error: the errors.
        places: by the path of a key, the file and line that come before its error.
        overrides: keys with values from elsewhere, which have no place.
    """
    return "; ".join(_place(entry, places or {}, overrides) + _explain(entry) for entry in error.errors())


def _place(entry: Any, places: Mapping[tuple[str, ...], str], overrides: Sequence[str]) -> str:
    """Return file and line of the innermost key of an error that was written there."""
    path = tuple(str(part) for part in entry["loc"])
    if any(_covers(override, path) for override in overrides):
        return ""
    return next((place for end in range(len(path), 0, -1) if (place := places.get(path[:end]))), "")


def _covers(override: str, path: tuple[str, ...]) -> bool:
    keys = tuple(override.split("."))
    return path[: len(keys)] == keys


def _explain(entry: Any) -> str:
    key = ".".join(str(part) for part in entry["loc"]) or "configuration"
    if entry["type"] == "extra_forbidden":
        return f"{key}: unknown key (value {_value(key, entry['input'])})"
    if entry["type"] == "missing":
        return f"{key}: missing"
    message = entry["msg"].removeprefix("Value error, ")
    return message if entry["type"] == "value_error" else f"{key}: {message}, got {_value(key, entry['input'])}"


def _value(key: str, value: Any) -> str:
    """Return a value as an error shows it: without secrets."""
    return repr(masked({key.rpartition(".")[2]: value}).popitem()[1])


def _is_file(preset: str) -> bool:
    return preset.endswith((".yaml", ".yml"))


def _read(preset: str) -> str:
    try:
        if _is_file(preset):
            return Path(preset).read_text(encoding="utf-8-sig")
        if preset in presets():
            return (resources.files("genevolve_ray") / "configs" / f"{preset}.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{preset}: {error}") from error
    raise ConfigError(f"unknown preset {preset!r}; known: {', '.join(presets())}, or pass a .yaml file")


def _values(preset: str, text: str) -> dict[str, Any]:
    try:
        values = load_yaml(text, preset)
    except YamlFault as error:
        raise ConfigError(str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{preset}: a configuration is a mapping of keys, got {type(values).__name__}")
    return values


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    if path[0] == "profile" and len(path) > 1 and isinstance(values.get("profile"), str):
        values["profile"] = {"extends": values["profile"]}  # A named profile that differs in one key.
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} is a value, not a group of keys")
    values[path[-1]] = value
