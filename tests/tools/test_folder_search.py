"""Search in a folder: ranking by words and meaning, vectors that are computed once, and the toolbox as a plug-in."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_fakes import SEARCH_IMAGES, answer, call, play
from PIL import Image
from pydantic import ValidationError

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.contracts.tools import ToolsCase, check_tools
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.plugins import ToolsSpec, build_here
from genevolve_ray.records.images import FilesystemImages, MemoryImages
from genevolve_ray.records.leaks import mask
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.tools.folder.ranking import HybridIndex, fused
from genevolve_ray.tools.folder.toolbox import FolderTools, FolderToolsConfig
from genevolve_ray.tools.folder.vectors import LazyEmbedder, TextVectors
from genevolve_ray.tools.local import CorpusError
from genevolve_ray.tools.search import QueryRefused

NEAR = {"a small bird": [1.0, 0.0], "a large ship": [0.0, 1.0], "sparrow": [0.9, 0.1]}


class FakeEmbedder:
    """Returns set directions, and counts what it is given; `down` makes it fail after so many calls."""

    def __init__(self, identity: str = "fake/1", down_after: int | None = None) -> None:
        self.identity, self.down_after = identity, down_after
        self.embedded: list[str] = []
        self.calls = 0

    async def embed(self, texts: Sequence[str]) -> Any:
        self.calls += 1
        if self.down_after is not None and self.calls > self.down_after:
            raise InfraFailure("the embedder is down")
        self.embedded += texts
        await asyncio.sleep(0)
        rows = np.array([NEAR.get(text, [0.6, 0.8]) for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Ready(LazyEmbedder):
    """An embedder that is there."""

    def __init__(self, embedder: FakeEmbedder) -> None:
        self._embedder = embedder


# --- ranking and vectors ---------------------------------------------------------------------------------------------


def test_ranks_are_joined_by_their_reciprocals() -> None:
    assert fused([[7, 3, 5], [3, 9]]) == [3, 7, 9, 5]
    assert fused([[2, 1], [1, 2]]) == [1, 2]
    assert fused([[], []]) == []


async def test_meaning_finds_what_words_do_not() -> None:
    texts = ["a large ship", "a small bird"]
    assert await HybridIndex(texts).top("sparrow", 2) == []
    assert (await HybridIndex(texts, Ready(FakeEmbedder())).top("sparrow", 1)) == [1]


async def test_words_count_beside_meaning() -> None:
    index = HybridIndex(["a large ship", "a small bird", "sparrow ship"], Ready(FakeEmbedder()))
    assert await index.top("sparrow", 3) == [2, 1, 0]


async def test_a_query_is_embedded_once_by_all_who_ask(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    index = HybridIndex(["a large ship", "a small bird"], Ready(embedder), tmp_path)
    found = await asyncio.gather(*(index.top("sparrow", 1) for _ in range(16)))
    assert found == [[1]] * 16
    assert embedder.embedded == ["a large ship", "a small bird", "sparrow"]


async def test_a_text_is_embedded_once_over_restarts_and_changes_of_the_folder(tmp_path: Path) -> None:
    for texts, new in ((["a", "b", "a"], ["a", "b"]), (["c", "b"], ["c"]), (["c", "b"], [])):
        embedder = FakeEmbedder()
        rows = await TextVectors(texts, embedder, tmp_path / "cache", "texts").rows()
        assert embedder.embedded == new
        assert rows.shape == (len(texts), 2)
    another = FakeEmbedder("fake/2")
    await TextVectors(["c"], another, tmp_path / "cache", "texts").rows()
    assert another.embedded == ["c"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"\x80\x04."])
async def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    await TextVectors(["a"], FakeEmbedder(), tmp_path, "texts").rows()
    [file] = tmp_path.iterdir()
    file.write_bytes(damage)
    embedder = FakeEmbedder()
    await TextVectors(["a"], embedder, tmp_path, "texts").rows()
    assert embedder.embedded == ["a"]


async def test_an_outage_keeps_what_was_embedded_and_the_next_caller_goes_on(tmp_path: Path) -> None:
    texts = [str(number) for number in range(600)]
    vectors = TextVectors(texts, FakeEmbedder(down_after=2), tmp_path, "texts")
    for _ in range(2):
        with pytest.raises(InfraFailure, match="down"):
            await vectors.rows()
    embedder = FakeEmbedder()
    rows = await TextVectors(texts, embedder, tmp_path, "texts").rows()
    assert (embedder.embedded, len(rows)) == (texts[512:], 600)


async def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert (await TextVectors(["a"], FakeEmbedder(), tmp_path / "file", "texts").rows()).shape == (1, 2)


async def test_a_caller_that_gives_up_does_not_end_the_work() -> None:
    embedder = FakeEmbedder()
    vectors = TextVectors(["a"], embedder, None, "texts")
    first = asyncio.create_task(vectors.rows())
    await asyncio.sleep(0)
    first.cancel()
    assert len(await vectors.rows()) == 1
    assert embedder.calls == 1


# --- the toolbox -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "birds").mkdir(parents=True)
    (root / "birds" / "grey_heron.md").write_text("# Nesting\nThe heron nests in tall trees.\n# Food\nIt eats fish.\n")
    (root / "ships.txt").write_text("The ketch has two masts.")
    Image.new("RGB", (40, 30), "gray").save(root / "birds" / "heron.png")
    (root / "birds" / "heron.txt").write_text("a grey heron in the reeds")
    Image.new("RGB", (40, 30), "brown").save(root / "ketch.jpg")
    return root


def toolbox(folder: Path, store: Any = None, **settings: Any) -> FolderTools:
    return FolderTools(FolderToolsConfig(folder=folder, **settings), store or MemoryImages())


async def texts(tools: FolderTools, query: str, top_k: int = 5) -> list[tuple[str, str, str]]:
    hits = await tools.tools["search"].source.search(query, top_k)  # type: ignore[attr-defined]
    return [(hit.title, hit.url, hit.snippet) for hit in hits]


async def pictures(tools: FolderTools, query: str, top_k: int = 5) -> list[Any]:
    found: list[Any] = await tools.tools["image_search"].source.search(query, top_k)  # type: ignore[attr-defined]
    return found


async def test_passages_and_pictures_are_found(folder: Path) -> None:
    store = MemoryImages()
    tools = toolbox(folder, store)
    assert await texts(tools, "tall trees") == [
        ("grey heron: Nesting", "folder:///birds/grey_heron.md#1", "The heron nests in tall trees.")
    ]
    assert await texts(tools, "ketch") == [("ships", "folder:///ships.txt", "The ketch has two masts.")]
    [hit] = await pictures(tools, "reeds")
    assert (hit.title, hit.url, hit.page_url) == ("a grey heron in the reeds", "folder:///birds/heron.png", "")
    assert store.get(hit.image) == (folder / "birds" / "heron.png").read_bytes()


async def test_no_address_names_this_machine_and_none_passes_the_check_of_leaks(folder: Path) -> None:
    tools = toolbox(folder)
    found = [*await texts(tools, "heron ketch"), *(hit.url for hit in await pictures(tools, "heron ketch"))]
    assert str(folder.parent) not in str(found)
    assert "heron" not in mask(f"look at {found[-1]}")


async def test_a_folder_offers_what_it_holds(folder: Path) -> None:
    assert list(toolbox(folder).tools) == ["search", "image_search", "query_knowledge"]
    for path in (folder / "birds" / "heron.png", folder / "ketch.jpg"):
        path.unlink()
    assert list(toolbox(folder).tools) == ["search", "query_knowledge"]
    for path in folder.rglob("*.*"):
        path.unlink()
    (folder / "a.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"corpus: no text and no picture .*1 skipped: a\.txt \(not UTF-8\)"):
        toolbox(folder)


async def test_what_is_left_out_is_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "broken.png").write_text("<html>")
    (folder / "empty.md").write_text("# only a heading\n")
    toolbox(folder)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "2 skipped: broken.png (not a PNG / JPEG / WEBP picture" in record.getMessage()
    assert "empty.md (no text)" in record.getMessage()


async def test_a_picture_that_breaks_when_it_is_decoded_gives_way_to_the_next(folder: Path) -> None:
    whole = (folder / "birds" / "heron.png").read_bytes()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(whole[:-30])
        (folder / f"{name}.txt").write_text("heron heron")
    tools = toolbox(folder)
    assert [hit.url for hit in await pictures(tools, "heron", 1)] == ["folder:///birds/heron.png"]
    (folder / "birds" / "heron.png").write_bytes(whole[:-30])
    with pytest.raises(QueryRefused, match="cannot be used"):
        await pictures(toolbox(folder), "heron", 1)


async def test_a_disk_that_is_away_is_an_outage_and_not_an_empty_answer(folder: Path) -> None:
    tools = toolbox(folder)
    (folder / "birds").rename(folder.parent / "away")
    with pytest.raises(InfraFailure, match=r"none of 1 pictures could be read: birds/heron\.png: No such file"):
        await pictures(tools, "heron")
    (folder.parent / "away").rename(folder / "birds")
    assert len(await pictures(tools, "heron")) == 1


async def test_pixels_that_readers_would_see_differently_are_encoded_again(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "brown").save(folder / "ketch.jpg", exif=exif)
    Image.new("RGB", (40, 30), "red").save(folder / "square.webp", lossless=True)
    store = MemoryImages()
    tools = toolbox(folder, store)
    [turned], [plain] = await pictures(tools, "ketch"), await pictures(tools, "square")
    assert (turned.image.width, turned.image.height, turned.image.media_type) == (30, 40, "image/png")
    assert plain.image.media_type == "image/webp"
    with Image.open(io.BytesIO(store.get(turned.image))) as image:
        assert image.size == (30, 40)


async def test_an_episode_searches_a_folder(folder: Path, tmp_path: Path) -> None:
    profile = PROFILES["release"].model_copy(
        update={"max_prompt_tokens": 20_000, "max_response_tokens": 20_000, "max_turn_tokens": 900}
    )
    tools = toolbox(folder, FilesystemImages(str(tmp_path / "images"))).tools
    turns = [call("search", queries=["heron nests"]), SEARCH_IMAGES, answer()]
    trajectory = await play(turns, profile, dict(tools))
    assert trajectory.outcome is Outcome.PENDING, trajectory.reason
    assert "1. title: grey heron: Nesting" in trajectory.turns[0].observation
    assert trajectory.images["IMG_001"].url == "folder:///birds/heron.png"


@pytest.mark.parametrize("settings", [{}, {"embedder": {"kind": "hashing", "hashing": {"dimension": 64}}}])
async def test_the_plug_in_keeps_the_contract_of_tools(folder: Path, settings: dict[str, Any]) -> None:
    images = MemoryImages()
    spec = ToolsSpec(type="folder", config={"folder": str(folder), **settings})
    await check_tools(build_here(spec, images), ToolsCase(images))
    names = [path.name.partition("-")[0] for path in (folder / ".genevolve").glob("*")]
    assert sorted(names) == (["captions", "texts"] if settings else [])


async def test_vectors_are_kept_beside_the_texts_and_not_read_as_texts(folder: Path) -> None:
    for _ in range(2):
        tools = toolbox(folder, embedder={"kind": "hashing"})
        assert len(await texts(tools, "nothing of the kind", 3)) == 3
    assert [path.name.partition("-")[0] for path in (folder / ".genevolve").iterdir()] == ["texts"]


async def test_a_model_is_loaded_at_the_first_query_and_not_to_list_the_tools(folder: Path, tmp_path: Path) -> None:
    missing = {"kind": "transformers", "transformers": {"model": str(tmp_path / "none")}}
    tools = toolbox(folder, embedder=missing)
    assert list(tools.tools) == ["search", "image_search", "query_knowledge"]
    with pytest.raises(InfraFailure, match="the embedder cannot be loaded: .*none"):
        await texts(tools, "heron")
    with pytest.raises(ValueError, match=r"embedder\.transformers\.model=.*none' is not a folder"):
        FolderTools.check(FolderToolsConfig.model_validate({"folder": folder, "embedder": missing}))


def test_the_check_reads_the_folder_before_a_run(tmp_path: Path, folder: Path) -> None:
    FolderTools.check(FolderToolsConfig(folder=folder))
    with pytest.raises(CorpusError, match="is not a folder"):
        FolderTools.check(FolderToolsConfig(folder=tmp_path / "none"))
    with pytest.raises(ValueError, match="skills|none"):
        FolderTools.check(FolderToolsConfig(folder=folder, skills=tmp_path / "none"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"passage_chars": 200, "overlap_chars": 100}, "overlap_chars=100 must be less than half"),
        ({"embedder": {"kind": "endpoint"}}, "needs url and model"),
        ({"top_k": 11}, "less than or equal to 10"),
    ],
)
def test_a_bad_setting_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FolderToolsConfig(folder=".", **values)
