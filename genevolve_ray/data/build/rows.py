"""Rows of the data pipeline, and the one convention by which every stage rejects them.

**Convention.** A stage returns one row for each row that it gets, in the same order. A row that a stage rejects stays in
the data: it carries the reason as `rejected`, and every later stage passes it on unchanged. So rows never vanish, the
sum of kept and rejected rows is the same after every stage, and the rejections of a data set are a query over its rows
(`count_rejections`). A rejection is final except for one kind: `OUTAGE` is no verdict on a row. It states that a service
failed after its bounded retries, and a stage that is repeated takes such rows again (`is_open`).

Ids are hashes of content and seed: equal inputs have equal ids on every machine, and an id never depends on the order of
rows. Columns are flat (texts, numbers, lists of texts); free-form values are JSON text.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.records.request import EvalType, Request

if TYPE_CHECKING:
    import pyarrow as pa

OUTAGE = "outage"
"""Reason of a row that a stage could not decide, because a service failed."""
_ID_DIGITS = 16
_VERSION_KEY = b"genevolve_ray.schema"


def stable_id(kind: str, *content: Any) -> str:
    """Return `kind-` and 16 hex digits of the SHA-256 of JSON values. Raises TypeError for other values."""
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]}"


class RowRejection(Record):
    """Hold the reason why a stage rejected a row.

    `values` are the values behind it, as text, such as `92 words`. Where several rules are broken, `reason` is the first
    one, and each value begins with the name of its rule.
    """

    stage: str
    reason: str
    values: tuple[str, ...] = ()


class BuildRow(Record):
    """Provide the base of all rows of the pipeline: an id, and the reason of a rejection."""

    id: str
    rejected: RowRejection | None = None

    def reject(self, stage: str, reason: str, *values: str) -> Self:
        """Return the row as rejected; the first rejection of a row stands."""
        if not is_open(self, stage):
            return self
        rejection = RowRejection(stage=stage, reason=reason, values=values)
        return self.model_copy(update={"rejected": rejection})


class Recipe(BuildRow):
    """Describe a request that is to be written: the six fields of a recipe, and what follows from them.

    The names are those of a taxonomy. `requirement` is the dominant one. `text_search` states whether a text search is
    needed to answer the request, `image_search` whether an image search is.
    """

    eval_type: EvalType
    family: str
    gap: str
    anchor: str
    requirement: str
    secondary: tuple[str, ...] = ()
    difficulty: str
    image_search: bool = True
    text_search: bool = True


class NamedEntity(BuildRow):
    """Hold a subject that prompts may name, and its origin. `popularity` is any measure, greater for better known ones."""

    name: str
    kind: str = ""
    popularity: float | None = None
    license: str = ""
    source: str = ""


class PromptDraft(Record):
    """Hold a request as its writer gives it.

    `image_query` and `text_query` state what a search must find before the picture can be drawn, `visible` what a judge
    can check by eye, and `people` the real persons that the prompt names.
    """

    prompt: str = ""
    image_query: str = ""
    text_query: str = ""
    visible: tuple[str, ...] = ()
    people: tuple[str, ...] = ()


class PromptRow(PromptDraft, Recipe):
    """Hold a recipe with its entities and, after the stage `prompts`, the request that was written from it.

    `writer` is the identity of the writer, `repairs` the number of answers that it sent back to the model, and `meta`
    holds facts of the writer for judges, as `Request.meta`.
    """

    recipe_id: str
    entities: tuple[str, ...] = ()
    entity_ids: tuple[str, ...] = ()
    writer: str = ""
    repairs: int = 0
    meta: dict[str, Any] = Field(default_factory=dict)

    def as_request(self) -> Request:
        """Return the request of a row that has a prompt. Raises ValueError for one without."""
        if not self.prompt:
            raise ValueError(f"row {self.id} has no prompt")
        return Request(
            id=self.id,
            prompt=self.prompt,
            eval_type=self.eval_type,
            category=self.family,
            difficulty=self.difficulty,
            meta=self.meta,
        )


Row = TypeVar("Row", bound=BuildRow)


def is_open(row: BuildRow, stage: str) -> bool:
    """Return whether a stage still has to decide a row: it is not rejected, or only by an outage of this stage."""
    return row.rejected is None or (row.rejected.reason == OUTAGE and row.rejected.stage == stage)


def kept(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that no stage rejected."""
    return [row for row in rows if row.rejected is None]


