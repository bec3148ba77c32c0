"""Changes of an experience memory between two points of its history: what a step writes instead of the whole memory.

A file of changes has the rows of a snapshot that were written or used, whole, with their places in the memory. Writing
a row again is harmless, so files that follow each other can be joined.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from genevolve_ray.experience.memory import (
    Entry,
    ExperienceMemory,
    MemoryPoint,
    MemoryState,
    SnapshotError,
    decode_memory,
    decode_rows,
    encode_memory,
)
from genevolve_ray.records.base import Record

_KEY = b"genevolve_ray.memory_changes"


class _Places(Record):
    """Describe where the rows of a file of changes belong."""

    rows: tuple[int, ...]
    size: int
    """Bundles of the memory afterwards."""
    after: int
    """The next number of the memory that the changes follow."""


@dataclass(frozen=True)
class _Changes:
    state: MemoryState
    places: _Places


def encode_changes(memory: ExperienceMemory, since: MemoryPoint) -> bytes:
    """Return the changes of a memory since a mark of it, as the bytes of a Parquet file."""
    rows = memory.changed_since(since)
    entries = memory.rows()
    state = MemoryState([entries[row] for row in rows], memory.vectors[rows], memory.next_number)
    return _encode(_Changes(state, _Places(rows=tuple(rows), size=len(memory), after=since.next_number)))


def join_changes(parts: Sequence[bytes]) -> bytes:
    """Return successive changes as one. Raises SnapshotError, and ValueError when there are none."""
    if len(parts) == 1:
        return parts[0]
    found = [_decode(part) for part in parts]
    if not found:
        raise ValueError("no changes to join")
    filled = [changes.state.vectors for changes in found if changes.places.rows]
    state = MemoryState(
        [entry for changes in found for entry in changes.state.entries],
        np.concatenate(filled) if filled else found[0].state.vectors,
        found[-1].state.next_number,
    )
    rows = tuple(row for changes in found for row in changes.places.rows)
    return _encode(_Changes(state, _Places(rows=rows, size=found[-1].places.size, after=found[0].places.after)))


def check_changes(data: bytes) -> None:
    """Check that bytes are changes of a memory. Raises SnapshotError."""
    _decode(data)


def replay(snapshot: bytes, changes: Sequence[bytes]) -> MemoryState:
    """Return the state of a snapshot after changes, in their order.

    Raises:
        SnapshotError: when bytes are damaged, or changes do not follow what is before them.
    """
    base = decode_memory(snapshot)
    entries, vectors, number = list(base.entries), list(base.vectors), base.next_number
    for change in map(_decode, changes):
        places, state = change.places, change.state
        if places.after != number:
            raise SnapshotError(f"changes follow a memory whose next number is {places.after}, not {number}")
        for row, entry, vector in zip(places.rows, state.entries, state.vectors, strict=True):
            _put(row, entry, vector, entries, vectors)
        if len(entries) < places.size:
            raise SnapshotError(f"changes lead to {places.size} bundles, but {len(entries)} are there")
        del entries[places.size :], vectors[places.size :]
        number = state.next_number
    table = np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    return MemoryState(entries, table, number)


def _put(
    row: int, entry: Entry, vector: NDArray[np.float32], entries: list[Entry], vectors: list[NDArray[np.float32]]
) -> None:
    if not 0 <= row <= len(entries):
        raise SnapshotError(f"changes write row {row} of a memory of {len(entries)} bundles")
    entries[row : row + 1], vectors[row : row + 1] = [entry], [vector]


def _encode(changes: _Changes) -> bytes:
    return encode_memory(changes.state, {_KEY: changes.places.model_dump_json().encode()})


def _decode(data: bytes) -> _Changes:
    state, metadata = decode_rows(data)
    try:
        places = _Places.model_validate(json.loads(metadata[_KEY]))
    except (KeyError, ValueError, ValidationError) as error:
        raise SnapshotError(f"no changes of an experience memory: {' '.join(str(error).split())[:300]}") from error
    if len(places.rows) != len(state.entries):
        raise SnapshotError(f"changes name {len(places.rows)} rows and hold {len(state.entries)}")
    return _Changes(state, places)
