"""Drawings of the user become neighbors of the right picture in an image search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from genevolve_ray.cli import app
from genevolve_ray.errors import UserFault
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small.clipart import ClipartReport, write_clipart
from genevolve_ray.tools.folder.toolbox import FolderTools, FolderToolsConfig
from genevolve_ray.tools.protocol import EpisodeContext

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}"><rect width="{w}" height="{h}" fill="{fill}"/></svg>'
)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    folder = tmp_path / "svg"
    (folder / "animals").mkdir(parents=True)
    (folder / "animals/sleeping_cat_01.svg").write_text(SVG.format(w=200, h=100, fill="red"))
    (folder / "cat-again.svg").write_text(SVG.format(w=200, h=100, fill="red"))
    (folder / "tall owl.svg").write_text(SVG.format(w=1, h=1_000_000, fill="blue"))
    (folder / "broken cat.svg").write_text("<svg")
    (folder / "catalog.svg").write_text(SVG.format(w=9, h=9, fill="green"))
    (folder / "readme.txt").write_text("cat")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "s/corpus/pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "s/corpus/pictures/1F408.png")
    (tmp_path / "s/corpus/pictures/captions.jsonl").write_text('{"file": "1F408.png", "caption": "Cat"}\n')
    return tmp_path / "s/corpus"


@pytest.mark.usefixtures("resvg")
def test_drawings_named_like_a_subject_are_taken(drawings: Path, corpus: Path) -> None:
    report = write_clipart(drawings, corpus, ["cat", "great horned owl"])
    rows = [json.loads(line) for line in (corpus / "clipart/captions.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["sleeping cat", "tall owl"]
    [fault] = report.unusable
    assert (report.drawn, report.others) == (2, 2) and "broken cat.svg" in fault
    for row in rows:
        assert Image.open(corpus / "clipart" / row["file"]).size == (128, 128)
    wide = Image.open(corpus / "clipart" / rows[0]["file"])
    assert wide.getpixel((64, 64)) == (255, 0, 0) and wide.getpixel((64, 10)) == (255, 255, 255)


@pytest.mark.usefixtures("resvg")
def test_no_more_are_taken_than_asked_for(drawings: Path, corpus: Path) -> None:
    assert write_clipart(drawings, corpus, ["owl", "cat"], most=1) == ClipartReport(drawn=1, others=4, unusable=())
    assert len((corpus / "clipart/captions.jsonl").read_text().splitlines()) == 1


@pytest.mark.usefixtures("resvg")
def test_a_second_call_keeps_the_captions_of_the_first(drawings: Path, corpus: Path, tmp_path: Path) -> None:
    listed = corpus / "clipart/captions.jsonl"
    write_clipart(drawings, corpus, ["cat"])
    (tmp_path / "more").mkdir()
    (tmp_path / "more/barn owl.svg").write_text(SVG.format(w=9, h=9, fill="blue"))
    assert write_clipart(tmp_path / "more", corpus, ["owl"]).drawn == 1
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["sleeping cat", "barn owl"]
    assert {row["file"] for row in rows} == {path.name for path in listed.parent.glob("*.png")}
    listed.write_text("barn owl\n")
    with pytest.raises(UserFault, match=r"captions\.jsonl, line 1 is no caption of a drawing: 'barn owl'"):
        write_clipart(drawings, corpus, ["cat"])


@pytest.mark.usefixtures("resvg")
async def test_a_search_finds_them_beside_the_right_picture(drawings: Path, corpus: Path) -> None:
    assert CliRunner().invoke(app, ["small", "clipart", str(drawings), "--out", str(corpus.parent)]).exit_code == 0
    tools = FolderTools(FolderToolsConfig(folder=corpus), MemoryImages()).tools
    episode = EpisodeContext(request=Request(id="r", prompt="p", eval_type=EvalType.KNOWLEDGE))
    observed = str(await tools["image_search"].call({"query": "cat"}, episode))
    assert "Cat" in observed and "sleeping cat" in observed


def test_a_folder_without_drawings_and_a_missing_corpus_are_named(drawings: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="has no SVG file"):
        write_clipart(corpus, corpus, ["cat"])
    with pytest.raises(UserFault, match="is no corpus: run genevolve small setup first"):
        write_clipart(drawings, tmp_path / "none", ["cat"])
