"""YAML and JSON without silent surprises: a key given twice, a number that YAML reads as octal, a byte order mark.

PyYAML lets the last of equal keys win, reads 010 as 8 and 16:9 as 969. Here these are errors that name key and line, or
plain texts. The package `ruamel.yaml` refuses equal keys as well; it would be a second YAML library beside PyYAML, which
Ray and transformers install.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from genevolve_ray.errors import UserFault

_OCTAL = "!octal"
_MERGE = "tag:yaml.org,2002:merge"
_TAG = "tag:yaml.org,2002:"


class YamlFault(UserFault, ValueError):
    """Report a text that is no valid YAML; the message names source, line and key."""


class _Loader(yaml.SafeLoader):
    """Load plain values; equal keys and octal numbers are errors, and 16:9 is a text."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag not in {_TAG + "int", _TAG + "float", _TAG + "bool"}
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping. Raises ConstructorError for a key that is given twice."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def octal(self, node: yaml.ScalarNode) -> None:
        """Refuse a number with a leading zero."""
        plain = str(node.value).lstrip("+-0").replace("_", "") or "0"
        reason = f"{node.value} starts with 0, as octal numbers do: write {plain}, or '{node.value}' for a text"
        raise ConstructorError(None, None, reason, node.start_mark)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(tag, re.compile(pattern), list(first))


# Whether yes and no are meant as texts is decided by the setting that they are for.
_resolve(_TAG + "bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve(_OCTAL, r"^[-+]?0[0-9_]+$", "-+0")
_resolve(_TAG + "int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$", "-+0123456789")
_resolve(
    _TAG + "float",
    r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)
_Loader.add_constructor(_OCTAL, _Loader.octal)


def read_yaml(path: Path) -> Any:
    """Return the values of a YAML file, with or without a byte order mark. Raises OSError, and YamlFault."""
    return load_yaml(_text(path), str(path))


def load_yaml(text: str, source: str) -> Any:
    """Return the values of a YAML text. Raises YamlFault, in one line that begins with `source` and the line."""
    try:
        return yaml.load(text.removeprefix("\ufeff"), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}: line {mark.line + 1}" if mark is not None else source
        raise YamlFault(f"{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise YamlFault(f"{source}: {' '.join(str(error).split())}") from error


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line, from 1, of each key of a YAML text that `load_yaml` accepts."""
    found: dict[tuple[str, ...], int] = {}

    visited: set[int] = set()

    def visit(node: Any, path: tuple[str, ...]) -> None:
        if id(node) in visited:  # An alias may make a node its own child.
            return
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[*path, str(key.value)] = key.start_mark.line + 1
                visit(value, (*path, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for place, value in enumerate(node.value):
                found[*path, str(place)] = value.start_mark.line + 1
                visit(value, (*path, str(place)))

    visit(yaml.compose(text.removeprefix("\ufeff"), Loader=_Loader), ())
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlFault(f"{path}: is not UTF-8: {error}") from error


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, as `object_pairs_hook`. Raises ValueError for a key that is given twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name[:80]!r} is given twice")
        found[name] = value
    return found
