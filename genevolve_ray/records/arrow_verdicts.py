"""Arrow types of verdicts and rewards, and the conversion of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from genevolve_ray.records.components import OpenVerdict
from genevolve_ray.records.verdict import Reward, SufficiencyBin, Verdict


def required(name: str, kind: pa.DataType) -> pa.Field:
    """Return a column that is never null."""
    return pa.field(name, kind, nullable=False)


def struct(**fields: pa.DataType) -> pa.StructType:
    """Return a struct of fields that are never null."""
    return pa.struct([required(name, kind) for name, kind in fields.items()])


IMAGE_REF = struct(sha256=pa.string(), width=pa.int32(), height=pa.int32(), media_type=pa.string())
IMAGE_SCORES = pa.struct(
    [
        required("faithfulness", pa.float64()),
        required("visual_correctness", pa.float64()),
        pa.field("text_accuracy", pa.float64()),
        required("aesthetics", pa.float64()),
    ]
)
SUFFICIENCY = struct(
    facts=pa.bool_(), reference_binding=pa.bool_(), skill_knowledge=pa.bool_(), executable_constraints=pa.bool_()
)
VERDICT_BEFORE_FLAGS = struct(
    image=IMAGE_SCORES, text=SUFFICIENCY, rationale=pa.string(), judge=pa.string(), formula=pa.string()
)
VERDICT_BEFORE_BINS = pa.struct([*VERDICT_BEFORE_FLAGS, required("flags", pa.list_(pa.string()))])
VERDICT = pa.struct(
    [
        required("image", IMAGE_SCORES),
        pa.field("text", SUFFICIENCY),
        pa.field("text_bin", pa.float64()),
        *(required(name, pa.string()) for name in ("rationale", "text_rationale", "judge", "formula")),
        required("flags", pa.list_(pa.string())),
    ]
)
"""A verdict; of `text` (checks) and `text_bin` (one grade) one is null."""
REWARD = struct(total=pa.float64(), image=pa.float64(), text=pa.float64(), cost=pa.float64())
_ARTEFACT = pa.struct(
    [
        required("kind", pa.string()),
        required("label", pa.string()),
        pa.field("image", IMAGE_REF),
        pa.field("box", pa.list_(pa.float64())),
    ]
)
_COMPONENT = struct(
    name=pa.string(),
    value=pa.float64(),
    low=pa.float64(),
    high=pa.float64(),
    rationale=pa.string(),
    artefacts=pa.list_(_ARTEFACT),
)
OPEN_VERDICTS = pa.list_(
    struct(
        name=pa.string(),
        judge=pa.string(),
        rationale=pa.string(),
        flags=pa.list_(pa.string()),
        components=pa.list_(_COMPONENT),
    )
)
"""The verdicts of a trajectory besides its KScore, with the judge's name in the run."""
OPEN_REWARD = pa.struct(
    [
        *REWARD,
        required("parts", pa.map_(pa.string(), pa.float64())),
        required("closed", pa.string()),
        pa.field("normalised", pa.float64()),
    ]
)
"""A reward from `reward.components`."""


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """Return a row of `VERDICT`."""
    text = verdict.text
    parts = {"text": None, "text_bin": text.score} if isinstance(text, SufficiencyBin) else {"text_bin": None}
    return verdict.model_dump() | parts


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a row of `VERDICT`, or of a version before."""
    values = dict(row)
    grade = values.pop("text_bin", None)
    return Verdict.model_validate(values if grade is None else values | {"text": {"score": grade}})


def open_rows(verdicts: Mapping[str, OpenVerdict]) -> list[dict[str, Any]]:
    """Return verdicts by the judge's name as a cell of `OPEN_VERDICTS`."""
    rows = []
    for name, verdict in verdicts.items():
        components = [{"name": key, **one.model_dump()} for key, one in verdict.components.items()]
        rows.append({"name": name, **verdict.model_dump(exclude={"components"}), "components": components})
    return rows


def open_verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, OpenVerdict]:
    """Return the verdicts of a cell of `OPEN_VERDICTS`. Raises ValueError for a row that breaks a record's rules."""
    found = {}
    for row in rows:
        values = {key: value for key, value in row.items() if key != "name"}
        components = {one["name"]: {k: v for k, v in one.items() if k != "name"} for one in row["components"]}
        found[row["name"]] = OpenVerdict.model_validate(values | {"components": components})
    return found


def reward_row(reward: Reward) -> dict[str, Any]:
    """Return a row of `OPEN_REWARD`, of which `REWARD` takes the first fields."""
    return reward.model_dump() | {"parts": list(reward.parts.items())}


def reward_of(row: Mapping[str, Any]) -> Reward:
    """Return the reward of a row of `REWARD` or `OPEN_REWARD`."""
    return Reward.model_validate(dict(row) | {"parts": dict(row.get("parts") or ())})
