"""Arrow schemas of the records, and lossless conversion in both directions.

Every column is typed; JSON text stands only for free-form dicts (`Turn.arguments`, `Request.meta`). Integers of the
ledger are int32. Log-probs are float64, not float32: engines report Python floats, and the GRPO ratio is computed from
exactly these values. A step that is applied again from its stored batch must give bit-equal weights.

Two things are not preserved. Tuples inside free-form dicts are read back as lists. Lone surrogates, which UTF-8 cannot
encode but a policy can write as a JSON escape, are read back as the text of their escape.

Shape legend: N rows, T tokens of one trajectory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genevolve_ray.records.arrow_verdicts import (
    IMAGE_REF,
    OPEN_REWARD,
    OPEN_VERDICTS,
    REWARD,
    VERDICT,
    VERDICT_BEFORE_BINS,
    VERDICT_BEFORE_FLAGS,
    open_rows,
    open_verdicts,
    required,
    reward_of,
    reward_row,
    struct,
    verdict_of,
    verdict_row,
)
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import MediaSpan, Span, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Termination, Trajectory, Turn
from genevolve_ray.records.usage import Usage

TRAJECTORIES_VERSION = "trajectories/5"
_TRAJECTORIES_OPEN = "trajectories/6"
_TRAJECTORIES_BEFORE_SIGHT = "trajectories/4"
_TRAJECTORIES_BEFORE_BINS = "trajectories/3"
_TRAJECTORIES_BEFORE_USAGE = "trajectories/2"
_TRAJECTORIES_BEFORE_FLAGS = "trajectories/1"
REQUESTS_VERSION = "requests/1"
MEMORY_VERSION = "memory/2"
_MEMORY_BEFORE_FORMATS = "memory/1"
_VERSION_KEY = b"genevolve_ray.schema"


def _schema(version: str, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={_VERSION_KEY: version.encode()})


_IMAGE_HIT_BEFORE_SIGHT = struct(title=pa.string(), url=pa.string(), page_url=pa.string(), image=IMAGE_REF)
IMAGE_HIT = pa.struct([*_IMAGE_HIT_BEFORE_SIGHT, pa.field("shown", IMAGE_REF), pa.field("unseen", pa.string())])
"""A hit; `shown` and `unseen` are null where the profile shows no pictures."""
KEY = struct(step=pa.int64(), request_id=pa.string(), sample=pa.int64(), attempt=pa.int64())
SPAN = struct(kind=pa.string(), start=pa.int32(), end=pa.int32())
MEDIA = struct(start=pa.int32(), end=pa.int32(), sha256=pa.string(), grid=pa.list_(pa.int32(), 3))
TURN = struct(
    kind=pa.string(),
    text=pa.string(),
    tool=pa.string(),
    arguments=pa.string(),
    observation=pa.string(),
    error=pa.string(),
    seconds_policy=pa.float64(),
    seconds_tool=pa.float64(),
)
PROGRAM = struct(gen_prompt=pa.string(), reference_images=pa.list_(struct(img_id=pa.string(), note=pa.string())))
USAGE = struct(
    service=pa.string(),
    calls=pa.int64(),
    failed_calls=pa.int64(),
    cached=pa.int64(),
    prompt_tokens=pa.int64(),
    completion_tokens=pa.int64(),
    images=pa.int64(),
    seconds=pa.float64(),
    money=pa.float64(),
)
PROVENANCE = struct(
    profile=pa.string(),
    engine=pa.string(),
    renderer=pa.string(),
    judge=pa.string(),
    seed=pa.int64(),
    render_seed=pa.int64(),
    split=pa.string(),
)
LEDGER_COLUMNS = {
    "tokens": pa.list_(pa.int32()),
    "policy_mask": pa.list_(pa.bool_()),
    "logprobs": pa.list_(pa.float64()),
    "versions": pa.list_(pa.int32()),
}

TRAJECTORY_SCHEMA = _schema(
    TRAJECTORIES_VERSION,
    [
        required("key", KEY),
        required("prompt", pa.string()),
        *(required(name, kind) for name, kind in LEDGER_COLUMNS.items()),
        required("spans", pa.list_(SPAN)),
        required("media", pa.list_(MEDIA)),
        required("provenance", PROVENANCE),
        required("turns", pa.list_(TURN)),
        required("images", pa.list_(struct(img_id=pa.string(), hit=IMAGE_HIT))),
        required("outcome", pa.string()),
        required("termination", pa.string()),
        required("reason", pa.string()),
        pa.field("program", PROGRAM),
        pa.field("rendered", IMAGE_REF),
        pa.field("verdict", VERDICT),
        pa.field("reward", REWARD),
        required("timings", pa.map_(pa.string(), pa.float64())),
        required("usage", pa.list_(USAGE)),
    ],
)
"""One row per trajectory: the ledger as four list columns of length T with its spans, the episode, and its verdict."""

OPEN_TRAJECTORY_SCHEMA = _schema(
    _TRAJECTORIES_OPEN,
    [
        *(pa.field("reward", OPEN_REWARD) if f.name == "reward" else f for f in TRAJECTORY_SCHEMA),
        required("verdicts", OPEN_VERDICTS),
    ],
)
"""The same with open verdicts and the parts of rewards; a table without either keeps `TRAJECTORY_SCHEMA`."""

_IMAGES_BEFORE_SIGHT = required("images", pa.list_(struct(img_id=pa.string(), hit=_IMAGE_HIT_BEFORE_SIGHT)))
_SCHEMA_BEFORE_SIGHT = _schema(
    _TRAJECTORIES_BEFORE_SIGHT, [_IMAGES_BEFORE_SIGHT if f.name == "images" else f for f in TRAJECTORY_SCHEMA]
)
_SCHEMA_BEFORE_BINS = _schema(
    _TRAJECTORIES_BEFORE_BINS,
    [pa.field("verdict", VERDICT_BEFORE_BINS) if f.name == "verdict" else f for f in _SCHEMA_BEFORE_SIGHT],
)
_SCHEMA_BEFORE_USAGE = _schema(_TRAJECTORIES_BEFORE_USAGE, [f for f in _SCHEMA_BEFORE_BINS if f.name != "usage"])
_SCHEMA_BEFORE_FLAGS = _schema(
    _TRAJECTORIES_BEFORE_FLAGS,
    [pa.field("verdict", VERDICT_BEFORE_FLAGS) if f.name == "verdict" else f for f in _SCHEMA_BEFORE_USAGE],
)
_TRAJECTORY_SCHEMAS = {
    s.metadata[_VERSION_KEY]: s
    for s in (
        OPEN_TRAJECTORY_SCHEMA,
        TRAJECTORY_SCHEMA,
        _SCHEMA_BEFORE_SIGHT,
        _SCHEMA_BEFORE_BINS,
        _SCHEMA_BEFORE_USAGE,
        _SCHEMA_BEFORE_FLAGS,
    )
}
"""Schemas that can be read. `trajectories/4` had no files that the policy saw, `trajectories/3` knew checks alone and
one rationale, `trajectories/2` had no usage, and `trajectories/1` had no flags of verdicts either. None of them is
written any more. `trajectories/6` is written where there are open verdicts."""

REQUEST_SCHEMA = _schema(
    REQUESTS_VERSION,
    [
        *(required(name, pa.string()) for name in ("id", "prompt", "eval_type", "category", "difficulty")),
        pa.field("truth_image", IMAGE_REF),
        required("meta", pa.string()),
    ],
)
"""One row per request; `meta` is JSON text."""

USE = struct(step=pa.int64(), request_id=pa.string(), similarity=pa.float64(), own=pa.bool_())
MEMORY_SCHEMA = _schema(
    MEMORY_VERSION,
    [
        *(required(name, pa.string()) for name in ("format", "trigger", "summary")),
        required("guidance", pa.list_(struct(slot=pa.string(), bullets=pa.list_(pa.string())))),
        required("step", pa.int64()),
        *(required(name, pa.string()) for name in ("request_id", "best", "worst")),
        required("gap", pa.float64()),
        required("number", pa.int64()),
        required("key", pa.string()),
        required("embedding", pa.list_(pa.float32())),
        required("uses", pa.list_(USE)),
    ],
)
"""One row per bundle in the experience memory: the bundle, its retrieval key and embedding, and where it was used."""

_MEMORY_SCHEMA_BEFORE_FORMATS = _schema(
    _MEMORY_BEFORE_FORMATS,
    [
        *(f for f in MEMORY_SCHEMA if f.name in ("trigger", "summary")),
        *(required(slot, pa.list_(pa.string())) for slot in BUNDLE_FORMATS[BundleFormatName.FIVE_SLOTS].slots),
        *(f for f in MEMORY_SCHEMA if f.name not in ("format", "trigger", "summary", "guidance")),
    ],
)
_MEMORY_SCHEMAS = {s.metadata[_VERSION_KEY]: s for s in (MEMORY_SCHEMA, _MEMORY_SCHEMA_BEFORE_FORMATS)}
"""Schemas that can be read. `memory/1` had a column for each of five slots. It is not written any more."""


def trajectories_to_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    """Return N trajectories as a table of `TRAJECTORY_SCHEMA`, in order; of `OPEN_TRAJECTORY_SCHEMA` where one needs it.

    Raises:
        ValueError: when a ledger's invariants do not hold (it names the trajectory).
        OverflowError, pyarrow.ArrowInvalid: when a number does not fit its column.
    """
    schema = OPEN_TRAJECTORY_SCHEMA if any(map(_is_open, trajectories)) else TRAJECTORY_SCHEMA
    return _table([_trajectory_row(t) for t in trajectories], schema)


def _is_open(trajectory: Trajectory) -> bool:
    reward = trajectory.reward
    return bool(trajectory.verdicts) or (reward is not None and (bool(reward.parts) or reward.normalised is not None))


def table_to_trajectories(table: pa.Table) -> list[Trajectory]:
    """Return the trajectories of a table that `trajectories_to_table` made, of this version or one before.

    Raises:
        ValueError: when the table has another schema, or a row breaks a record's rules.
    """
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"")
    check_schema(table, _TRAJECTORY_SCHEMAS.get(version, TRAJECTORY_SCHEMA))
    ledgers = {name: _lists(table.column(name)) for name in LEDGER_COLUMNS}
    rows = table.drop_columns(list(LEDGER_COLUMNS)).to_pylist()
    return [_trajectory(row, {name: lists[i] for name, lists in ledgers.items()}) for i, row in enumerate(rows)]


def memory_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a memory's table without the embeddings, each with a bundle's fields among its own.

    Raises:
        ValueError: when the table has another schema than this version's or the one before.
    """
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"")
    check_schema(table, _MEMORY_SCHEMAS.get(version, MEMORY_SCHEMA))
    rows: list[dict[str, Any]] = table.drop_columns(["embedding"]).to_pylist()
    for row in rows:
        if "guidance" in row:
            row["guidance"] = {part["slot"]: part["bullets"] for part in row["guidance"]}
    return rows


