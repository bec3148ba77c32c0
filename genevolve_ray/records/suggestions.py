"""The key that was probably meant: the nearest one in a tree of settings."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator
from functools import cache

from pydantic import BaseModel

_CUTOFF = 0.7
"""Least similarity of a suggestion, from 0 to 1, as difflib measures it."""


def meant(text: str, known: Iterable[str]) -> str:
    """Return `, did you mean X?` with the nearest of some names, "" where none is near."""
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=_CUTOFF)
    return f", did you mean {near[0]}?" if near else ""


def meant_key(key: str, kind: type[BaseModel]) -> str:
    """Return `, did you mean X?` with the nearest key of a settings class for a dotted key that it does not have.

    A key of the same group comes first, then one of the same name in another group, then the nearest of all. A key that
    exists was written with its dots: the text shows how a file nests it.
    """
    keys = setting_keys(kind)
    if key in keys:
        return f"; a file nests it: {': {'.join(key.split('.'))}: ...{'}' * key.count('.')}"
    group, _, name = key.rpartition(".")
    prefix = f"{group}." if group else ""
    siblings = {found.removeprefix(prefix): found for found in keys if found.startswith(prefix)}
    direct = [name_ for name_ in siblings if "." not in name_]
    if near := difflib.get_close_matches(name, direct, n=1, cutoff=_CUTOFF):
        return f", did you mean {siblings[near[0]]}?"
    same = sorted((found for found in keys if found.rpartition(".")[2] == name), key=lambda found: found.count("."))
    return f", did you mean {same[0]}?" if same else meant(key, keys)


@cache
def setting_keys(kind: type[BaseModel]) -> tuple[str, ...]:
    """Return the dotted keys of a settings class and of the classes below it, groups included."""
    return tuple(_keys(kind, "", ()))


def _keys(kind: type[BaseModel], above: str, parents: tuple[type[BaseModel], ...]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield f"{above}{name}"
        for inner in _models(field.annotation):
            if inner not in parents:
                yield from _keys(inner, f"{above}{name}.", (*parents, kind))


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)
