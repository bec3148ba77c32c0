"""Rows of results.json: ours as others read them, others' as we read them, and nothing lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_helpers import write_parquet
from result_helpers import (
    INPUT,
    SCORES,
    evaluated,
    foreign_case,
    foreign_image,
    foreign_truth,
    foreign_type,
    rendered,
    trajectory,
)

from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import encode, write_array
from genevolve_ray.records.published.rejections import DataError, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.results import RAW_PROMPT, AgentRow, EvaluatedRow, RenderedRow, read_results
from genevolve_ray.records.published.writers import (
    agent_row,
    evaluated_row,
    rendered_row,
    request_values,
)
from genevolve_ray.records.request import EvalType
from genevolve_ray.records.trajectory import Termination
from genevolve_ray.records.verdict import ImageScores, ScoreFormula

ALL_SCORES = ImageScores(faithfulness=1, visual_correctness=0.5, text_accuracy=None, aesthetics=0.5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def all_stages(program: bool = True) -> dict[str, Any]:
    row = agent_row(INPUT, trajectory(program=program, reason="" if program else "no program"))
    row = rendered_row(row, renderer="qwen", render_seed=3)
    scores = ALL_SCORES if program else None
    return evaluated_row(row, judge="vlm", formula=ScoreFormula.PAPER, scores=scores, rationale="clear")


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_an_agent_row_has_the_published_fields_and_every_input_field() -> None:
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    row = agent_row(INPUT, trajectory(), opening=opening, local_path=lambda i, hit: f"refs/{i}.jpg")
    assert {name: row[name] for name in INPUT} == INPUT
    assert without(row, *INPUT, PROVENANCE) == {
        "gen_prompt": "a tower as in the first reference image",
        "reference_images": [
            {
                "img_id": "IMG_001",
                "note": "tower",
                "local_path": "refs/IMG_001.jpg",
                "url": "https://example.org/t.jpg",
                "title": "Tower",
                "page_url": "https://example.org/t",
            }
        ],
        "messages": [
            *opening,
            {"role": "assistant", "content": "call"},
            {"role": "user", "content": "<tool_response>x</tool_response>"},
            {"role": "assistant", "content": "answer"},
        ],
        "termination": "answer",
        "rounds": 2,
        "error": None,
    }
    assert row[PROVENANCE]["policy_versions"] == [4, 5] and row[PROVENANCE]["profile"] == "release"


def test_a_foreign_reader_finds_everything_in_our_rows() -> None:
    row = json.loads(encode(all_stages()))
    assert foreign_image(row) == "images/7.png" and row["image_path"] == row["output_path"]
    assert (foreign_truth(row), foreign_type(row), foreign_case(row)) == ("truth/7.jpg", "Knowledge-Anchored", "case-7")
    assert row["success"] is True and row["image_status"] == "ok"
    assert row["eval_success"] is True and row["error"] is None
    assert row["scores"] == {
        "rationale": "clear",
        "faithfulness": 1.0,
        "visual_correctness": 0.5,
        "text_accuracy": 0.5,
        "text_accuracy_na": True,
        "aesthetics": 0.5,
        "overall": round((0.1 * 1 + 0.4 * 0.5 + 0.1 * 0.5) / 0.6, 6),
    }
    published = {*INPUT, "gen_prompt", "reference_images", "messages", "termination", "rounds", "error", "image_path"}
    published |= {"output_path", "success", "image_status", "eval_success", "scores"}
    assert set(row) - published == {PROVENANCE}
    ours = row[PROVENANCE]
    assert (ours["renderer"], ours["judge"], ours["formula"], ours["profile"]) == ("qwen", "vlm", "paper", "release")


@pytest.mark.parametrize("name", ["output_path", "image_path", "generated_image", "gen_image"])
def test_a_picture_is_found_under_every_name(name: str) -> None:
    row = without(rendered(), "output_path", "image_path") | {name: "somewhere/7.png"}
    found = RenderedRow.read(row)
    assert found.image == "somewhere/7.png" == foreign_image(row) and found.success


@pytest.mark.parametrize("place", ["row", "meta"])
@pytest.mark.parametrize("name", ["gt_image", "ground_truth", "target_image", "reference_image"])
def test_the_truth_is_found_under_every_name(name: str, place: str) -> None:
    bare = without(rendered(), "gt_image")
    row = bare | ({name: "t.png"} if place == "row" else {"meta": {name: "t.png"}})
    assert ResultRow.read(row).truth == "t.png" == foreign_truth(row)


@pytest.mark.parametrize(
    "fields",
    [{"eval_type": "Quality-Anchored"}, {"meta": {"eval_type": "Quality-Anchored"}}, {"tier": "Quality-Anchored"}],
)
def test_the_type_is_found_under_every_name(fields: dict[str, Any]) -> None:
    row = without(rendered(), "eval_type", "meta") | fields
    assert ResultRow.read(row).eval_type == "Quality-Anchored" == foreign_type(row)


@pytest.mark.parametrize("meta", [{"case_id": "c", "source_id": "s"}, {"source_id": "s"}, {}])
def test_the_case_is_found_under_every_name(meta: dict[str, Any]) -> None:
    row = rendered() | {"meta": meta}
    assert ResultRow.read(row).case_id == foreign_case(row)


def test_a_number_and_a_text_are_the_same_id() -> None:
    assert ResultRow.read({"id": 7, "prompt": "x"}).id == ResultRow.read({"id": "7", "prompt": "x"}).id == "7"


def test_a_published_row_is_read_at_every_stage() -> None:
    agent, picture, judged = AgentRow.read(evaluated()), RenderedRow.read(evaluated()), EvaluatedRow.read(evaluated())
    assert agent.termination is Termination.ANSWER and agent.rounds == 3
    assert [reference.local_path for reference in agent.references] == ["images/IMG_001.jpg"]
    assert picture.success and picture.image == "images/7.png"
    assert judged.scores == ImageScores(faithfulness=1, visual_correctness=0.5, text_accuracy=0, aesthetics=0.5)
    assert judged.rationale == "clear" and judged.off_grid == ()


@given(extra=st.dictionaries(st.text(max_size=6), json_values, max_size=4))
def test_reading_and_writing_loses_nothing(extra: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    row = {name: value for name, value in extra.items() if name not in evaluated()} | evaluated()
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_array(path, [row])
    (back,) = read_results([path], EvaluatedRow, RejectionReport())
    assert back.values == row and json.loads(path.read_bytes()) == [row]


def test_half_a_surrogate_pair_in_an_unknown_field_survives(tmp_path: Path) -> None:
    row = rendered(never_heard_of="\ud800")
    (back,) = read_results([write_array(tmp_path / "r.json", [row])], RenderedRow, RejectionReport())
    assert back.values == row


def test_no_program_is_never_a_success() -> None:
    """Whatever was drawn from the raw prompt, the row is failed, and then there is nothing to judge."""
    row = all_stages(program=False)
    assert row["success"] is False and row["output_path"] == "" == row["image_path"]
    assert row["image_status"] == RAW_PROMPT
    assert row["eval_success"] is False and row["scores"] is None and row["error"] == RAW_PROMPT
    assert row[PROVENANCE]["agent_error"] == "no program"


@pytest.mark.parametrize("lack", [{"gen_prompt": ""}, {"reference_images": []}])
def test_a_published_row_drawn_from_the_raw_prompt_does_not_count(lack: dict[str, Any]) -> None:
    found = EvaluatedRow.read(evaluated() | lack)
    assert not found.success and found.scores is None and found.failure == RAW_PROMPT


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"reference_images": None}, True),
        ({"reference_images": None, "used_prompt": "as drawn", "gen_prompt": "as drawn"}, True),
        ({"reference_images": [], "used_prompt": "as drawn", "gen_prompt": " as drawn"}, True),
        ({"used_prompt": "a lighthouse at dusk"}, False),
        ({"gen_prompt": "", "reference_images": None}, False),
        ({"gen_prompt": None, "reference_images": None}, False),
    ],
)
def test_a_field_that_is_absent_is_no_lack_of_a_program(changes: dict[str, Any], counts: bool) -> None:
    """Gen-Searcher's renderer states the prompt and the images that it used, and no references."""
    assert RenderedRow.read(rendered(**changes)).success is counts


