"""The page of a published data set: what it shows, and that no text of a row is more than text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from page_helpers import HOSTILE, parsed
from published_samples import FACTS, case, parts, talk

from genevolve_ray.data.build.publishing import DataPart, data_hash, publish
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.viewer.dataset import render_dataset_page, write_dataset_page
from genevolve_ray.viewer.page import SCRIPTS


def test_the_page_shows_counts_and_rows_of_every_part_with_pictures(tmp_path: Path) -> None:
    images = MemoryImages()
    made = publish(tmp_path / "set", parts(images), FACTS, images)
    page = parsed(write_dataset_page(made.path, rows=2).read_text())
    assert page.sections == ["headlines", "parts", "yields", "composition", "leaks", "rows"]
    assert ["sft/train", "5", "10"] in page.rows("parts") and ["audit", "40", "10", "25.0%"] in page.rows("yields")
    assert ["vehicle_transport", "7"] in page.rows("composition")
    assert "No two parts overlap." in page.words and "$3.75" in page.words
    assert page.count("article", _class="card") == 2 + 1 + 2 + 1 + 2
    assert page.count("img") == 2 * 2 + 0 + 2 + 1 + 2
    assert page.count("details") == 3  # The conversations.
    assert "Knowledge-Anchored · city_street_scene · hard · text, layout" in page.words
    assert data_hash(made.path) == made.output_hash  # The page is no part of the data.


def test_no_text_of_a_row_becomes_markup(tmp_path: Path) -> None:
    images = MemoryImages()
    bad = case(images, 1, HOSTILE, skill_challenge=HOSTILE)
    bad = replace(bad, request=bad.request.model_copy(update={"category": HOSTILE, "meta": {"entities": [HOSTILE]}}))
    facts = replace(
        FACTS, name=HOSTILE, yields={HOSTILE: {"in": 1, "out": 1}}, marginals={HOSTILE: {HOSTILE: 2}},
        leaks={"embedder": HOSTILE, "counts": {HOSTILE: 1}, "total": 1},
    )  # fmt: skip
    rows = [DataPart("rl/train", [bad]), DataPart("sft/train", [talk(images, 1, HOSTILE)])]
    made = publish(tmp_path / "set", rows, facts, images)
    html = render_dataset_page(made.path)
    page = parsed(html)
    assert [kind for kind, _ in page.scripts if kind != "application/json"] == ["text/javascript"] * len(SCRIPTS)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.tags)
    assert HOSTILE in page.text and "alert(1)</script>" not in html.replace(HOSTILE, "")
    assert page.count("script") == len(page.scripts) == len(SCRIPTS) + 1
    assert len(html) < 400_000


def test_a_picture_that_is_gone_is_a_blank(tmp_path: Path) -> None:
    images = MemoryImages()
    made = publish(tmp_path / "set", [DataPart("rl/train", [case(images, 1)])], FACTS, images)
    (made.path / "rl/images/case_00001.jpg").write_bytes(b"broken")
    page = parsed(render_dataset_page(made.path))
    assert page.count("img") == 0 and "no image" in page.words


@pytest.mark.parametrize("summary", ["", "[]", json.dumps({"parts": {"a": 1}})])
def test_a_folder_without_a_summary_is_refused(tmp_path: Path, summary: str) -> None:
    if summary:
        (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(DataError, match=r"holds no data set with a summary\.json"):
        render_dataset_page(tmp_path)
