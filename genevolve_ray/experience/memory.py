"""The experience memory: bundles under the embeddings of their requests.

Exact search: every retrieval compares the query with every row, so the result never depends on an index. At the
intended sizes, memory bandwidth is the only cost.

Eviction, when the memory is full, drops one bundle. Bundles of the current step are dropped last, so that a request
finds its own fresh bundle. There are two rules:

    worth       the least gap_weight * gap - age_weight * (current step - step of the bundle), then the first inserted
    fifo-gap    the oldest step, in it the smallest gap, then the first inserted

(The current step is a common term of all worths, so the order does not change while nothing is inserted.) The paper's
rule is known as "first in, first out plus reward gap" alone. `fifo-gap` reads it as first in, first out, with the gap to
choose among bundles of one step. The other reading, the smallest gap first and then the oldest, is `worth` with
age_weight 0.

A later bundle of the same request replaces the earlier one. It has the same key, so it would always hide the earlier
one anyway, and it describes the current policy. The earlier one remains in the snapshots of its time.

Shape legend: n bundles, d dimensions.

Snapshots are Parquet files with checksums: one row per bundle, embeddings bit for bit. `experience/changes.py` writes
the rows alone that changed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from genevolve_ray.errors import GenevolveError
from genevolve_ray.experience.config import Eviction, MemoryConfig
from genevolve_ray.experience.likeness import nearest_rows
from genevolve_ray.records.arrow import MEMORY_SCHEMA, memory_rows, numbers_of
from genevolve_ray.records.experience import Experience, Use

_UNIT = 1e-3
"""How far the length of a vector may be from 1."""


@dataclass
class Entry:
    """Hold one bundle in the memory.

    Attributes:
        number: names the bundle within its run; numbers are assigned in order of insertion and never reused.
        key: the text whose embedding is searched.
        experience: the bundle.
        uses: where it was retrieved, in order.
    """

    number: int
    key: str
    experience: Experience
    uses: list[Use] = field(default_factory=list)


@dataclass(frozen=True)
class Hit:
    """Hold a bundle and its cosine similarity to a query.

    `own`: the bundle belongs to the request of the query, in the same step. `merged`: the bundle is the majority of
    those with these numbers, nearest first, and `number` and `similarity` are those of the nearest.
    """

    number: int
    experience: Experience
    similarity: float
    own: bool = False
    merged: tuple[int, ...] = ()


@dataclass(frozen=True)
class MemoryPoint:
    """Name a point in the history of a memory: its count of changes, and the number of its next bundle."""

    clock: int = 0
    next_number: int = 0


class ExperienceMemory:
    """Keep bundles, find the nearest, evict the least worth. One writer; nothing here is thread-safe."""

    def __init__(self, config: MemoryConfig | None = None) -> None:
        """Start empty; the first vector decides the dimension."""
        self.config = config or MemoryConfig()
        self._entries: list[Entry] = []
        self._rows: NDArray[np.float32] | None = None  # [capacity, d], the first n in use, aligned with the entries
        self._worth = np.zeros(self.config.capacity)  # first part of each bundle's `_rank`
        self._steps = np.zeros(self.config.capacity, dtype=np.int64)
        self._row_of: dict[str, int] = {}
        self._next = 0
        self._clock = 0
        self._changed = np.zeros(self.config.capacity, dtype=np.int64)  # the clock at each row's last change

    # --- content -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[Entry]:
        """The bundles in order of insertion."""
        return sorted(self._entries, key=lambda entry: entry.number)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Embeddings of `rows()`, float32[n, d]; a view."""
        return np.zeros((0, 0), dtype=np.float32) if self._rows is None else self._rows[: len(self)]

    def rows(self) -> list[Entry]:
        """Return the bundles in the order of `vectors`."""
        return list(self._entries)

    @property
    def next_number(self) -> int:
        """The number of the next bundle."""
        return self._next

    @property
    def mark(self) -> MemoryPoint:
        """The present point in the memory's history."""
        return MemoryPoint(self._clock, self._next)

    def changed_since(self, mark: MemoryPoint) -> list[int]:
        """Return the rows that were written or used since a mark, in order."""
        return [int(row) for row in np.flatnonzero(self._changed[: len(self)] > mark.clock)]

    def _touch(self, row: int) -> None:
        self._clock += 1
        self._changed[row] = self._clock

    # --- insertion ---------------------------------------------------------------------------------------------------

    def insert(self, experience: Experience, vector: NDArray[np.float32], key: str = "") -> int:
        """Keep a bundle under its request's embedding and return its number; call it in request order.

        Args:
            experience: the bundle, with step and request id.
            vector: float32[d] of length 1.
            key: the text that was embedded.

        Raises:
            ValueError: when the vector has another dimension than the others, or not length 1, or when the bundle has no
                request.
        """
        vector = self._checked(vector)
        if not experience.request_id or experience.step < 0:
            raise ValueError(
                f"a bundle needs request and step, got {experience.request_id!r} and step {experience.step}"
            )
        if self._rows is None:
            self._rows = np.empty((self.config.capacity, len(vector)), dtype=np.float32)
        number, self._next = self._next, self._next + 1
        self._put(self._place_for(experience), Entry(number, key, experience), vector)
        return number

    def _place_for(self, experience: Experience) -> int:
        """Return the row for a new bundle: that of the bundle it replaces, a free one, or that of least worth."""
        if (row := self._row_of.get(experience.request_id)) is not None:
            return row
        if len(self) < self.config.capacity:
            return len(self)
        row = self._least(experience.step)
        del self._row_of[self._entries[row].experience.request_id]
        return row

    def _least(self, step: int) -> int:
        fresh = self._steps >= step
        candidates = np.flatnonzero(~fresh) if not fresh.all() else np.arange(len(self))
        worth = self._worth[candidates]
        lowest = candidates[worth == worth.min()]
        return int(min(lowest, key=lambda row: _rank(self._entries[row], self.config)))

    def _put(self, row: int, entry: Entry, vector: NDArray[np.float32]) -> None:
        assert self._rows is not None
        if row == len(self):
            self._entries.append(entry)
        else:
            self._entries[row] = entry
        experience = entry.experience
        self._rows[row] = vector
        self._steps[row] = experience.step
        self._worth[row] = _rank(entry, self.config)[0]
        self._row_of[experience.request_id] = row
        self._touch(row)

    def _checked(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        if vector.ndim != 1 or (self._rows is not None and len(vector) != self._rows.shape[1]):
            expected = "[d]" if self._rows is None else f"[{self._rows.shape[1]}]"
            raise ValueError(f"an embedding must be float32{expected}, got {vector.dtype}{list(vector.shape)}")
        vector = np.ascontiguousarray(vector, dtype=np.float32)
        length = float(np.linalg.norm(vector))
        if not abs(length - 1) <= _UNIT:
            raise ValueError(f"an embedding must have length 1, got {length:g}")
        return vector

    # --- retrieval ---------------------------------------------------------------------------------------------------

    def retrieve(self, vector: NDArray[np.float32], request_id: str, step: int) -> Hit | None:
        """Return the nearest bundle if it reaches the threshold, else None, and record the use.

        Among equally near bundles the request's own fresh one comes first, then the youngest.

        Args:
            vector: float32[d] of length 1: the embedding of the request's retrieval key.
            request_id: the querying request; its own bundle of the same step is reported as `own`.
            step: the step of the query.

        Raises:
            ValueError: when the vector has another dimension than the memory's, or not length 1.
        """
        hits = self.near(vector, request_id, step)
        return self.use(hits[0], request_id, step) if hits else None

    def near(self, vector: NDArray[np.float32], request_id: str, step: int, count: int = 1) -> list[Hit]:
        """Return at most `count` bundles that reach the threshold, in the order of `retrieve`; records no use.

        Raises ValueError as `retrieve`.
        """
        vector = self._checked(vector)
        similar = self.vectors @ vector if self._entries else np.zeros(0, dtype=np.float32)

        def rank(row: int) -> tuple[bool, int]:
            entry = self._entries[row]
            return _is_own(entry.experience, request_id, step), entry.number

        found = nearest_rows(similar, count, self.config.least_cosine, rank)
        ranked = [(self._entries[row], similarity, rank(row)[0]) for row, similarity in found]
        return [Hit(entry.number, entry.experience, similarity, own) for entry, similarity, own in ranked]

    def use(self, hit: Hit, request_id: str, step: int) -> Hit:
        """Record that a request uses a bundle that `near` returned, and return the hit."""
        row = self._row_of[hit.experience.request_id]
        self._touch(row)
        use = Use(step=step, request_id=request_id, similarity=hit.similarity, own=hit.own)
        self._entries[row].uses.append(use)
        return hit

    def search(self, vector: NDArray[np.float32], top_k: int = 5) -> list[Hit]:
        """Return the nearest bundles, best first (the youngest of equals), without a threshold; records no use.

        Raises:
            ValueError: when the vector has another dimension than the memory's, or not length 1.
        """
        vector = self._checked(vector)
        similarities = self.vectors @ vector if self._entries else np.zeros(0, dtype=np.float32)
        numbers = np.array([entry.number for entry in self._entries], dtype=np.int64)
        order = np.lexsort((-numbers, -similarities))[:top_k]
        return [Hit(self._entries[r].number, self._entries[r].experience, float(similarities[r])) for r in order]

    # --- persistence -------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Return the state as the bytes of a Parquet file, from which `restore` makes an equal memory."""
        return encode_memory(MemoryState(self._entries, self.vectors, self._next))

    @classmethod
    def restore(cls, data: bytes, config: MemoryConfig | None = None) -> ExperienceMemory:
        """Return the memory of a snapshot: embeddings bit for bit, rows in their positions, uses and numbers.

        With a smaller capacity the bundles of least worth are dropped.

        Raises:
            SnapshotError: when the bytes are not a snapshot, or damaged.
        """
        return cls.of(decode_memory(data), config or MemoryConfig())

    @classmethod
    def of(cls, state: MemoryState, config: MemoryConfig) -> ExperienceMemory:
        """Return the memory of a state; see `restore`. Unless bundles are dropped, nothing has changed in it yet."""
        memory, entries, vectors = cls(config), state.entries, state.vectors
        kept = list(range(len(entries)))
        if len(entries) > config.capacity:
            kept = sorted(sorted(kept, key=lambda i: _rank(entries[i], config))[-config.capacity :])
        if entries:
            memory._rows = np.empty((config.capacity, vectors.shape[1]), dtype=np.float32)
        for row, i in enumerate(kept):
            memory._put(row, entries[i], vectors[i])
        memory._next, memory._clock = state.next_number, 0
        if len(kept) == len(entries):
            memory._changed[:] = 0
        return memory


def _is_own(experience: Experience, request_id: str, step: int) -> bool:
    return experience.request_id == request_id and experience.step == step


def _rank(entry: Entry, config: MemoryConfig) -> tuple[float, float, int]:
    """Return a bundle's place in the order of eviction, without the common term of the current step; least goes first."""
    experience = entry.experience
    if config.eviction is Eviction.FIFO_GAP:
        return experience.step, experience.gap, entry.number
    return config.gap_weight * experience.gap + config.age_weight * experience.step, 0.0, entry.number


_NEXT = b"genevolve_ray.next_number"
_DAMAGE = (pa.ArrowException, OSError, ValidationError, ValueError, KeyError)
"""Exceptions that reading a damaged file may raise."""


class SnapshotError(GenevolveError, ValueError):
    """Signal that bytes are not a snapshot of an experience memory, or a damaged one."""


@dataclass(frozen=True)
class MemoryState:
    """Hold the content of a snapshot.

    It consists of entries with their embeddings, float32[n, d], and the next number.
    """

    entries: list[Entry]
    vectors: NDArray[np.float32]
    next_number: int


def encode_memory(state: MemoryState, metadata: Mapping[bytes, bytes] | None = None) -> bytes:
    """Return a memory's state as the bytes of a Parquet file, with further metadata."""
    vectors = state.vectors
    rows = [
        {
            **dict(e.experience),
            "guidance": [{"slot": slot, "bullets": bullets} for slot, bullets in e.experience.guidance.items()],
            "number": e.number,
            "key": e.key,
            "uses": [u.model_dump() for u in e.uses],
        }
        for e in state.entries
    ]
    plain = MEMORY_SCHEMA.remove(MEMORY_SCHEMA.get_field_index("embedding"))
    table = pa.Table.from_pylist(rows, schema=plain)
    ends = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(vectors.shape[1])
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(vectors.reshape(-1), type=pa.float32()))
    place = MEMORY_SCHEMA.get_field_index("embedding")
    table = table.add_column(place, MEMORY_SCHEMA.field(place), lists)
    whole = {**MEMORY_SCHEMA.metadata, **(metadata or {}), _NEXT: str(state.next_number).encode()}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(whole),
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
    )
    return buffer.getvalue()