def requests_to_table(requests: Sequence[Request]) -> pa.Table:
    """Return N requests as a table of `REQUEST_SCHEMA`, in order. Raises TypeError for a `meta` that is not JSON."""
    rows = [{**dict(r), "truth_image": _dump(r.truth_image), "meta": _json(r.meta)} for r in requests]
    return _table(rows, REQUEST_SCHEMA)


def table_to_requests(table: pa.Table) -> list[Request]:
    """Return the requests of a table that `requests_to_table` made. Raises ValueError for another schema."""
    check_schema(table, REQUEST_SCHEMA)
    return [Request.model_validate({**row, "meta": json.loads(row["meta"])}) for row in table.to_pylist()]


def check_schema(table: pa.Table, schema: pa.Schema) -> None:
    """Check that a table has a schema of this module, in the version that this module writes.

    Raises:
        ValueError: naming the version, or the columns that are missing, unknown or of another type.
    """
    metadata = table.schema.metadata or {}
    expected, found = schema.metadata[_VERSION_KEY].decode(), metadata.get(_VERSION_KEY, b"none").decode()
    if found != expected:
        raise ValueError(f"table has schema {found!r}, this version reads {expected!r}")
    if not table.schema.equals(schema):
        wrong = sorted(
            {f.name for f in schema if f not in table.schema} | {f.name for f in table.schema if f not in schema}
        )
        raise ValueError(f"table differs from schema {expected!r} in columns {wrong}")


