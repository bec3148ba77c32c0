"""Resolved configuration of a run, and the keys that may change when it is resumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.differences import ABSENT, differences
from genevolve_ray.records.secrets import masked, without_secrets


def dump_config(config: BaseModel | Mapping[str, Any]) -> bytes:
    """Return a configuration as YAML, in the order of its fields and without secrets."""
    plain = masked(config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()


def read_resolved(data: bytes, path: str) -> dict[str, Any]:
    """Return a configuration that `dump_config` wrote. Raises StoreError naming the file when it is corrupt."""
    try:
        loaded = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is corrupt: {error}") from error
    if not isinstance(loaded, dict):
        raise StoreError(f"{path} is corrupt: it contains no configuration")
    return loaded


def check_unchanged(
    stored: Mapping[str, Any], config: BaseModel | Mapping[str, Any], changeable: Collection[str], run: str
) -> None:
    """Check that a run is resumed with the configuration that it started with.

    A key that the stored configuration does not know is newer than the run. With its default value it changes nothing.
    A secret may change, and so may the way in which it is given.

    Raises:
        StoreError: listing the keys that differ and are not (below) one of the `changeable` ones, with both values.
    """
    differing = differences(
        without_secrets(stored), without_secrets(read_resolved(dump_config(config), "configuration"))
    )
    if isinstance(config, BaseModel):
        chosen = {d.key for d in differences({}, config.model_dump(mode="json", exclude_defaults=True))}
        differing = [d for d in differing if d.before != ABSENT or d.key in chosen]
    forbidden = [d for d in differing if not any(d.key == c or d.key.startswith(f"{c}.") for c in changeable)]
    if forbidden:
        listed = "; ".join(f"{d.key}: was {d.before}, is {d.after}" for d in forbidden)
        raise StoreError(f"run {run} was started with another configuration: {listed}. Restore it or start a new run")
