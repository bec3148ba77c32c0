"""Records survive Arrow and Parquet exactly."""

from __future__ import annotations

import io
import json
import math
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_strategies import requests, trajectories

from genevolve_ray.records.arrow import (
    MEMORY_SCHEMA,
    OPEN_TRAJECTORY_SCHEMA,
    REQUEST_SCHEMA,
    TRAJECTORY_SCHEMA,
    requests_to_table,
    table_to_requests,
    table_to_trajectories,
    trajectories_to_table,
)
from genevolve_ray.records.components import Artefact, Component, OpenVerdict
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory, Turn, TurnKind
from genevolve_ray.records.usage import Usage
from genevolve_ray.records.verdict import ImageScores, Reward, ScoreFormula, Sufficiency, SufficiencyBin, Verdict

EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=2)
    buffer.seek(0)
    return pq.read_table(buffer)


def plain(**changes: object) -> Trajectory:
    ledger = TokenLedger()
    ledger.append_context([1, 2], SpanKind.PROMPT)
    ledger.append_policy([3, 4], [-0.1, -1 / 3], [7, 8], SpanKind.THINK)
    made = Trajectory(SampleKey(step=1, request_id="r", sample=0), "draw", ledger, Provenance(profile="p", engine="e"))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@EXAMPLES
@given(st.lists(trajectories, max_size=3))
def test_trajectories_survive_parquet(made: list[Trajectory]) -> None:
    back = table_to_trajectories(through_parquet(trajectories_to_table(made)))
    assert back == made
    assert [list(t.images) for t in back] == [list(t.images) for t in made]


@EXAMPLES
@given(st.lists(requests, max_size=3))
def test_requests_survive_parquet(made: list[Request]) -> None:
    assert table_to_requests(through_parquet(requests_to_table(made))) == made


@EXAMPLES
@given(st.floats(max_value=0, allow_nan=False))
def test_logprobs_survive_bit_by_bit(logprob: float) -> None:
    made = plain()
    made.ledger.logprobs[2] = logprob
    (back,) = table_to_trajectories(trajectories_to_table([made]))
    assert struct.pack("d", back.ledger.logprobs[2]) == struct.pack("d", logprob)


def test_columns_come_back_as_plain_python_values() -> None:
    (back,) = table_to_trajectories(trajectories_to_table([plain()]))
    ledger = back.ledger
    kinds = [type(column[0]) for column in (ledger.tokens, ledger.policy_mask, ledger.logprobs, ledger.versions)]
    assert kinds == [int, bool, float, int]


def test_a_slice_of_a_table_holds_its_own_ledgers() -> None:
    made = [plain(prompt=str(i)) for i in range(4)]
    made[2].ledger.append_context([9], SpanKind.OBSERVATION)
    assert table_to_trajectories(trajectories_to_table(made).slice(2, 2)) == made[2:]


CHECKED = Verdict(
    image=ImageScores(faithfulness=1, visual_correctness=0.5, aesthetics=0),
    text=Sufficiency(facts=True, reference_binding=False, skill_knowledge=True, executable_constraints=False),
    judge="j",
    formula=ScoreFormula.PAPER,
    flags=("off-grid:aesthetics",),
)


