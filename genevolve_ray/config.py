"""The configuration of a whole run, composed of the packages' config classes; `configs/*.yaml` are presets.

The module reads no environment variables and starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, model_validator

from genevolve_ray.cluster.config import PlacedConfig, usual_way
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.layers import EXTENDS, Layer, LayerFault, is_file, key_places, merge_layers, read_layers
from genevolve_ray.evolution.layers import presets as presets
from genevolve_ray.evolution.plugin_folders import look_beside
from genevolve_ray.evolution.plugins import Role, same_plugin
from genevolve_ray.evolution.trackers.port import LoggingConfig
from genevolve_ray.gateway.config import GatewayConfig
from genevolve_ray.records.differences import value_at
from genevolve_ray.records.secrets import masked
from genevolve_ray.records.strict_text import YamlFault, load_yaml
from genevolve_ray.records.suggestions import meant, meant_key

_NAMED = re.compile(r"(?<![\w.])([a-z_]{1,40}(?:\.[a-z_]{1,40}){1,6}|deterministic|profile)=")
"""A key with its value in a message."""


ConfigT = TypeVar("ConfigT", bound="RunConfig")


class ConfigError(UserFault, ValueError):
    """Signal a configuration that cannot run; the message names each invalid key and its value."""


class RunConfig(PlacedConfig):
    """Configure a whole run: what it computes, where it runs, what it logs, and which outside workers may roll out."""

    logging: LoggingConfig = LoggingConfig()
    """Trackers in addition to `metrics.jsonl`."""
    gateway: GatewayConfig = GatewayConfig()
    """Rollouts from machines outside the cluster."""
    layers: tuple[str, ...] = ()
    """The file or preset that the run was started with, and what it `extends`, the nearest first. It is recorded, not set."""

    @model_validator(mode="after")
    def _weights_by_devices(self) -> RunConfig:
        """Choose the transport of weights where none is given; outside workers receive files."""
        if "weights" not in self.cluster.model_fields_set and self.gateway.port is None:
            cluster = self.cluster.model_copy(update={"weights": usual_way(self)})
            # Frozen from the end of construction.
            object.__setattr__(self, "cluster", cluster)
        return self

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
        if self.gateway.port is not None and self.gateway.only and self.experience.redraws.draws:
            raise ValueError(
                f"experience.redraws.draws={self.experience.redraws.draws} and gateway.only=true: re-draws are played by the "
                "run's own engines, of which there are none"
            )
        if self.gateway.lag > self.loop.max_staleness:
            raise ValueError(
                f"gateway.lag={self.gateway.lag} exceeds loop.max_staleness={self.loop.max_staleness}: "
                "such samples would be discarded"
            )
        return self


def load_config(preset: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of a run; see `load_as`."""
    return load_as(RunConfig, preset, overrides)