def test_a_generator_that_is_asked_directly_needs_no_program() -> None:
    row = rendered_row(INPUT, renderer="flux")
    assert RenderedRow.read(row).success and row[PROVENANCE]["direct"] is True


def test_ignored_references_are_told() -> None:
    agent = agent_row(INPUT, trajectory())
    assert rendered_row(agent, renderer="flux", references_ignored=True)[PROVENANCE]["references_ignored"] is True


def test_a_failed_render_says_why() -> None:
    row = rendered_row(agent_row(INPUT, trajectory()), renderer="qwen", error="service is down")
    found = RenderedRow.read(row)
    assert (found.success, found.status, row["output_path"]) == (False, "error: service is down", "")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"faithfulness": None}, "scores.faithfulness is missing"),
        ({"visual_correctness": "0.5"}, "visual_correctness"),
        ({"text_accuracy": None}, "scores.text_accuracy is missing"),
        ({"aesthetics": True}, "aesthetics"),
        ({"text_accuracy_na": "yes"}, "text_accuracy_na"),
    ],
)
def test_a_missing_score_fails_the_row(change: dict[str, Any], told: str) -> None:
    found = EvaluatedRow.read(evaluated(scores=SCORES | change))
    assert found.scores is None and told in found.failure


def test_a_judgement_that_failed_is_missing() -> None:
    found = EvaluatedRow.read(evaluated(eval_success=False, error="timeout"))
    assert found.scores is None and found.failure == "timeout" and found.success


