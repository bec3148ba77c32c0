"""The resolved configuration of a run, and what may change when it is resumed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from genevolve_ray.evolution.files import StoreError


def dump_config(config: BaseModel | Mapping[str, Any]) -> bytes:
    """Return a configuration as YAML, in the order of its fields."""
    plain = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()


def load_config(data: bytes, path: str) -> dict[str, Any]:
    """Return a configuration that `dump_config` wrote. Raises StoreError naming the file when it is corrupt."""
    try:
        loaded = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is corrupt: {error}") from error
    if not isinstance(loaded, dict):
        raise StoreError(f"{path} is corrupt: it holds no configuration")
    return loaded


def check_unchanged(
    stored: Mapping[str, Any], config: BaseModel | Mapping[str, Any], changeable: Collection[str], run: str
) -> None:
    """Check that a run is resumed with the configuration it was begun with.

    Raises:
        StoreError: listing the keys that differ and are not (below) one of the `changeable` ones, with both values.
    """
    before = dict(_leaves(stored))
    after = dict(_leaves(load_config(dump_config(config), "configuration")))
    differing = [k for k in {**before, **after} if before.get(k, _ABSENT) != after.get(k, _ABSENT)]
    forbidden = [k for k in differing if not any(k == c or k.startswith(f"{c}.") for c in changeable)]
    if forbidden:
        listed = "; ".join(f"{k}: was {before.get(k, _ABSENT)}, is {after.get(k, _ABSENT)}" for k in sorted(forbidden))
        raise StoreError(f"run {run} was begun with another configuration: {listed}. Set it back or begin a new run")


_ABSENT = "(absent)"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; an empty mapping is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
