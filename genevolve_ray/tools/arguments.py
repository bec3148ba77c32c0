"""Reading the policy's arguments: wrong ones become a message that it can act on."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from genevolve_ray.errors import ToolArgumentError

ArgumentsT = TypeVar("ArgumentsT", bound=BaseModel)
_VALUE_CHARS = 60


def read_arguments(model: type[ArgumentsT], arguments: dict[str, Any]) -> ArgumentsT:
    """Validate arguments strictly (no coercion between types).

    Raises:
        ToolArgumentError: naming the first argument at fault and its value.
    """
    try:
        return model.model_validate(arguments, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "arguments"
        value = "" if first["type"] == "missing" else f", got {first['input']!r}"[:_VALUE_CHARS]
        raise ToolArgumentError(f"{where}: {first['msg']}{value}") from error
