"""Files of results as sources of their own: alone, in folders, beside runs, followed, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from output_samples import calibration_object, lift_object, put, result_objects
from page_helpers import HOSTILE, parsed
from site_run import client_of
from store_helpers import CONFIG

from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.viewer.ablation import render_ablation
from genevolve_ray.viewer.calibration import read_calibration, render_calibration
from genevolve_ray.viewer.lift import render_lifts
from genevolve_ray.viewer.site.copy import write_copy
from genevolve_ray.viewer.site.results import LARGEST_RESULT
from genevolve_ray.viewer.site.sources import SourceFault, SourceKind, open_sources
from genevolve_ray.viewer.suite import render_suite

REPORTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "ablation.json": render_ablation,
    "lift-000040.json": render_lifts,
    "calibration.json": lambda found: render_calibration(read_calibration(found), "calibration"),
    "suite.json": lambda found: render_suite(found, "suite"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_has_the_title_and_the_tables_of_the_report(name: str, tmp_path: Path) -> None:
    found = result_objects()[name]
    (source,) = open_sources([str(put(tmp_path / name, found))], tmp_path)
    while source.look():
        pass
    assert source.kind is SourceKind.RESULT and source.fault == ""
    answer = client_of(source).get(f"/{source.slug}/")
    page, report = parsed(answer.text), parsed(REPORTS[name](found))
    assert page.sections == report.sections and page.tables == report.tables
    assert len(page.tables) > 0 and "style=" not in answer.text
    title = report.words.split(" · GenEvolve")[0]
    assert page.words.startswith(title)


def test_files_beside_runs_are_sources_and_others_are_left_out(tmp_path: Path) -> None:
    RunStore.open(str(tmp_path / "runs" / "demo"), CONFIG).close()
    for name, found in result_objects().items():
        put(tmp_path / "runs" / name, found)
    others = {"notes.json": "{}", "cut.json": "{", "rows.json": [1], "large.json": " " * (LARGEST_RESULT + 1)}
    for name, content in others.items():
        put(tmp_path / "runs" / name, content)
    sources = open_sources([str(tmp_path / "runs")], tmp_path)
    told = {"demo": "run", "ablation": "ablation", "calibration": "calibration", "suite": "suite result"}
    assert {source.name: source.what for source in sources} == told | {"lift-000040": "lifts of guides"}
    home = client_of(*sources).get("/").text
    assert "<span>lifts of guides</span>" in home and home.count('class="card"') == 5
    totals = write_copy(sources, tmp_path / "copy")
    assert (tmp_path / "copy" / "ablation" / "index.html").is_file() and totals.left_out == 0
    for source in sources:
        source.close()


def test_a_folder_of_results_and_a_uri_of_one_are_taken(tmp_path: Path) -> None:
    path = put(tmp_path / "runs" / "lift-000040.json", lift_object())
    for place in (str(path.parent), path.as_uri(), f"{path.parent.as_uri()}/"):
        (source,) = open_sources([place], tmp_path)
        assert (source.name, source.what) == ("lift-000040", "lifts of guides")


def test_results_beside_a_job_are_shown_with_it(tmp_path: Path) -> None:
    put(tmp_path / "out" / "render" / "render.job.json", {"seed": 1})
    put(tmp_path / "out" / "suite.json", result_objects()["suite.json"])
    assert [source.kind for source in open_sources([str(tmp_path / "out")], tmp_path)] == [
        SourceKind.JOB,
        SourceKind.RESULT,
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "holds no result that has a page"),
        ("[1]", "holds a list, not an object"),
        ("{", "is no JSON: "),
        (" " * (LARGEST_RESULT + 1), f"has {LARGEST_RESULT + 1:,} bytes"),
        (calibration_object(wanted=3), "is no calibration that can be read: wanted: "),
    ],
    ids="object list cut large calibration".split(),
)
def test_another_file_is_refused_by_its_path_and_what_is_taken_is_named(
    tmp_path: Path, content: Any, reason: str
) -> None:
    path, page = (put(tmp_path / name, content) for name in ("other.json", "other.html"))
    for place in (str(path), path.as_uri(), str(page)):
        with pytest.raises(SourceFault) as raised:
            open_sources([place], tmp_path)
        assert str(raised.value).startswith(f"{place} cannot be shown: it {reason}")
    said = str(raised.value)
    assert "genevolve view shows the JSON file of an ablation, of lifts, of a calibration or of a suite" in said


def test_a_file_is_followed_and_the_last_result_stays_while_it_holds_none(tmp_path: Path) -> None:
    path = put(tmp_path / "lift.json", lift_object(5))
    (source,) = open_sources([str(path)], tmp_path)
    source.look()
    before = source.revision
    assert "step 5" in client_of(source).get("/lift/").text
    put(path, lift_object(60))
    source.look()
    assert source.revision == before + 1 and "step 60" in client_of(source).get("/lift/").text
    path.write_text("{")
    source.look()
    page = parsed(client_of(source).get("/lift/").text).words
    assert (
        f"This is what the file held before: {path} holds no result any more: it is no JSON" in page
        and "step 60" in page
    )
    put(path, result_objects()["ablation.json"])
    source.look()
    assert (source.what, source.fault) == ("ablation", "")
    assert "full − sft" in client_of(source).get("/lift/").text


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    for name, found in result_objects().items():
        text = json.dumps(found)
        for value in ("sft", "own", "runs/demo", "hashing", "cold", "step 40"):
            text = text.replace(json.dumps(value), json.dumps(HOSTILE))
        (source,) = open_sources([str(put(tmp_path / name, text))], tmp_path)
        page = parsed(client_of(source).get(f"/{source.slug}/").text)
        assert HOSTILE in page.text
        assert page.count("img") == 0 and [kind for kind, _ in page.scripts] == ["text/javascript"] * 2
        assert not any(
            given.startswith("on") or given == "style" for _, attributes in page.tags for given in attributes
        )
