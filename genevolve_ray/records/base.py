"""The base of every record and every config class."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

_LEADING_ZERO = re.compile(r"\s*[-+]?0[0-9_]+\s*")


class Record(BaseModel):
    """Provide the base of records: frozen, without unknown fields.

    Unknown fields are errors, and values never change after construction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Config(BaseModel):
    """Provide the base of settings classes: frozen; each is defined next to the component that it configures.

    Where a number is meant, `true` is no 1, and a text with a leading zero (010) is no number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_alone(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name in _number_fields(cls):
            _check_numbers(value)
        return value


@cache
def _number_fields(kind: type[BaseModel]) -> frozenset[str]:
    """Return the fields that hold numbers, or lists of them, and neither texts nor truth values."""
    kinds = {name: _kinds(field.annotation) for name, field in kind.model_fields.items()}
    return frozenset(
        name for name, found in kinds.items() if found & {int, float} and not found & {bool, str, Any, object}
    )


def _kinds(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    if not inner:
        return {annotation} if annotation is Any or isinstance(annotation, type) else set()
    return set().union(*map(_kinds, inner))


def _check_numbers(value: Any) -> None:
    if isinstance(value, list | tuple):
        for one in value:
            _check_numbers(one)
    elif isinstance(value, bool):
        raise PydanticCustomError("number", "a number is expected")
    elif isinstance(value, str) and _LEADING_ZERO.fullmatch(value):
        raise PydanticCustomError("number", "a number without a leading zero is expected")
