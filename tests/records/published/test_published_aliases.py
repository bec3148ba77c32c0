"""One order of names for all readers: that of the published runner, renderer and scorers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from published_helpers import bench_row, write_lines
from result_helpers import rendered

from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.exclusion import read_exclusion
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.requests import PublishedRequest, read_bench, read_rl, request_key
from genevolve_ray.records.published.results import AgentRow, RenderedRow, read_results
from genevolve_ray.records.request import EvalType
from tests import published_reading as theirs

BARE = {"id": "7", "success": True}
TYPES = ("Knowledge-Anchored", "Quality-Anchored", "T1", "T3")


def requests(tmp_path: Path, *rows: dict[str, Any], reader: Any = read_bench) -> list[PublishedRequest]:
    return list(reader([write_lines(tmp_path / "rows.jsonl", rows)], RejectionReport()))


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("given", [("p", "q"), ("p", ""), ("", "q"), (None, "q"), (" p ", None)])
def test_prompt_comes_before_question(given: tuple[Any, Any], tmp_path: Path) -> None:
    row = {**bench_row(7), "prompt": given[0], "question": given[1]}
    assert ResultRow.read(row).prompt == theirs.prompt(row)
    for reader in (read_bench, read_rl):
        assert requests(tmp_path, row, reader=reader)[0].prompt == theirs.prompt(row)


def test_a_prompt_of_another_kind_gives_way_to_the_question() -> None:
    assert ResultRow.read({"id": "7", "prompt": [{"role": "user", "content": "x"}], "question": "a boat"}).prompt == (
        "a boat"
    )


@pytest.mark.parametrize("given", list(itertools.product(*[(None, *TYPES)] * 3)))
def test_the_type_in_meta_comes_first(given: tuple[str | None, ...]) -> None:
    inner, own, tier = given
    row = {"id": "7", "prompt": "x", "meta": {"eval_type": inner}, "eval_type": own, "tier": tier}
    assert (ResultRow.read(row).eval_type or "unknown") == theirs.eval_type(row)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"tier": "T1"}, EvalType.KNOWLEDGE),
        ({"tier": "T3"}, EvalType.QUALITY),
        ({"prompt_type": "T3"}, EvalType.QUALITY),
        ({"meta": {"tier": "t3"}}, EvalType.QUALITY),
        ({"meta": {"prompt_type": "T1"}}, EvalType.KNOWLEDGE),
        ({"eval_type": "quality-anchored"}, EvalType.QUALITY),
        ({}, EvalType.KNOWLEDGE),
    ],
)
def test_a_tier_is_a_type_and_none_is_fine_for_training(fields: dict[str, Any], kind: EvalType, tmp_path: Path) -> None:
    row = {"question": "a boat", "gt_image": "a.png"} | fields
    (found,) = requests(tmp_path, row, reader=read_rl)
    assert found.eval_type is kind and ResultRow.read(row | {"id": "1"}).request().eval_type is kind


def test_a_row_without_a_type_is_kept_and_noted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a boat", "gt_image": "a.png"}, bench_row(1)])
    report = RejectionReport()
    assert len(list(read_rl([path], report))) == 2
    assert report.noted == {RejectionReason.MISSING_EVAL_TYPE: 1} and not report.rejected


@pytest.mark.parametrize("name", ["category", "difficulty"])
def test_category_and_difficulty_are_those_of_the_row_then_of_meta(name: str, tmp_path: Path) -> None:
    for own, inner in itertools.product(("", "vehicle_transport"), ("", "architecture_landmark")):
        row = {**bench_row(1), name: own, "meta": {name: inner}}
        assert (getattr(ResultRow.read(row), name) or "unknown") == theirs.facet(row, name)
        assert (getattr(requests(tmp_path, row)[0], name) or "unknown") == theirs.facet(row, name)


PLACES = [
    *((name,) for name in ("gt_image", "ground_truth", "target_image", "reference_image")),
    *(("meta", name) for name in ("gt_image", "ground_truth", "target_image", "gt_copied_path")),
]


def with_truths(there: set[int], folder: Path) -> dict[str, Any]:
    """Return a row that names a file under every name, of which only some exist."""
    row: dict[str, Any] = {"id": "7", "prompt": "x", "meta": {}}
    for number, place in enumerate(PLACES):
        (row if len(place) == 1 else row["meta"])[place[-1]] = f"{number}.png"
        if number in there:
            file(folder / f"{number}.png")
    return row


@pytest.mark.parametrize("there", [{0, 3}, {1, 7}, {2}, {3, 4}, {4}, {5, 6}, {6, 7}, {7}])
def test_a_truth_that_is_missing_gives_way_to_the_next_name(there: set[int], tmp_path: Path) -> None:
    row = with_truths(there, tmp_path)
    expected = theirs.truth(row, [tmp_path])
    assert expected == tmp_path / f"{min(there)}.png"
    assert ResultRow.read(row).truth_file([tmp_path]) == expected
    (found,) = requests(tmp_path, row | {"eval_type": TYPES[0]})
    assert found.truth_file == expected


def test_no_truth_at_all_names_the_first(tmp_path: Path) -> None:
    row = with_truths(set(), tmp_path)
    with pytest.raises(RowFault, match=r"missing_image: gt_image: 0\.png"):
        ResultRow.read(row).truth_file([tmp_path])
    assert requests(tmp_path, row)[0].truth == "0.png"


def test_a_path_of_another_machine_gives_way_to_the_copied_one(tmp_path: Path) -> None:
    file(tmp_path / "copied/7.jpg")
    row = bench_row(7, gt_image="/theirs/set/7.jpg", meta={"gt_copied_path": "copied/7.jpg"})
    assert requests(tmp_path, row)[0].truth_file == tmp_path / "copied/7.jpg"
    assert ResultRow.read(row).truth_file([tmp_path]) == tmp_path / "copied/7.jpg"


def test_an_absolute_path_inside_the_data_set_is_fine(tmp_path: Path) -> None:
    inside = file(tmp_path / "gt/7.jpg")
    assert requests(tmp_path, bench_row(7, gt_image=str(inside)))[0].truth_file == inside
    climbing = bench_row(7, gt_image=f"elsewhere/../{inside.relative_to(tmp_path)}")
    assert requests(tmp_path, climbing)[0].truth_file == inside
    assert requests(tmp_path, bench_row(7, gt_image="/theirs/set/gt/7.jpg"))[0].truth_file == inside


@pytest.mark.parametrize("there", [(0,), (1,), (2,), (3,), (1, 3), (0, 2)])
def test_a_picture_that_is_missing_gives_way_to_the_next_name(there: tuple[int, ...], tmp_path: Path) -> None:
    names = ("output_path", "image_path", "generated_image", "gen_image")
    row = BARE | {"prompt": "x", "gt_image": "t.png"} | {name: f"{n}.png" for n, name in enumerate(names)}
    for number in there:
        file(tmp_path / f"{number}.png")
    expected = theirs.picture(row, [tmp_path])
    assert RenderedRow.read(row).picture_file([tmp_path]) == expected == tmp_path / f"{there[0]}.png"


def test_a_picture_is_never_its_own_truth() -> None:
    """`gen_image` is the picture for GenEvolve's scorer and the truth for Gen-Searcher's agent."""
    alone = RenderedRow.read(BARE | {"prompt": "x", "gen_image": "g.png"})
    assert (alone.images, alone.truths) == (("g.png",), ())
    asked = ResultRow.read({"id": "7", "prompt": "x", "meta": {}, "gen_image": "g.png"})
    assert asked.truths == ("g.png",)
    drawn = RenderedRow.read(asked.values | {"output_path": "images/7.png", "success": True})
    assert (drawn.images, drawn.truths) == (("images/7.png",), ("g.png",))
    predicted = ResultRow.read({"id": "7", "prompt": "x", "prediction": {"gen_image": "p.png"}})
    assert predicted.truths == ("p.png",)


def test_a_row_without_an_id_has_its_place_as_published_tools_number_it(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "id": "own"}, {"prompt": "c"}]
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(rows))
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    for path in (array, lines):
        found = list(read_results([path], ResultRow, RejectionReport()))
        assert [row.id for row in found] == ["0", "own", "2"]
        assert found[2].values["id"] == 2
    assert [row.id for row in requests(tmp_path, {"question": "x", "gt_image": "a.png", "category": ""})] == ["0"]


def test_a_held_out_request_is_excluded_under_either_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bench.jsonl", [{"prompt": "a boat", "question": "a ship"}])
    assert read_exclusion([path], RejectionReport()).keys == {request_key("a boat"), request_key("a ship")}


# --- odd rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "success"), [(1, True), (0, False), ("true", True), ("False", False), (1.0, True)])
def test_success_in_any_notation(said: Any, success: bool) -> None:
    assert RenderedRow.read(rendered(success=said)).success is success


@pytest.mark.parametrize(
    "termination",
    ["max_llm_calls", "repeated_response", "max_response_length_exceeded", "answer_parse_failed", "brand_new", 5, {}],
)
def test_any_termination_is_read_and_kept(termination: Any) -> None:
    row = AgentRow.read(rendered(termination=termination))
    assert row.values["termination"] == termination and row.gen_prompt


@pytest.mark.parametrize(
    ("error", "told"),
    [({"code": 429, "message": "busy"}, "busy"), (["x", "y"], "y"), (500, "500"), (True, "true"), (None, "")],
)
def test_any_error_is_read_as_text(error: Any, told: str) -> None:
    assert told in AgentRow.read({"id": "1", "prompt": "x", "error": error}).error
    assert told in RenderedRow.read({"id": "1", "prompt": "x", "success": 0, "error": error}).status


@pytest.mark.parametrize(
    ("written", "paths"),
    [
        (["a.png"], ["a.png"]),
        (["a.png", {"local_path": "b.png", "note": None, "img_id": 3}], ["a.png", "b.png"]),
        ({"local_path": "a.png"}, ["a.png"]),
        ("a.png", ["a.png"]),
        ('[{"local_path": "a.png"}]', ["a.png"]),
        (None, []),
        ([], []),
    ],
)
def test_references_in_any_clear_form(written: Any, paths: list[str]) -> None:
    row = {"id": "1", "prompt": "x", "gen_prompt": "y", "reference_images": written}
    assert [reference.local_path for reference in AgentRow.read(row).references] == paths


@pytest.mark.parametrize("written", [[5], [["a"]], 7, [{"local_path": 3}], "[", [None]])
def test_references_that_are_not_clear_cost_their_row(written: Any, tmp_path: Path) -> None:
    rows = [rendered(id="1", reference_images=written), rendered(id="2")]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    report = RejectionReport()
    assert [row.id for row in read_results([path], AgentRow, report)] == ["2"]
    assert report.rejected == {RejectionReason.BAD_FIELD: 1}


@pytest.mark.parametrize("rounds", ["many", {}, 2.5])
def test_a_number_of_rounds_that_is_none_is_left_aside(rounds: Any) -> None:
    assert AgentRow.read(rendered(rounds=rounds)).rounds == 0


def test_the_images_that_a_renderer_used_stand_in_for_references() -> None:
    row = {"id": "1", "prompt": "x", "gen_prompt": "y", "used_prompt": "y", "used_images": ["/a/b.png"]}
    assert [reference.local_path for reference in AgentRow.read(row).references] == ["/a/b.png"]