def load_as(kind: type[ConfigT], preset: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Load a preset by name or a YAML file by path with what it extends, apply `key.path=value` overrides, and validate.

    `kind` is the class of the configuration: that of a run, or one that extends it.

    Raises:
        ConfigError: for an unknown preset, unreadable YAML, an override without "=", an unknown key or a bad value.
    """
    layers = _layers(preset)
    values = merge_layers(layers)
    recorded = values.get("layers") or []
    if not isinstance(recorded, list):
        raise ConfigError(f"layers: a run records the files that it was started with here, got {recorded!r}")
    values["layers"] = [*(layer.name for layer in layers), *recorded]
    look_beside(recorded)
    values = with_overrides(_of_new_types(values, overrides), overrides)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise config_fault(error, preset, overrides, kind) from error


def config_fault(
    error: ValidationError, preset: str, overrides: Sequence[str], kind: type[BaseModel] = RunConfig
) -> ConfigError:
    """Return the errors of the values of a preset or a file as one line, with the place of each key."""
    places = key_places(_layers(preset)) if is_file(preset) else {}
    return ConfigError(explain(error, places, [override.partition("=")[0].strip() for override in overrides], kind))


def _of_new_types(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return values without the settings of plug-ins that overrides replace by one of another type."""
    for override in overrides:
        key, equals, text = override.partition("=")
        role, _, field = key.strip().partition(".")
        spec = values.get(role)
        if equals and field == "type" and role in set(Role) and isinstance(spec, dict):
            values = values if same_plugin(role, spec.get("type"), text.strip()) else values | {role: {}}
    return values


def layered_values(preset: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the plain values of a preset or a file with what it extends and with overrides, as `load_config` reads it.

    Raises:
        ConfigError: for a layer that cannot be read, or an override that cannot be applied.
    """
    values = merge_layers(_layers(preset))
    return with_overrides(_of_new_types(values, overrides), overrides)


def _layers(preset: str) -> list[Layer]:
    """Return the layers of a configuration; classes that it names are also found beside its files."""
    try:
        layers = read_layers(preset)
    except LayerFault as error:
        raise ConfigError(str(error)) from error
    look_beside(layer.name for layer in layers)
    return layers


def key_place(config: RunConfig, key: str) -> str:
    """Return where a key of a configuration has its value from, as a message begins: file and line, `--set`, or "".

    The files are read again: one that has been moved since has no place.
    """
    path = tuple(key.split("."))
    try:
        layers = read_layers(config.layers[0])
    except (LayerFault, IndexError):
        return ""
    if value_at(merge_layers(layers), key) != value_at(config.model_dump(), key):
        return "--set "
    places = key_places(layers) if is_file(config.layers[0]) else {}
    return next((place for end in range(len(path), 0, -1) if (place := places.get(path[:end]))), "")


def with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key.path=value` overrides, with YAML values, to plain values in place and return them.

    Raises:
        ConfigError: for an override without "=", a value that is not YAML, or a key below a plain value.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override!r}: write key=value, for instance loop.group_size=6")
        if key.strip() == EXTENDS:
            raise ConfigError(f"--set {override}: a YAML file names its base, an option cannot")
        if key.strip() == "layers":
            raise ConfigError(f"--set {override}: a run records its files there, an option cannot")
        try:
            _assign(values, key.strip().split("."), load_yaml(text, "value"))
        except YamlFault as error:
            said = str(error).removeprefix("value: line 1: ")
            raise ConfigError(f"--set {key}: {_value(key, text)} is not a YAML value: {said}") from error
    return values


def validate_config(values: dict[str, Any]) -> RunConfig:
    """Validate plain values, such as those of a run, whose classes may lie beside the file that it was started with.

    Raises ConfigError naming each invalid key and its value.
    """
    layers = values.get("layers")
    look_beside(layers if isinstance(layers, list | tuple) else ())
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(
    error: ValidationError,
    places: Mapping[tuple[str, ...], str] | None = None,
    overrides: Sequence[str] = (),
    kind: type[BaseModel] = RunConfig,
) -> str:
    """Return all errors of a validation on one line.

    Args:
        error: the errors.
        places: by the path of a key, the file and line that come before its error.
        overrides: keys with values from elsewhere, which have no place.
        kind: the settings class; for an unknown key its nearest one is named.
    """
    # A mistyped key is also missing: the typo is the cause, and comes first.
    entries = sorted(error.errors(), key=lambda entry: entry["type"] == "missing")
    return "; ".join(_place(entry, places or {}, overrides) + _explain(entry, kind) for entry in entries)


def _place(entry: Any, places: Mapping[tuple[str, ...], str], overrides: Sequence[str]) -> str:
    """Return file and line of the innermost key of an error that was written there."""
    path = tuple(str(part) for part in entry["loc"])
    keys = [tuple(override.split(".")) for override in overrides]
    unknown = entry["type"] == "extra_forbidden"
    if any(path[: len(key)] == key for key in keys):
        return "--set " if unknown else ""
    if unknown and path not in places and any(key[: len(path)] == path for key in keys):
        return "--set "
    if place := next((place for end in range(len(path), 0, -1) if (place := places.get(path[:end]))), ""):
        return place
    # A conflict between groups belongs to no key: the message names the keys with their values.
    named = [key for key in _NAMED.findall(entry["msg"]) if key not in overrides]
    return next((place for key in named if (place := places.get(tuple(key.split("."))))), "")


def _explain(entry: Any, kind: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in entry["loc"]) or "configuration"
    if entry["type"] == "extra_forbidden":
        base = meant(key, [EXTENDS]) if kind is RunConfig else ""
        return f"{key}: unknown key (value {_value(key, entry['input'])}){base or meant_key(key, kind)}"
    if entry["type"] == "missing":
        return f"{key}: missing"
    if entry["type"] == "model_type":
        plugin = isinstance(entry["input"], str) and key.rpartition(".")[2] in set(Role)
        how = f"; write {key}: {{type: {entry['input']}}}" if plugin else ""
        return f"{key}: a group of keys is expected, got {_value(key, entry['input'])}{how}"
    message = entry["msg"].removeprefix("Value error, ")
    return message if entry["type"] == "value_error" else f"{key}: {message}, got {_value(key, entry['input'])}"


def _value(key: str, value: Any) -> str:
    """Return a value as an error shows it: without secrets."""
    return repr(masked({key.rpartition(".")[2]: value}).popitem()[1])


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    if path[0] == "profile" and len(path) > 1 and isinstance(values.get("profile"), str):
        values["profile"] = {"extends": values["profile"]}  # A named profile that differs in one key.
    for part in path[:-1]:
        if values.get(part) is None:  # A group that is switched off, such as learner.lora, begins with its defaults.
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} is a value, not a group of keys")
    values[path[-1]] = value
