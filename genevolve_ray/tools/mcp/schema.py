"""JSON schemas and names of foreign tools, as they enter the system prompt: bounded, and without references."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.texts import HIDDEN, neutralise

_DEPTH = 16
_DESCRIPTION_CHARS = 1000
_REFERENCE = re.compile(r"#/(\$defs|definitions)/([\w.-]{1,128})")
_NAMED = ("properties",)
"""Keywords whose keys are names, and whose values are schemas."""
_SCHEMAS = ("items", "additionalProperties", "not", "anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords whose values are schemas, or lists of them."""
_VALUES = ("enum", "const", "default", "examples", "type", "required", "format")
_NUMBERS = (
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems uniqueItems "
    "minProperties maxProperties"
).split()
_TEXTS = ("description", "title")


class SchemaRefused(GenevolveError, ValueError):
    """Signal the schema of a foreign tool that is not passed on; the message states the reason."""


def foreign_name(server: str, tool: str) -> str:
    """Return the name by which the policy calls a tool of a server: letters, digits, `_` and `-`."""
    return f"{server}_{re.sub(r'[^A-Za-z0-9_-]+', '_', tool)}"[:64]


def foreign_description(text: str) -> str:
    """Return a description as one line that cannot imitate the protocol."""
    line = " ".join(neutralise(HIDDEN.sub("", text[: 4 * _DESCRIPTION_CHARS])).split())
    return line if len(line) <= _DESCRIPTION_CHARS else line[: _DESCRIPTION_CHARS - 1] + "…"


def plain_schema(schema: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    """Return a foreign schema with its references written out, and with nothing that takes long to check.

    Patterns and conditions are left to the server: a regular expression from outside can run without end.

    Raises:
        SchemaRefused: for a schema that is too deep or too large, has a reference to elsewhere, texts that imitate the
            protocol, or is none of an object.
    """
    plain: dict[str, Any] = _Writer(schema, max_bytes).schema(schema, 0)
    if plain.setdefault("type", "object") != "object":
        raise SchemaRefused(f"its type is {str(plain['type'])[:32]!r}, not object")
    if (size := len(json.dumps(plain, ensure_ascii=False).encode(errors="replace"))) > max_bytes:
        raise SchemaRefused(f"it has {size} bytes, at most {max_bytes} are accepted")
    try:
        Draft202012Validator.check_schema(plain)
    except SchemaError as error:
        raise SchemaRefused(f"it is no JSON schema: {error.message[:120]}") from error
    return plain


class _Writer:
    """Write a schema out, with a limit on the parts that it grows to."""

    def __init__(self, root: Mapping[str, Any], max_bytes: int) -> None:
        self._root, self._left, self._max_bytes = root, max_bytes // 2, max_bytes

    def schema(self, node: Any, depth: int) -> Any:
        self._count(depth)
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            raise SchemaRefused(f"a part of it is a {type(node).__name__}, not a schema")
        if "$ref" in node:
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return {**self.schema(self._referred(node["$ref"]), depth + 1), **self.schema(rest, depth + 1)}
        written: dict[str, Any] = {}
        for key, value in _without_rest(node).items():
            if key in _NAMED and isinstance(value, Mapping):
                written[key] = {self._text(name): self.schema(inner, depth + 1) for name, inner in value.items()}
            elif key in _SCHEMAS:
                many = isinstance(value, list)
                written[key] = [self.schema(v, depth + 1) for v in value] if many else self.schema(value, depth + 1)
            elif key in _VALUES:
                written[key] = self._value(value, depth + 1)
            elif key in _NUMBERS and isinstance(value, int | float):
                written[key] = value
            elif key in _TEXTS and isinstance(value, str):
                written[key] = foreign_description(value)
        return written

    def _referred(self, reference: Any) -> Any:
        found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
        if found is None:
            raise SchemaRefused(f"it refers to {str(reference)[:64]!r}, which is not below #/$defs")
        group = self._root.get(found[1])
        if not isinstance(group, Mapping) or found[2] not in group:
            raise SchemaRefused(f"it refers to {found[0][:64]!r}, which it lacks")
        return group[found[2]]

    def _value(self, value: Any, depth: int) -> Any:
        self._count(depth)
        if isinstance(value, Mapping):
            return {self._text(key): self._value(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._value(inner, depth + 1) for inner in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        """Return a name or a value, which cannot be changed without another meaning."""
        self._left -= len(text) // 2
        if neutralise(text) != text or HIDDEN.search(text):
            raise SchemaRefused(f"{text[:64]!r} holds a tag of the protocol or hidden characters")
        return text

    def _count(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise SchemaRefused(f"written out it has more than {self._max_bytes} bytes")
        if depth > _DEPTH:
            raise SchemaRefused(f"it is nested more than {_DEPTH} deep")


def _without_rest(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema without `additionalProperties` where these are what no pattern names: patterns are left out."""
    if "patternProperties" not in node:
        return node
    return {key: value for key, value in node.items() if key != "additionalProperties"}