def numbers_of(array: pa.Array) -> NDArray[Any]:
    """Return the values of an array of numbers or booleans, for reading only.

    `Array.to_numpy` would import pandas where that is installed, at 43 MB of memory and half a second.

    Raises:
        ValueError: for an array with nulls.
    """
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} numbers are missing")
    if pa.types.is_boolean(array.type):
        found: NDArray[Any] = np.from_dlpack(array.cast(pa.uint8())).view(np.bool_)
    else:
        found = np.from_dlpack(array)
    found.flags.writeable = False
    return found


def _trajectory_row(trajectory: Trajectory) -> dict[str, Any]:
    ledger = trajectory.ledger
    try:
        ledger.check()
    except ValueError as error:
        raise ValueError(f"trajectory {trajectory.key}: {error}") from error
    return {
        "key": _dump(trajectory.key),
        "prompt": trajectory.prompt,
        **{name: getattr(ledger, name) for name in LEDGER_COLUMNS},
        "spans": [_dump(s) for s in ledger.spans],
        "media": [_dump(m) for m in ledger.media],
        "provenance": _dump(trajectory.provenance),
        "turns": [{**dict(t), "arguments": _json(t.arguments)} for t in trajectory.turns],
        "images": [{"img_id": name, "hit": _dump(hit)} for name, hit in trajectory.images.items()],
        "outcome": trajectory.outcome.value,
        "termination": trajectory.termination.value,
        "reason": trajectory.reason,
        "program": _dump(trajectory.program),
        "rendered": _dump(trajectory.rendered),
        "verdict": None if trajectory.verdict is None else verdict_row(trajectory.verdict),
        "verdicts": open_rows(trajectory.verdicts),
        "reward": None if trajectory.reward is None else reward_row(trajectory.reward),
        "timings": list(trajectory.timings.items()),
        "usage": [{"service": service, **dict(usage)} for service, usage in trajectory.usage.items()],
    }


