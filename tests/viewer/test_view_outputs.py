"""Outputs of jobs, data builds and gateways on the site, and the copy of the site as files."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from page_helpers import HOSTILE
from PIL import Image
from played_world import served
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.testclient import TestClient
from store_helpers import CONFIG, take_step

from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.viewer.site import gateway_status
from genevolve_ray.viewer.site.app import create_app
from genevolve_ray.viewer.site.copy import MARKER, CopyFault, write_copy
from genevolve_ray.viewer.site.gateway_status import TOKEN_VARIABLE, GatewaySource
from genevolve_ray.viewer.site.sources import SourceFault, SourceKind, ViewSource, open_sources
from genevolve_ray.viewer.site.watching import FolderListing, LineCounts


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def client_of(sources: list[ViewSource]) -> TestClient:
    for source in sources:
        while source.look():
            pass
    return TestClient(create_app(sources), base_url="http://localhost")


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (600, 300), "teal").save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return str(path)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A rendered row, a failed one, one whose picture is elsewhere, and one with hostile words."""
    folder = tmp_path / "rendered"
    write_json(folder / "render.job.json", {"seed": 1, "renderer": {"type": "atlas"}})
    inside, outside = picture(folder / "images" / "a.png"), picture(tmp_path / "elsewhere" / "b.png")
    row = {"prompt": "Draw a lantern.", "gen_prompt": "a lantern", "success": True}
    rows = [
        {**row, "id": "a", "output_path": inside, "image_path": inside, "image_status": "ok"},
        {**row, "id": "b", "success": False, "image_status": "error: out of memory"},
        {**row, "id": "c", "output_path": outside, "image_path": outside, "image_status": "ok"},
        {**row, "id": "d", "prompt": HOSTILE, "gen_prompt": HOSTILE, "success": False, "image_status": HOSTILE},
    ]
    write_json(folder / "results.json", rows)
    return folder


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    write_json(
        folder / "summary.json",
        {
            "name": HOSTILE,
            "yields": {"recipes": {"in": 8, "out": 6}},
            "marginals": {"family": {"named": 4, HOSTILE: 2}},
            "parts": {"rl/train": {"rows": 1, "pictures": 1}},
            "leaks": {"clean": False},
        },
    )
    (folder / "stages" / "prompts-12ab").mkdir(parents=True)
    (folder / "stages" / "prompts-12ab" / "x.jsonl").write_text("{}\n{}\n{}\n")
    picture(folder / "dataset" / "rl" / "images" / "case.png")
    write_json(
        folder / "dataset" / "rl" / "train.jsonl",
        {"id": "r1", "prompt": "Draw a tower.", "gt_image": "images/case.png"},
    )
    return folder


def test_rows_of_a_job_are_shown_with_pictures_of_its_own_folder_alone(job: Path, scratch: Path) -> None:
    client = client_of(open_sources([str(job)], scratch))
    page = client.get("/rendered/rows").text
    shown = re.findall(r'src="(/rendered/image/[^"]+)"', page)
    assert len(shown) == 1
    assert Image.open(io.BytesIO(client.get(shown[0]).content)).size == (256, 128)
    assert "error: out of memory" in page
    assert "seed" in client.get("/rendered/").text


def test_hostile_words_in_rows_and_summaries_are_text(job: Path, build: Path, scratch: Path) -> None:
    client = client_of(open_sources([str(job), str(build)], scratch))
    for path in ("/rendered/rows", "/rendered/", "/build/", "/build/rows"):
        page = client.get(path).text
        assert page.count("<script") == 1, path
        assert "<img src=http" not in page, path
    assert "&lt;/script&gt;" in client.get("/rendered/rows").text


def test_a_job_that_goes_on_is_followed(job: Path, scratch: Path) -> None:
    (job / "results.json").unlink()
    (job / "results.jsonl").write_text("{}\n")
    sources = open_sources([str(job)], scratch)
    client = client_of(sources)
    assert "1 rows in its journal" in client.get("/rendered/").text
    before = sources[0].revision
    (job / "results.jsonl").write_text("{}\n{}\n")
    sources[0].look()
    assert sources[0].revision > before
    assert "2 rows in its journal" in client.get("/rendered/").text
    assert client.get("/rendered/rows").status_code == 404


def test_a_journal_is_read_on_from_where_its_count_ended(tmp_path: Path) -> None:
    journal, counts = tmp_path / "results.jsonl", LineCounts()
    journal.write_bytes(b"{}\n" * 100)
    assert counts.count(journal) == 100
    # What was counted is not read again: without its line breaks the count is still the same.
    with journal.open("r+b") as file:
        file.write(b"xxx" * 100)
        file.write(b"{}\n{")
    assert counts.count(journal) == 101
    journal.write_bytes(b"{}\n")
    assert counts.count(journal) == 1
    journal.with_name("new").write_bytes(b"{}\n" * 5)
    journal.with_name("new").replace(journal)
    assert counts.count(journal) == 5
    journal.unlink()
    assert counts.count(journal) == 0