def unseen(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("images")
    hit = pa.struct(
        [f for f in table.schema.field(at).type.value_type.field("hit").type if f.name not in ("shown", "unseen")]
    )
    entry = pa.struct([pa.field("img_id", pa.string(), nullable=False), pa.field("hit", hit, nullable=False)])
    kind = pa.list_(entry)
    cells = [
        [{"img_id": e["img_id"], "hit": {f.name: e["hit"][f.name] for f in hit}} for e in row]
        for row in table.column(at).to_pylist()
    ]
    return table.set_column(at, pa.field("images", kind, nullable=False), pa.array(cells, type=kind))


def older(table: pa.Table, version: int) -> pa.Table:
    """Return the table as version 1 to 4 wrote it: no files that the policy saw, before 4 fewer fields of verdicts, and
    no usage before version 3."""
    table = unseen(table)
    if version == 4:
        return table.replace_schema_metadata({b"genevolve_ray.schema": b"trajectories/4"})
    missing = {"text_bin", "text_rationale", *(["flags"] if version == 1 else [])}
    at = table.schema.get_field_index("verdict")
    kept = [f.with_nullable(False) for f in table.schema.field(at).type if f.name not in missing]
    cells = [row and {k: v for k, v in row.items() if k not in missing} for row in table.column(at).to_pylist()]
    table = table.set_column(at, pa.field("verdict", pa.struct(kept)), pa.array(cells, type=pa.struct(kept)))
    table = table if version == 3 else table.drop_columns(["usage"])
    return table.replace_schema_metadata({b"genevolve_ray.schema": f"trajectories/{version}".encode()})


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_table_of_an_older_version_is_read(version: int) -> None:
    made = [plain(verdict=CHECKED, usage={"judge": Usage(calls=2, money=0.5)}), plain()]
    table = trajectories_to_table(made)
    back = table_to_trajectories(through_parquet(older(table, version)))
    assert [t.verdict for t in back] == [CHECKED if version > 1 else CHECKED.model_copy(update={"flags": ()}), None]
    assert back[0].usage == (made[0].usage if version >= 3 else {})
    with pytest.raises(ValueError, match="images" if version == 4 else "verdict"):
        table_to_trajectories(table.replace_schema_metadata(older(table, version).schema.metadata))


def test_one_grade_and_both_rationales_come_back() -> None:
    verdict = CHECKED.model_copy(update={"text": SufficiencyBin(score=0.25), "rationale": "a", "text_rationale": "b"})
    made = plain(verdict=verdict)
    assert table_to_trajectories(through_parquet(trajectories_to_table([made])))[0].verdict == verdict


def test_open_verdicts_come_back_and_a_table_without_any_keeps_its_schema() -> None:
    shown = ImageRef(sha256="a" * 64, width=8, height=4)
    marks = (
        Artefact(kind="text", label="SOL", box=(0.1, 0.2, 0.5, 0.6)),
        Artefact(kind="heatmap", image=shown),
    )
    overlap = Component(value=-1, low=-2, high=3, rationale="SOL is there", artefacts=marks)
    verdict = OpenVerdict(components={"overlap": overlap}, judge="ocr/1", rationale="one word", flags=("cut",))
    parts = Reward(total=0.5, image=0.25, text=0.0, parts={"ocr.overlap": 0.2}, closed="ocr.overlap", normalised=-1.5)
    made = [plain(verdict=CHECKED, verdicts={"ocr": verdict}, reward=parts), plain()]
    table = trajectories_to_table(made)
    assert table.schema.equals(OPEN_TRAJECTORY_SCHEMA, check_metadata=True)
    assert table_to_trajectories(through_parquet(table)) == made
    closed = plain(verdict=CHECKED, reward=Reward(total=0.5, image=0.5, text=0.5))
    assert trajectories_to_table([closed]).schema.equals(TRAJECTORY_SCHEMA, check_metadata=True)
    assert table_to_trajectories(trajectories_to_table([closed])) == [closed]


def test_lone_surrogates_become_their_escapes_except_in_arguments() -> None:
    arguments = json.loads('{"queries": ["\\ud800"]}')
    made = plain(reason="bad \ud800", turns=[Turn(kind=TurnKind.TOOL_CALL, text="\udfff", arguments=arguments)])
    (back,) = table_to_trajectories(trajectories_to_table([made]))
    assert (back.reason, back.turns[0].text) == ("bad \\ud800", "\\udfff")
    assert back.turns[0].arguments == arguments


def test_nan_timings_survive() -> None:
    (back,) = table_to_trajectories(trajectories_to_table([plain(timings={"render": math.nan})]))
    assert math.isnan(back.timings["render"])


def test_a_broken_ledger_is_refused_with_its_key() -> None:
    made = plain()
    made.ledger.versions.pop()
    with pytest.raises(ValueError, match=r"1/r/0/0.*versions has 3 entries for 4"):
        trajectories_to_table([made])


def test_a_stored_ledger_is_checked() -> None:
    table = trajectories_to_table([plain()])
    at = table.schema.get_field_index("tokens")
    table = table.set_column(at, table.schema.field(at), pa.array([[1]], type=pa.list_(pa.int32())))
    with pytest.raises(ValueError, match="stored trajectory 1/r/0/0"):
        table_to_trajectories(table)


def test_another_schema_version_is_refused_by_name() -> None:
    table = trajectories_to_table([]).replace_schema_metadata({b"genevolve_ray.schema": b"trajectories/9"})
    with pytest.raises(ValueError, match="'trajectories/9', this version reads 'trajectories/5'"):
        table_to_trajectories(table)
    with pytest.raises(ValueError, match="requests/1"):
        table_to_trajectories(requests_to_table([]))


def test_a_changed_column_is_named() -> None:
    table = requests_to_table([]).drop_columns(["meta"])
    with pytest.raises(ValueError, match=r"columns \['meta'\]"):
        table_to_requests(table)


def test_only_free_form_dicts_are_json() -> None:
    texts = {f.name for f in TRAJECTORY_SCHEMA if f.type == pa.string()}
    assert texts == {"prompt", "outcome", "termination", "reason"}
    assert REQUEST_SCHEMA.field("truth_image").type.field("width").type == pa.int32()
    assert MEMORY_SCHEMA.field("guidance").type.value_type.field("bullets").type == pa.list_(pa.string())
