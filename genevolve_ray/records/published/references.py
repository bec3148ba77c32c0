"""References and free texts of published rows: what is clear is taken, in any form that a tool writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.rejections import RejectionReason, RowFault
from genevolve_ray.records.published.rows import text_of

_MAX_REFERENCES = 64
_MAX_CHARS = 1000
"""Of a value that is no text, as text."""


class ResultReference(Record):
    """Represent a reference of a published program as written: every field is text, "" where the row has none."""

    img_id: str = ""
    note: str = ""
    local_path: str = ""
    url: str = ""
    title: str = ""
    page_url: str = ""


def read_references(values: Mapping[str, Any]) -> tuple[ResultReference, ...]:
    """Return the references of a row, or the images that its renderer used where it states no references.

    A reference is an object, or the path of its image.

    Raises:
        RowFault: BAD_FIELD for anything else, naming the place.
    """
    value = values.get("reference_images")
    if value is None:
        value = values.get("used_images")
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowFault(RejectionReason.BAD_FIELD, f"reference_images is a text, but not JSON: {error}") from error
    if value in (None, "", {}):
        return ()
    items = [value] if isinstance(value, Mapping | str) else value
    if not isinstance(items, list | tuple) or len(items) > _MAX_REFERENCES:
        raise RowFault(RejectionReason.BAD_FIELD, f"reference_images is no list of at most {_MAX_REFERENCES}")
    return tuple(_reference(item, place) for place, item in enumerate(items))


def _reference(item: object, place: int) -> ResultReference:
    if isinstance(item, str):
        return ResultReference(local_path=text_of(item, f"reference {place}"))
    if not isinstance(item, Mapping):
        raise RowFault(RejectionReason.BAD_FIELD, f"reference {place} is a {type(item).__name__}, not an object")
    found = {name: words(item.get(name)) for name in ResultReference.model_fields if name != "local_path"}
    path = text_of(item.get("local_path"), f"reference {place}.local_path")
    return ResultReference(**found, local_path=path.strip())


def words(value: object) -> str:
    """Return a free text of a row, whatever its kind: objects as JSON, "" for a missing one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)[:_MAX_CHARS]
        except (TypeError, ValueError, RecursionError):
            value = str(value)[:_MAX_CHARS]
    return value.encode(errors="replace").decode()