def _trajectory(row: Mapping[str, Any], columns: Mapping[str, list[Any]]) -> Trajectory:
    ledger = TokenLedger(
        **columns,
        spans=[Span.model_validate(s) for s in row["spans"]],
        media=[MediaSpan.model_validate(m) for m in row["media"]],
    )
    key = SampleKey.model_validate(row["key"])
    try:
        ledger.check()
    except ValueError as error:
        raise ValueError(f"stored trajectory {key}: {error}") from error
    return Trajectory(
        key=key,
        prompt=row["prompt"],
        ledger=ledger,
        provenance=Provenance.model_validate(row["provenance"]),
        turns=[Turn.model_validate({**turn, "arguments": json.loads(turn["arguments"])}) for turn in row["turns"]],
        images={entry["img_id"]: _hit(entry["hit"]) for entry in row["images"]},
        outcome=Outcome(row["outcome"]),
        termination=Termination(row["termination"]),
        reason=row["reason"],
        program=None if row["program"] is None else Program.model_validate(row["program"]),
        rendered=None if row["rendered"] is None else ImageRef.model_validate(row["rendered"]),
        verdict=None if row["verdict"] is None else verdict_of(row["verdict"]),
        verdicts=open_verdicts(row.get("verdicts", ())),
        reward=None if row["reward"] is None else reward_of(row["reward"]),
        timings=dict(row["timings"]),
        usage={u["service"]: Usage(**{k: v for k, v in u.items() if k != "service"}) for u in row.get("usage", ())},
    )


def _hit(row: Mapping[str, Any]) -> ImageHit:
    return ImageHit.model_validate({name: value for name, value in row.items() if value is not None})


def _dump(record: Any) -> dict[str, Any] | None:
    """Return a pydantic record as a dict; None stays None."""
    return None if record is None else record.model_dump()


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value)  # ASCII, so that lone surrogates survive here; the order of the keys is kept


def _lists(column: pa.ChunkedArray) -> list[list[Any]]:
    """Return a list column as Python lists; whole chunks at once, as scalars one by one are slow for long ledgers."""
    out: list[list[Any]] = []
    for chunk in column.chunks:
        values, ends = numbers_of(chunk.values), numbers_of(chunk.offsets)
        out.extend(values[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True))
    return out


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:
        return pa.Table.from_pylist([_encodable(row) for row in rows], schema=schema)


def _encodable(value: Any) -> Any:
    """Return a value whose texts UTF-8 can hold: a lone surrogate becomes the text of its escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(entry) for entry in value]
    return value
