"""Rows of a part as JSON lines and as Parquet at once, in bounded memory and with the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa

from genevolve_ray.records.published.files import encode

_GROUP_ROWS, _GROUP_BYTES = 100, 64 << 20
"""A row group ends after so many rows, or so many bytes of pictures: readers hold one at a time."""
_TEXT = {"dtype": "string", "_type": "Value"}
_TEXTS = {"feature": _TEXT, "_type": "Sequence"}
_NUMBER = {"dtype": "int64", "_type": "Value"}
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class RowColumns(Protocol):
    """Define the columns of a kind of row in Parquet."""

    @property
    def schema(self) -> pa.Schema:
        """The columns, with what the library `datasets` needs to know of them."""
        ...

    def row(self, values: Mapping[str, Any], pictures: Sequence[bytes]) -> dict[str, Any]:
        """Return the values of a row in Parquet, from those in JSON and its pictures."""
        ...


def _schema(fields: Sequence[tuple[str, Any]], features: Mapping[str, Any]) -> pa.Schema:
    """Return a schema whose metadata names the features, so that `datasets` decodes pictures."""
    described = json.dumps({"info": {"features": dict(features)}}, sort_keys=True)
    return pa.schema(list(fields)).with_metadata({"huggingface": described})


class ConversationColumns:
    """Describe the columns of conversations; pictures are inside, as `{bytes, path}`."""

    schema = _schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("images", pa.list_(_PICTURE)),
            ("meta", pa.string()),
        ],
        {
            "id": _TEXT,
            "messages": [{"role": _TEXT, "content": _TEXT}],
            "images": {"feature": {"_type": "Image"}, "_type": "Sequence"},
            "meta": _TEXT,
        },
    )

    def row(self, values: Mapping[str, Any], pictures: Sequence[bytes]) -> dict[str, Any]:
        """Return the values of a row in Parquet."""
        images = [{"bytes": data, "path": path} for data, path in zip(pictures, values["images"], strict=True)]
        return {**values, "images": images, "meta": _json(values["meta"])}


class CaseColumns:
    """Describe the columns of bench and self-evolution rows; free-form objects are JSON text, pictures are files."""

    schema = _schema(
        [
            *((name, pa.string()) for name in ("id", "prompt", "gt_image", "eval_type", "category", "difficulty")),
            ("prompt_pool_index", pa.int64()),
            *((name, pa.list_(pa.string())) for name in ("primary_skills", "secondary_skills", "skill_bundle")),
            *((name, pa.string()) for name in ("skill_challenge", "meta", "extra_info")),
        ],
        {
            **dict.fromkeys(("id", "prompt", "gt_image", "eval_type", "category", "difficulty"), _TEXT),
            "prompt_pool_index": _NUMBER,
            **dict.fromkeys(("primary_skills", "secondary_skills", "skill_bundle"), _TEXTS),
            **dict.fromkeys(("skill_challenge", "meta", "extra_info"), _TEXT),
        },
    )

    def row(self, values: Mapping[str, Any], pictures: Sequence[bytes]) -> dict[str, Any]:
        """Return the values of a row in Parquet."""
        found = {name: values.get(name) for name in self.schema.names}
        return {**found, "meta": _json(values.get("meta", {})), "extra_info": _json(values["extra_info"])}


def _json(value: Mapping[str, Any]) -> str:
    """Return an object as JSON text: its members may differ from row to row, which columns cannot."""
    return encode(value).decode()


class PartWriter:
    """Write rows to `PATH.jsonl` and `PATH.parquet`. Use it as a context."""

    def __init__(self, path: Path, columns: RowColumns) -> None:
        """Take the path without suffix, and the columns."""
        self._path, self._columns = path, columns
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Open both files."""
        import pyarrow.parquet as pq

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            self._lines = opened.enter_context(self._path.with_suffix(".jsonl").open("wb"))
            target = self._path.with_suffix(".parquet")
            self._table = opened.enter_context(pq.ParquetWriter(target, self._columns.schema, compression="zstd"))
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, and close both files."""
        with self._open:
            if error is None:
                self._flush()

    def add(self, values: Mapping[str, Any], pictures: Sequence[bytes]) -> None:
        """Write a row of values that JSON can hold; `pictures` are those that Parquet may hold itself."""
        self._lines.write(encode(dict(values)) + b"\n")
        self._rows.append(self._columns.row(values, pictures))
        self._bytes += sum(map(len, pictures))
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._table.write_table(pa.Table.from_pylist(self._rows, schema=self._columns.schema))
        self._rows, self._bytes = [], 0
