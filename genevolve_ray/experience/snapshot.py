"""Snapshots of the experience memory: Parquet with checksums, one row per bundle, embeddings bit for bit."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from genevolve_ray.errors import GenevolveError
from genevolve_ray.experience.memory import Entry
from genevolve_ray.records.arrow import MEMORY_SCHEMA, check_schema
from genevolve_ray.records.experience import Experience, Use

if TYPE_CHECKING:
    from genevolve_ray.experience.memory import ExperienceMemory

_NEXT = b"genevolve_ray.next_number"
_DAMAGE = (pa.ArrowException, OSError, ValidationError, ValueError, KeyError)
"""What reading a damaged file may end in."""


class SnapshotError(GenevolveError, ValueError):
    """Bytes that are no snapshot of an experience memory, or a damaged one."""


@dataclass(frozen=True)
class MemoryState:
    """What a snapshot holds: entries with their embeddings, float32[n, d], and the number that comes next."""

    entries: list[Entry]
    vectors: NDArray[np.float32]
    next_number: int


def encode_memory(memory: ExperienceMemory) -> bytes:
    """Return a memory as the bytes of a Parquet file."""
    vectors = memory.vectors
    rows = [
        {**dict(e.experience), "number": e.number, "key": e.key, "uses": [u.model_dump() for u in e.uses]}
        for e in memory.rows()
    ]
    plain = MEMORY_SCHEMA.remove(MEMORY_SCHEMA.get_field_index("embedding"))
    table = pa.Table.from_pylist(rows, schema=plain)
    ends = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(vectors.shape[1])
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(vectors.reshape(-1), type=pa.float32()))
    place = MEMORY_SCHEMA.get_field_index("embedding")
    table = table.add_column(place, MEMORY_SCHEMA.field(place), lists)
    metadata = {**MEMORY_SCHEMA.metadata, _NEXT: str(memory.next_number).encode()}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
    )
    return buffer.getvalue()


def decode_memory(data: bytes) -> MemoryState:
    """Return what a snapshot holds.

    Raises:
        SnapshotError: when the bytes are no snapshot of this version, or damaged.
    """
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False, page_checksum_verification=True)
        check_schema(table, MEMORY_SCHEMA)
        next_number = int((table.schema.metadata or {})[_NEXT])
        vectors = _vectors(table.column("embedding"))
        rows = table.drop_columns(["embedding"]).to_pylist()
        entries = [_entry(row) for row in rows]
    except _DAMAGE as error:
        raise SnapshotError(f"no snapshot of an experience memory: {' '.join(str(error).split())[:300]}") from error
    numbers = [entry.number for entry in entries]
    if len(set(numbers)) != len(numbers) or any(number >= next_number for number in numbers):
        raise SnapshotError(f"bundle numbers {sorted(numbers)} do not fit the next number {next_number}")
    return MemoryState(entries, vectors, next_number)


def _vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a list column as float32[n, d]. Raises ValueError when the lists differ in length."""
    lists = column.combine_chunks()
    lengths = {len(entry) for entry in lists}
    if len(lengths) > 1:
        raise ValueError(f"embeddings of {len(lengths)} different lengths: {sorted(lengths)}")
    if not len(lists):
        return np.zeros((0, 0), dtype=np.float32)
    values = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    return np.asarray(values, dtype=np.float32)


def _entry(row: dict[str, Any]) -> Entry:
    number, key, uses = row.pop("number"), row.pop("key"), row.pop("uses")
    return Entry(number, key, Experience.model_validate(row), [Use.model_validate(use) for use in uses])