def test_folders_of_pictures_are_not_listed_and_others_only_when_they_change(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, scandir = list[str](), os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    os.utime(job, (1, 1))
    listing = FolderListing(job, 2)
    assert list(listing.folders()) == list(listing.folders())
    assert listed == ["rendered"]
    write_json(job / "later.json", {})
    ((_, names),) = listing.folders()
    assert "later.json" in names
    assert listed == ["rendered", "rendered"]


def test_a_build_shows_its_yields_and_the_rows_of_its_parts(build: Path, scratch: Path) -> None:
    client = client_of(open_sources([str(build)], scratch))
    page = " ".join(client.get("/build/").text.split())
    assert "<td>8</td><td>6</td><td>75.0%</td>" in page
    assert '<th scope="row">prompts</th><td>3</td>' in page
    assert "Rows leak from one part into another" in page
    rows = client.get("/build/rows?part=rl/train").text
    assert "Draw a tower." in rows
    assert len(re.findall(r'src="/build/image/', rows)) == 1


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"yields": 3, "parts": [], "marginals": {"a": 1}, "leaks": 0}'])
def test_a_summary_of_another_form_is_no_fault(build: Path, scratch: Path, data: bytes) -> None:
    (build / "summary.json").write_bytes(data)
    assert client_of(open_sources([str(build)], scratch)).get("/build/").status_code == 200


def test_runs_beside_a_job_are_shown_each(job: Path, build: Path, scratch: Path) -> None:
    RunStore.open(str(job.parent / "run"), CONFIG).close()
    sources = open_sources([str(job.parent)], scratch)
    assert {s.name: s.kind for s in sources} == {
        "build": SourceKind.BUILD,
        "rendered": SourceKind.JOB,
        "run": SourceKind.RUN,
    }
    client_of(sources)
    for source in sources:
        source.close()


# --- gateways ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(TOKEN_VARIABLE, "gvr_of_this_test")
    app = FastAPI()

    async def status(request: Request) -> Response:
        known = request.headers.get("authorization") == "Bearer gvr_of_this_test"
        workers = {HOSTILE: {"leases": 2, "accepted": 40, "refused": {"late": 1, "malformed": 2}}}
        return JSONResponse({"accepted": 41, "workers": workers} if known else {}, 200 if known else 401)

    app.add_api_route("/v1/status", status, methods=["GET"])
    with served(app) as url:
        yield url


def test_a_gateway_is_asked_for_its_status(gateway: str, scratch: Path) -> None:
    sources = open_sources([gateway], scratch)
    page = client_of(sources).get(f"/{sources[0].slug}/").text
    assert "<dd>41</dd>" in page
    assert "<td>2</td><td>40</td><td>3</td>" in page
    assert page.count("<script") == 1


def test_a_gateway_that_answers_without_end_is_left(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    monkeypatch.setenv(TOKEN_VARIABLE, "gvr_of_this_test")
    monkeypatch.setattr(gateway_status, "_TIMEOUT", 0.2)
    app = FastAPI()
    app.add_api_route("/v1/status", lambda: StreamingResponse(drip()), methods=["GET"])
    with served(app) as url:
        (source,) = open_sources([url], scratch)
        assert not source.look()
        assert isinstance(source, GatewaySource)
        assert source.answer_fault == "it did not answer within 0.2 seconds"


def test_a_gateway_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, gateway: str, scratch: Path) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "gvr_another")
    sources = open_sources([gateway], scratch)
    assert "HTTP status 401" in client_of(sources).get(f"/{sources[0].slug}/").text


@pytest.mark.parametrize(("token", "url"), [("", "https://gpu-1:8470"), ("gvr_x", "http://gpu-1:8470")])
def test_a_gateway_needs_a_token_and_an_encrypted_way(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, token: str, url: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(SourceFault, match=re.escape(url)):
        open_sources([url], scratch)


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_every_link_of_a_copy_leads_to_a_file(job: Path, build: Path, scratch: Path, tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        take_step(store, 1)
        sources = open_sources([str(job), str(build), str(tmp_path / "run")], scratch)
        client_of(sources)
        totals = write_copy(sources, tmp_path / "copy")
        for source in sources:
            source.close()
    pages = list((tmp_path / "copy").rglob("*.html"))
    links = [(p, link) for p in pages for link in re.findall(r'(?:href|src)="([^"#]+)"', p.read_text("utf-8"))]
    assert len(links) > 20
    assert [link for page, link in links if not (page.parent / link).is_file()] == []
    assert totals.pictures == 3
    assert totals.left_out == 0


def test_a_copy_beyond_its_limit_says_so(build: Path, scratch: Path, tmp_path: Path) -> None:
    sources = open_sources([str(build)], scratch)
    client_of(sources)
    totals = write_copy(sources, tmp_path / "copy", limit=1)
    assert (totals.pages, totals.left_out) == (1, 2)
    assert "not-copied.html" in (tmp_path / "copy" / "build" / "index.html").read_text()
    assert "holds 1 pages of build" in (tmp_path / "copy" / "build" / "not-copied.html").read_text()


def test_a_copy_replaces_an_earlier_one_and_nothing_else(build: Path, scratch: Path, tmp_path: Path) -> None:
    sources = open_sources([str(build)], scratch)
    write_copy(sources, tmp_path / "copy")
    write_copy(sources, tmp_path / "copy")
    gone = tmp_path / "copy" / "build" / "gone" / "page.html"
    own, outside = tmp_path / "copy" / "own.txt", tmp_path / "outside.txt"
    for path in (gone, own, outside):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with (tmp_path / "copy" / MARKER).open("a") as marker:
        marker.write("build/gone/page.html\n../outside.txt\n")
    write_copy(sources, tmp_path / "copy")
    assert (gone.parent.exists(), own.exists(), outside.exists()) == (False, True, True)
    assert (tmp_path / "copy" / "build" / "index.html").is_file()
    with pytest.raises(CopyFault, match="holds other files"):
        write_copy(sources, build)
