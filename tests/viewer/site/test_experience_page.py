"""The page of a run's experience: results in its folder, as they come, and files that are none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from output_samples import calibration_object, lift_object, put, result_objects
from page_helpers import HOSTILE, Page, parsed
from site_run import client_of
from store_helpers import CONFIG, take_step

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.viewer.site.copy import write_copy
from genevolve_ray.viewer.site.experience import MOST_NAMED, MOST_RESULTS
from genevolve_ray.viewer.site.results import LARGEST_RESULT, RunResults
from genevolve_ray.viewer.site.sources import RunSource

LISTED = '<a href="/demo/experience"'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunStore.open(str(tmp_path / "demo"), CONFIG) as store:
        take_step(store, 1)
        store.put_summary({"reward_mean": 0.5, "rewards": {}})
    return tmp_path / "demo"


@pytest.fixture
def source(run: Path, tmp_path: Path) -> Iterator[RunSource]:
    (tmp_path / "index").mkdir()
    opened = RunSource(str(run), tmp_path / "index")
    yield opened
    opened.close()


def read(source: RunSource) -> Page:
    while source.refresh():
        pass
    answer = client_of(source).get("/demo/experience")
    assert answer.status_code == 200
    return parsed(answer.text)


def test_a_run_without_experience_and_results_does_not_list_the_page(source: RunSource) -> None:
    page = read(source)
    assert "Nothing is measured yet, and this run has no experience memory." in page.words
    assert "genevolve experience lift RUN" in page.words and page.sections == ["commands"]
    assert LISTED not in client_of(source).get("/demo/").text


def test_a_run_with_a_memory_names_the_commands(source: RunSource, run: Path) -> None:
    (run / "experience").mkdir()
    assert "Nothing is measured yet." in read(source).words
    assert LISTED in client_of(source).get("/demo/").text


def test_results_appear_when_their_files_do_and_change_with_them(source: RunSource, run: Path) -> None:
    read(source)
    before = source.revision
    put(run / "lift-000040.json", lift_object())
    put(run / "calibration.json", calibration_object())
    page = read(source)
    assert source.revision > before and LISTED in client_of(source).get("/demo/").text
    assert page.rows("lift-1-policy-1")[1][:4] == ["ownthe request's own bundle", "+0.100", "+0.050 to +0.150", "12"]
    assert [row[0] for row in page.rows("calibration-1-thresholds")] == ["Threshold", "0.40", "0.50"]
    before = source.revision
    read(source)
    assert source.revision == before, "nothing is new"
    put(run / "lift-000040.json", lift_object(60))
    assert "Lifts of guides, step 60" in read(source).words and source.revision > before
    (run / "lift-000040.json").unlink()
    assert "Lifts of guides" not in read(source).words


def test_names_are_free_and_the_last_step_is_first(source: RunSource, run: Path) -> None:
    put(run / "Mine.JSON", lift_object(5))
    put(run / "another.json", lift_object(20))
    for name in ("c1.json", "c2.json"):
        put(run / name, calibration_object())
    page = read(source)
    assert page.words.index("step 20 another.json") < page.words.index("step 5 Mine.JSON")
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and {"calibration-1-curve", "calibration-2-curve"} <= set(ids)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no JSON: "),
        ('{"policies": {', "is no JSON: "),
        ("[" * 200_000, "is no JSON: "),
        (b"\xff\xfe\x00", "is no JSON: "),
        ("[1]", "holds a list, not an object"),
        ("{}", "holds no result that has a page"),
        (" " * (LARGEST_RESULT + 1), f"has {LARGEST_RESULT + 1:,} bytes; a result has at most {LARGEST_RESULT:,}"),
        (calibration_object(rows=[]), "is no calibration that can be read: rows: there are none"),
        (calibration_object(chance=1e308), "is no calibration that can be read: chance: Input should be less than"),
        (calibration_object(bundles="many"), "is no calibration that can be read: bundles: Input should be"),
        (result_objects()["ablation.json"], "holds another result, of the kind ablation"),
    ],
    ids="empty cut deep no-text list object large no-rows share count other".split(),
)
def test_a_file_that_is_no_result_is_named_with_its_reason(
    source: RunSource, run: Path, content: Any, reason: str
) -> None:
    put(run / "lift-000001.json", content)
    put(run / "lift-000040.json", lift_object())
    page = read(source)
    assert f"lift-000001.json: it {reason}" in page.words
    assert "Lifts of guides, step 40" in page.words
    assert client_of(source).get("/demo/").status_code == 200


def test_a_file_that_cannot_be_read_is_tried_again(
    source: RunSource, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Folder, name: str, what: str, most: int) -> bytes:
        raise StoreError(f"cannot read {name} ({what})") from PermissionError(13, "Permission denied")

    put(run / "lift-000040.json", lift_object())
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "get", refused)
        source.results.refresh()
    assert source.results.found[0].fault == "it could not be read: [Errno 13] Permission denied"
    assert "Lifts of guides, step 40" in read(source).words


def test_files_of_the_run_itself_are_no_results(source: RunSource, run: Path) -> None:
    for name in ("status.json", "rows.json", "prometheus_targets.json", "bundle-lift-000004.json", ".lease.json"):
        put(run / name, lift_object())
    put(run / "folder.json" / "inside.json", lift_object())
    read(source)
    assert {path.name for path in run.glob("*.json")} >= {"run.json", "summary.json"}
    assert source.results.found == ()


def test_beyond_a_bound_results_are_named(source: RunSource, run: Path) -> None:
    for step in range(1, MOST_RESULTS + 2):
        put(run / f"lift-{step:06d}.json", lift_object(step))
    page = read(source)
    assert sum(bool(re.fullmatch(r"lift-\d+", name)) for name in page.sections) == MOST_RESULTS
    assert "lift-000001.json is one more result: genevolve view FILE shows it" in page.words


def test_only_some_of_many_other_files_are_named(source: RunSource, run: Path) -> None:
    for number in range(MOST_NAMED + 3):
        put(run / f"notes-{number:03d}.json", "{}")
    page = read(source)
    assert page.words.count("holds no result that has a page") == MOST_NAMED and "and 3 more" in page.words


def test_hostile_names_and_values_are_text(source: RunSource, run: Path) -> None:
    def actives() -> Counter[str]:
        page = read(source)
        assert not any(name.startswith("on") or name == "style" for _, given in page.tags for name in given)
        return Counter(tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "style", "link"))

    for name in ("lift-000001.json", "c.json"):
        put(run / name, lift_object() if name[0] == "l" else calibration_object())
    plain = actives()
    policy = lift_object()["policies"]["step 40"] | {
        "left_out": {HOSTILE: {HOSTILE: 1}},
        "lift": {HOSTILE: {"mean": 1}},
    }
    put(run / "lift-000001.json", lift_object(run=HOSTILE, policies={HOSTILE: policy}))
    put(run / "c.json", calibration_object(embedder=HOSTILE, reference=HOSTILE))
    put(run / f"{HOSTILE.replace('/', '_')}.json", "{")
    assert actives() == plain
    assert HOSTILE in read(source).text


def test_a_copy_has_the_page(source: RunSource, run: Path, tmp_path: Path) -> None:
    put(run / "lift-000040.json", lift_object())
    read(source)
    write_copy([source], tmp_path / "copy")
    page = (tmp_path / "copy" / "demo" / "experience.html").read_text()
    assert "Lifts of guides, step 40" in page and 'href="experience.html"' in page
    assert (tmp_path / "copy" / "static" / "measures.css").is_file()


def test_results_of_a_run_that_is_elsewhere_are_read_and_the_page_says_what_the_commands_take(
    source: RunSource,
) -> None:
    folder = Folder("runs/demo", pafs._MockFileSystem())
    folder.put("lift-000040.json", b'{"step": 40, "policies": {}}', "result")
    folder.put("experience/000001.parquet", b"", "memory")
    results = RunResults(folder)
    assert results.refresh() and not results.refresh()
    assert results.memory and [one.name for one in results.found] == ["lift-000040.json"]
    source.refresh()
    source.results, source.index.run_folder = results, folder
    page = parsed(client_of(source).get("/demo/experience").text)
    assert "Lifts of guides, step 40" in page.words
    assert "They take a run on a local disk: copy this one there, and their files into its folder." in page.words