def decode_memory(data: bytes) -> MemoryState:
    """Return the content of a snapshot.

    Raises:
        SnapshotError: when the bytes are not a snapshot of this version or the one before, or damaged.
    """
    state, _ = decode_rows(data)
    numbers, next_number = [entry.number for entry in state.entries], state.next_number
    if len(set(numbers)) != len(numbers) or any(number >= next_number for number in numbers):
        raise SnapshotError(f"bundle numbers {sorted(numbers)} do not fit the next number {next_number}")
    return state


def decode_rows(data: bytes) -> tuple[MemoryState, Mapping[bytes, bytes]]:
    """Return the rows of a file of bundles as a state, and the file's metadata. Raises SnapshotError."""
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False, page_checksum_verification=True)
        rows, metadata = memory_rows(table), table.schema.metadata or {}
        vectors = _vectors(table.column("embedding"))
        return MemoryState([_entry(row) for row in rows], vectors, int(metadata[_NEXT])), metadata
    except _DAMAGE as error:
        raise SnapshotError(f"no snapshot of an experience memory: {' '.join(str(error).split())[:300]}") from error


def _vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a list column as float32[n, d]. Raises ValueError when the lists differ in length."""
    lists = column.combine_chunks()
    lengths = {len(entry) for entry in lists}
    if len(lengths) > 1:
        raise ValueError(f"embeddings of {len(lengths)} different lengths: {sorted(lengths)}")
    if not len(lists):
        return np.zeros((0, 0), dtype=np.float32)
    values = numbers_of(lists.flatten()).reshape(len(lists), -1)
    return np.asarray(values, dtype=np.float32)


def _entry(row: dict[str, Any]) -> Entry:
    number, key, uses = row.pop("number"), row.pop("key"), row.pop("uses")
    return Entry(number, key, Experience.model_validate(row), [Use.model_validate(use) for use in uses])
