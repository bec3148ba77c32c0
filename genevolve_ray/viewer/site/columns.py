"""Reading of stored trajectories: for an index the columns that lists and totals need, for a page whole rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.records.trajectory import Outcome, durations
from genevolve_ray.records.usage import Usage

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_COLUMNS = (
    "key",
    "prompt",
    "versions",
    "provenance.engine",
    "turns.list.element.text",
    "turns.list.element.tool",
    "outcome",
    "reason",
    "program.gen_prompt",
    "rendered.sha256",
    "reward.total",
    "timings",
    "usage",
)
"""Columns by their paths in the file; `usage` is missing in files of early versions."""
_PROMPT, _REASON, _SEARCHED = 300, 400, 20_000
"""Characters of a request and of a reason that are kept, and characters of a trajectory that a search sees."""
_WHOLE, _BUFFER, _ROWS = 8 << 20, 1 << 18, 16
"""Bytes up to which a file is fetched at once; bytes of each column and rows that are held of a larger one at a time."""


@dataclass(frozen=True)
class IndexedRow:
    """Hold what the index keeps of one trajectory; `words` is what a search sees."""

    step: int
    request_id: str
    sample: int
    attempt: int
    prompt: str
    outcome: Outcome
    reward: float | None
    tools: tuple[str, ...]
    versions: tuple[int, ...]
    picture: str
    reason: str
    engine: str
    turns: int
    seconds: float
    words: str


@dataclass(frozen=True)
class IndexedFile:
    """Hold the rows of a file and its totals.

    Attributes:
        rows: the trajectories, in the order of the file.
        usage: use by service.
        tokens: sampled tokens by the version of the policy that sampled them.
        timings: (number of trajectories, sum and maximum of seconds) by the part of a rollout that took them.
    """

    rows: tuple[IndexedRow, ...]
    usage: Mapping[str, Usage]
    tokens: Mapping[int, int]
    timings: Mapping[str, tuple[int, float, float]]


def read_columns(folder: Folder, name: str) -> IndexedFile:
    """Read the needed columns of a file of trajectories.

    Raises:
        StoreError: naming a file that is missing, cannot be read, or is none of trajectories.
    """
    import pyarrow as pa

    try:
        with _opened(folder, name) as file:
            have = {file.schema.column(i).path for i in range(len(file.schema))}
            wanted = [c for c in _COLUMNS if any(path == c or path.startswith(f"{c}.") for path in have)]
            table = file.read(columns=wanted, use_threads=False)
        return _indexed(table)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"cannot read {folder.path(name)} as trajectories: {error}") from error


def read_rows(folder: Folder, name: str, rows: Collection[int]) -> pa.Table:
    """Return the named rows of a file of trajectories with all columns, in the order of the file.

    The file is read once, and what lies behind the last row is left out. Of a large file a few rows at a time are in memory.

    Raises:
        StoreError: naming a file that is missing, cannot be read, or has not all of the rows.
    """
    import pyarrow as pa

    wanted, first = sorted(set(rows)), 0
    found: list[pa.RecordBatch] = []
    try:
        with _opened(folder, name) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                inside = [row - first for row in wanted if first <= row < last]
                found += _rows_of_group(file, group, inside)
                first = last
            table = pa.Table.from_batches(found, schema=file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"cannot read {folder.path(name)} as trajectories: {error}") from error
    if len(table) < len(wanted):
        raise StoreError(f"{folder.path(name)} has {first} trajectories: there is none in row {wanted[-1]}")
    return table


def _rows_of_group(file: pq.ParquetFile, group: int, wanted: Collection[int]) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows of a row group, each as a batch."""
    first, last = 0, max(wanted, default=-1)
    batches = file.iter_batches(_ROWS, row_groups=[group], use_threads=False) if wanted else ()
    for batch in batches:
        yield from (batch.slice(row - first, 1) for row in wanted if first <= row < first + len(batch))
        first += len(batch)
        if first > last:
            return


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """Open a file of trajectories. Raises OSError and pyarrow.ArrowException."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with folder.fs.open_input_file(folder.path(name)) as source:
        # Reading column by column would be a request for each of them on a remote store.
        small = source.size() <= _WHOLE
        with pq.ParquetFile(
            pa.BufferReader(source.read()) if small else source, buffer_size=0 if small else _BUFFER
        ) as file:
            yield file


def _indexed(table: pa.Table) -> IndexedFile:
    versions = [_sampled(value) for value in table["versions"].combine_chunks()] if table.num_rows else []
    rows, usage, tokens = [], dict[str, Usage](), dict[int, int]()
    timings = dict[str, tuple[int, float, float]]()
    for values, counted in zip(table.drop_columns(["versions"]).to_pylist(), versions, strict=True):
        rows.append(_row(values, tuple(sorted({min(counted), max(counted)})) if counted else ()))
        for use in values.get("usage") or ():
            service = use.pop("service")
            usage[service] = usage.get(service, Usage()) + Usage(**use)
        for version, count in counted.items():
            tokens[version] = tokens.get(version, 0) + count
        for part, seconds in durations(dict(values["timings"])).items():
            number, total, longest = timings.get(part, (0, 0.0, 0.0))
            timings[part] = (number + 1, total + seconds, max(longest, seconds))
    return IndexedFile(tuple(rows), usage, tokens, timings)


def _sampled(versions: pa.ListScalar) -> dict[int, int]:
    """Return the number of sampled tokens by version; tokens of context have version -1."""
    counted = versions.values.value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted if entry["values"] >= 0}


def _row(values: Mapping[str, Any], versions: tuple[int, ...]) -> IndexedRow:
    key, turns, outcome = values["key"], values["turns"], Outcome(values["outcome"])
    reward = values["reward"]["total"] if values["reward"] is not None else None
    program = (values["program"] or {}).get("gen_prompt") or ""
    said = [turn["text"] or "" for turn in turns]
    return IndexedRow(
        step=key["step"],
        request_id=key["request_id"],
        sample=key["sample"],
        attempt=key["attempt"],
        prompt=values["prompt"][:_PROMPT],
        outcome=outcome,
        reward=0.0 if outcome is Outcome.POLICY_FAILURE else reward if outcome is Outcome.SCORED else None,
        tools=tuple(dict.fromkeys(turn["tool"] for turn in turns if turn["tool"])),
        versions=versions,
        picture=(values["rendered"] or {}).get("sha256") or "",
        reason=values["reason"][:_REASON],
        engine=values["provenance"]["engine"],
        turns=len(turns),
        seconds=sum(s for part, s in durations(dict(values["timings"])).items() if part != "outside"),
        words="\n".join((key["request_id"], values["prompt"], values["reason"], program, *said))[:_SEARCHED],
    )
