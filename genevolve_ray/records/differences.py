"""Settings trees by dotted keys: one value, and the differences between two trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from genevolve_ray._moved import current_path

ABSENT = "(absent)"
"""Marks a key that one side does not have."""


def value_at(tree: Any, key: str) -> Any:
    """Return the value under a dotted key, None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


class Difference(NamedTuple):
    """Hold a dotted key and its value on both sides."""

    key: str
    before: Any
    after: Any


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Return the leaves that differ, in the order of their keys.

    An import path of version 0.1 equals the one that it has become.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    found = (Difference(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in sorted({*old, *new}))
    return [difference for difference in found if difference.before != difference.after]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; an empty mapping is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", current_path(value) if isinstance(value, str) else value