def test_values_off_the_grid_are_clipped_and_flagged() -> None:
    found = EvaluatedRow.read(evaluated(scores=SCORES | {"faithfulness": 1.7, "aesthetics": 0.3}))
    assert found.off_grid == ("faithfulness", "aesthetics")
    assert found.scores is not None and (found.scores.faithfulness, found.scores.aesthetics) == (1.0, 0.3)


def test_a_flag_survives_the_clipping() -> None:
    row = rendered_row(agent_row(INPUT, trajectory()), renderer="qwen")
    row = evaluated_row(row, judge="j", formula=ScoreFormula.PAPER, scores=ALL_SCORES, off_grid=["aesthetics"])
    assert EvaluatedRow.read(row).off_grid == ("aesthetics",)


def test_a_row_without_a_picture_cannot_have_scores() -> None:
    row = rendered_row(INPUT, renderer="flux", error="down")
    with pytest.raises(ValueError, match="error: down"):
        evaluated_row(row, judge="j", formula=ScoreFormula.PAPER, scores=ALL_SCORES)


def test_a_request_becomes_a_row_and_back() -> None:
    request = ResultRow.read(INPUT).request()
    assert request.eval_type is EvalType.KNOWLEDGE and request.id == "7"
    again = ResultRow.read(request_values(request, truth="truth/7.jpg"))
    assert (again.prompt, again.truth, again.case_id) == (request.prompt, "truth/7.jpg", "case-7")


def test_averages_at_the_end_are_no_rows(tmp_path: Path) -> None:
    average = {"summary_type": "overall_avg", "avg_scores": {"overall": 0.35}, "count": 1}
    path = write_array(tmp_path / "results_eval.json", [evaluated(), average])
    report = RejectionReport()
    assert [row.id for row in read_results([path], EvaluatedRow, report)] == ["7"]
    assert report.seen == 1


