"""Keys that a page or a preset sets are keys of the configuration."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_pages import PACKAGE, PAGES, ROOT, commands, fenced, is_key, quoted
from pydantic import BaseModel

from docs.configuration import parts
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.profile_source import SOURCE_KEYS
from genevolve_ray.commands.build_config import BUILDS, BuildConfig, load_build
from genevolve_ray.commands.data import LeakCommandConfig
from genevolve_ray.config import RunConfig, load_config, presets
from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.layers import EXTENDS
from genevolve_ray.evolution.plugins import SPECS, PluginSpec, Role

EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
PLACEHOLDER = re.compile(r"^(KEY|key|ROLE|NAME)\b")
Kind = type[BaseModel] | None


def unknown(values: Any, kind: Kind, above: str = "") -> Iterator[str]:
    """Yield the keys inside some values that the settings class does not have. No class: anything may stand there."""
    if not isinstance(values, Mapping) or kind is None:
        return
    for name, value in values.items():
        path = f"{above}{name}"
        if name not in kind.model_fields:
            if not (kind is ProtocolProfile and name in SOURCE_KEYS):
                yield path
        elif is_named(kind.model_fields[name].annotation) and isinstance(
            value, Mapping
        ):  # Settings by a name of the user's choice.
            for key, entry in value.items():
                yield from unknown(entry, below(kind, name, values), f"{path}.{key}.")
        else:
            yield from unknown(value, below(kind, name, values), f"{path}.")


def is_named(annotation: Any) -> bool:
    """Return whether a field maps names to settings, such as `judges`."""
    return typing.get_origin(annotation) is dict and next(parts(annotation), None) is not None


def below(kind: type[BaseModel], name: str, values: Mapping[str, Any]) -> Kind:
    """Return the class of what a key holds, None where it is no settings class, or one that is not here."""
    if issubclass(kind, PluginSpec):
        return config_of(kind, values.get("type", "")) if name == "config" else None
    return next(parts(kind.model_fields[name].annotation), None)


def config_of(spec: type[PluginSpec], named: str) -> Kind:
    """Return the `Config` of a plug-in, None for one that is an example and not installed."""
    try:
        return typing.cast(Kind, spec(type=named).resolve().Config)
    except UserFault:
        return None


def assigned(key: str, value: Any) -> dict[str, Any]:
    """Return `a.b=value` as nested values."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


@EVERY
def test_a_yaml_block_sets_keys_that_there_are(page: Path) -> None:
    for language, block in fenced(page):
        if language == "yaml":
            # Alternatives are shown below each other, under one key: each line of such a block is a document.
            lines = block.splitlines()
            one_liners = all(line and not line.startswith((" ", f"{EXTENDS}:")) for line in lines)
            for text in lines if one_liners else [block]:
                assert list(unknown(typed(yaml.safe_load(text)), BuildConfig)) == []


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with the types of the plug-ins of the preset that they extend."""
    base = values.pop(EXTENDS, None)
    if base is None:
        return values
    assert base in presets()
    given = {role: spec for role in Role if isinstance(spec := values.get(role), dict)}
    return values | {role: {"type": getattr(load_config(base), role).type} | spec for role, spec in given.items()}


@pytest.mark.parametrize("path", sorted((PACKAGE / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_preset_sets_keys_that_there_are(path: Path) -> None:
    assert list(unknown(typed(yaml.safe_load(path.read_text(encoding="utf-8"))), RunConfig)) == []


@pytest.mark.parametrize("path", sorted(BUILDS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_build_that_ships_can_be_loaded(path: Path) -> None:
    assert load_build(path.stem).data.recipes


@EVERY
def test_a_command_sets_keys_that_there_are(page: Path) -> None:
    for command in commands(page):
        words = command.words
        for setting in [word for option, word in zip(words, words[1:], strict=False) if option == "--set"]:
            key, _, value = (setting if command.whole else setting.strip("[]")).partition("=")
            if not PLACEHOLDER.match(key):
                values, kind = assigned(key, yaml.safe_load(value)), settings(words)
                preset = {EXTENDS: words[1]} if kind is RunConfig and words[1:2] and words[1] in presets() else {}
                assert list(unknown(typed(preset | values), kind)) == [], command.text


def settings(words: list[str]) -> Kind:
    """Return the class that `--set` of a command is about."""
    if words[0] == "sft":
        return SftRowsConfig
    if words[:2] == ["data", "build"]:
        return BuildConfig
    if words[:2] == ["data", "leaks"]:
        return LeakCommandConfig
    if words[:2] == ["plugins", "check"]:
        return config_of(SPECS[Role(words[2])], words[3])
    if words[:2] == ["plugins", "swap"]:
        return config_of(SPECS[Role.RENDERER], words[3])
    return RunConfig


@EVERY
def test_a_dotted_name_with_a_value_is_a_key(page: Path) -> None:
    shown = [re.match(r"(?:--set )?'?([a-z_]+(?:\.[A-Za-z_]+)+)(?:=|: )\S", text) for text in quoted(page)]
    assert sorted({found[1] for found in shown if found and not is_key(found[1])}) == []