def count_rejections(rows: Iterable[BuildRow]) -> Counter[tuple[str, str]]:
    """Return the number of rejected rows by (stage, reason)."""
    return Counter((row.rejected.stage, row.rejected.reason) for row in rows if row.rejected is not None)


# --- Arrow -------------------------------------------------------------------------------------------------------------


def arrow_schema(kind: type[BuildRow]) -> pa.Schema:
    """Return the Arrow schema of a kind of row, with the name of the kind in its metadata.

    Texts, numbers and lists of texts are columns of their own. `rejected` is a struct that may be null, and a dict is
    JSON text.

    Raises:
        TypeError: naming the field whose type has no column.
    """
    import pyarrow as pa

    fields = [_column(name, info.annotation) for name, info in kind.model_fields.items()]
    return pa.schema(fields, metadata={_VERSION_KEY: f"{kind.__name__}/1".encode()})


def to_table(rows: Sequence[BuildRow], kind: type[BuildRow]) -> pa.Table:
    """Return rows of one kind as a table of its schema, in order. Raises TypeError for a row of another kind."""
    import pyarrow as pa

    if other := next((row for row in rows if type(row) is not kind), None):
        raise TypeError(f"row {other.id} is a {type(other).__name__}, not a {kind.__name__}")
    return pa.Table.from_pylist([to_columns(row) for row in rows], schema=arrow_schema(kind))


def from_table(table: pa.Table, kind: type[Row]) -> list[Row]:
    """Return the rows of a table that `to_table` made, in order.

    Raises:
        ValueError: for a table of another schema, or a row that breaks the rules of its kind.
    """
    expected = arrow_schema(kind)
    if not table.schema.equals(expected):
        wrong = sorted({field.name for field in expected} ^ set(table.schema.names)) or "other types"
        raise ValueError(f"the table differs from the schema of {kind.__name__}: {wrong}")
    return [from_columns(row, kind) for row in table.to_pylist()]


def to_columns(row: BuildRow) -> dict[str, Any]:
    """Return a row as plain values, one a column, as `Table.from_pylist` and Ray Data take them."""
    values = row.model_dump(mode="json")
    return {name: _text(value) if name in _json_fields(type(row)) else value for name, value in values.items()}


def from_columns(values: dict[str, Any], kind: type[Row]) -> Row:
    """Return the row of some columns. Raises ValueError where they break the rules of its kind."""
    read = {name: json.loads(values[name]) for name in _json_fields(kind) if name in values}
    return kind.model_validate({**values, **read})


def _json_fields(kind: type[BuildRow]) -> list[str]:
    return [name for name, info in kind.model_fields.items() if typing.get_origin(info.annotation) is dict]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _column(name: str, annotation: Any) -> pa.Field:
    import pyarrow as pa

    plain = [part for part in typing.get_args(annotation) if part is not type(None)]
    nullable = typing.get_origin(annotation) in (types.UnionType, typing.Union) and len(plain) == 1
    return pa.field(name, _arrow_type(name, plain[0] if nullable else annotation), nullable=nullable)


def _arrow_type(name: str, annotation: Any) -> pa.DataType:
    import pyarrow as pa

    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return pa.list_(_arrow_type(name, inner[0]))
    if origin is dict:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return pa.struct([_column(field, info.annotation) for field, info in annotation.model_fields.items()])
    if isinstance(annotation, type) and issubclass(annotation, str | Enum):
        return pa.string()
    found = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(annotation)
    if found is None:
        raise TypeError(f"{name}: {annotation} has no column")
    return found