def test_bad_rows_are_left_out_with_a_reason(tmp_path: Path) -> None:
    rows = [rendered(), rendered(), rendered(id="a/b"), {"prompt": "x"}, {"id": "1"}, rendered(id="9", success="yes")]
    rows.append(rendered(id={"a": 1}))
    path = write_array(tmp_path / "results.json", rows)
    path.write_text(path.read_text().rstrip().removesuffix("]") + ", 5]")
    report = RejectionReport()
    assert [row.id for row in read_results([path], RenderedRow, report)] == ["7", "3"]
    assert report.rejected == {
        RejectionReason.DUPLICATE_ID: 1,
        RejectionReason.UNSAFE_ID: 1,
        RejectionReason.MISSING_REQUEST: 1,
        RejectionReason.BAD_FIELD: 2,
        RejectionReason.NOT_AN_OBJECT: 1,
    }


@pytest.mark.parametrize("text", ["", "\xff", "[", "[{}", "[{},]", "[1 2]", "[] []", '[{"a":]'])
def test_a_broken_array_is_told_with_its_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"results\.json"):
        list(read_results([path], ResultRow, RejectionReport()))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.ndjson", "rows.txt", "rows"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \t"])
def test_arrays_and_lines_are_told_by_their_content(name: str, start: str, tmp_path: Path) -> None:
    rows = [rendered(id=str(number)) for number in range(3)]
    path = tmp_path / name
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))):
        path.write_text(start + text, encoding="utf-8")
        report = RejectionReport()
        assert [row.values for row in read_results([path], RenderedRow, report)] == rows
        assert report.kept == 3


def test_one_object_over_several_lines_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"prompt": "a lighthouse"}, indent=2))
    assert [row.id for row in read_results([path], ResultRow, RejectionReport())] == ["0"]


def test_parquet_is_told_by_its_content(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [{"id": "1", "prompt": "x"}]).rename(tmp_path / "rows.data")
    assert [row.id for row in read_results([path], ResultRow, RejectionReport())] == ["1"]


def test_a_key_that_is_given_twice_costs_its_row_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"id": "1", "prompt": "x"}, {"id": "2", "id": "3", "prompt": "x"}, {"id": "4", "prompt": "x"}]')
    report = RejectionReport()
    assert [row.id for row in read_results([path], ResultRow, report)] == ["1", "4"]
    assert report.rejected == {RejectionReason.NOT_JSON: 1}


@given(text=st.text(st.characters(codec="utf-8"), max_size=30) | st.binary(max_size=30))
def test_whatever_a_file_holds_only_a_data_error_comes_of_it(
    text: str | bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_bytes(text if isinstance(text, bytes) else b"[" + text.encode() + b"]")
    try:
        list(read_results([path], EvaluatedRow, RejectionReport()))
    except DataError as error:
        assert "odd.json" in str(error)


@given(
    values=st.dictionaries(
        st.sampled_from([*rendered(), "scores", "eval_success", PROVENANCE]), json_values, max_size=8
    )
)
def test_whatever_a_row_holds_only_a_row_fault_comes_of_it(values: dict[str, Any]) -> None:
    for kind in (ResultRow, AgentRow, RenderedRow, EvaluatedRow):
        try:
            kind.read(rendered() | values)
        except RowFault as fault:
            assert fault.reason in RejectionReason


@pytest.mark.parametrize("odd", [5, [], ["a.png"], {"bytes": "x"}, True])
@pytest.mark.parametrize("error", ["", "out of memory"])
def test_a_truth_that_is_no_path_does_not_cost_the_row_before_it_is_judged(
    odd: object, error: str, tmp_path: Path
) -> None:
    row = {"id": "1", "prompt": "p", "gen_prompt": "x", "gt_image": odd, "gen_image": "g.png"}
    AgentRow.read(row)
    found = RenderedRow.read(rendered_row(row, renderer="r", error=error))
    assert found.success is not bool(error)
    with pytest.raises(RowFault, match="missing_truth"):
        RenderedRow.read({"id": "1", "prompt": "p", "gt_image": odd, "output_path": "a.png"}).truth_file([tmp_path])
