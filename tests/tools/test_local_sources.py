"""Local sources: ranking, ties, speed of nothing but the index, and clear errors for a broken corpus."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_pictures import noise_file
from PIL import Image

from genevolve_ray.records.images import MemoryImages, reference
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.tools.local import (
    Bm25Index,
    CorpusError,
    LocalImageSource,
    LocalTextSource,
    load_documents,
    load_image_library,
)

TEXTS = ["the grey heron", "a red fox", "a grey fox of the north", "a red fox"]
INDEX = Bm25Index(TEXTS)


def test_the_best_match_comes_first() -> None:
    assert INDEX.top("grey fox", 4)[0] == 2


def test_ties_go_to_the_earlier_text() -> None:
    assert INDEX.top("red", 4) == [1, 3]


def test_texts_without_a_shared_word_are_not_returned() -> None:
    assert INDEX.top("heron", 4) == [0]
    assert INDEX.top("unheard", 4) == []


@pytest.mark.parametrize("query", ["", "?!", "   "])
def test_a_query_without_words_finds_nothing(query: str) -> None:
    assert INDEX.top(query, 4) == []


def test_case_and_punctuation_do_not_matter_and_common_words_do() -> None:
    assert INDEX.top("HERON!", 1) == [0]
    assert set(INDEX.top("the", 4)) == {0, 2}


def test_top_k_bounds_the_result() -> None:
    assert len(INDEX.top("a red grey fox", 2)) == 2


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_any_query_is_answered_in_order_of_score(query: str) -> None:
    found = INDEX.top(query, 4)
    assert len(set(found)) == len(found) <= 4


@pytest.mark.parametrize("texts", [[], ["", "?"]])
def test_nothing_to_index_is_an_error(texts: list[str]) -> None:
    with pytest.raises(CorpusError, match="nothing to index"):
        Bm25Index(texts)


async def test_text_search_reads_title_and_snippet() -> None:
    documents = [TextHit(title="Heron", url="u1", snippet="wades"), TextHit(title="Fox", url="u2", snippet="runs")]
    source = LocalTextSource(documents)
    assert await source.search("wades", 5) == documents[:1]
    assert await source.search("fox", 5) == documents[1:]


async def test_image_search_reads_captions() -> None:
    images = [ImageHit(title=t, url="", image=reference(t.encode(), width=1, height=1)) for t in TEXTS]
    assert await LocalImageSource(images).search("heron", 5) == images[:1]


def test_documents_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"title": "T", "url": "u", "snippet": "S\u2028"}\n\n{"title": "V", "url": "w", "snippet": "X"}\n')
    assert [hit.title for hit in load_documents(path)] == ["T", "V"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"title": "T", "url": "u", "snippet": "S"}\n{oops\n', ":2: not JSON"),
        (b'\n{"title": "T", "url": "u"}\n', ":2: snippet"),
        (b'{"title": "T", "url": "u", "snippet": "S", "extra": 1}', ":1: extra"),
        (b"[1]", ":1: row"),
        (b"\xff\xfe", "cannot be read"),
        (b"\n", "contains no documents"),
    ],
)
def test_a_broken_corpus_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(CorpusError) as error:
        load_documents(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none\.jsonl: cannot be read"):
        load_documents(tmp_path / "none.jsonl")


def test_an_image_library_is_stored_by_content(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    listing = tmp_path / "library.jsonl"
    listing.write_text(json.dumps({"title": "red", "file": "a.png", "url": "https://x.org/a.png"}))
    store = MemoryImages()
    (hit,) = load_image_library(listing, store)
    assert (hit.title, hit.image.width, hit.image.height, hit.image.media_type) == ("red", 3, 2, "image/png")
    assert store.get(hit.image) == buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"not a picture",
        noise_file(1, kind="PNG")[:400],
        noise_file(1, kind="JPEG")[:400],
        noise_file(1, kind="WEBP")[:400],
    ],
)
def test_a_broken_picture_names_its_line(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "a.png").write_bytes(data)
    listing = tmp_path / "library.jsonl"
    listing.write_text(json.dumps({"title": "red", "file": "a.png"}))
    with pytest.raises(CorpusError, match=r"library\.jsonl:1: picture 'a\.png'"):
        load_image_library(listing, MemoryImages())


def test_a_corpus_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_bytes(b'\xef\xbb\xbf{"title": "a", "url": "u", "snippet": "s"}\n')
    assert load_documents(tmp_path / "texts.jsonl")[0].title == "a"


def test_a_key_of_a_corpus_that_is_given_twice_is_named_with_its_line(tmp_path: Path) -> None:
    good = '{"title": "a", "url": "u", "snippet": "s"}\n'
    (tmp_path / "texts.jsonl").write_text(good + '{"title": "a", "title": "b", "url": "u", "snippet": "s"}\n')
    with pytest.raises(CorpusError, match=r"texts\.jsonl:2: not JSON: key 'title' is given twice"):
        load_documents(tmp_path / "texts.jsonl")


def test_a_picture_of_16_bits_is_stored_with_8(tmp_path: Path) -> None:
    import numpy as np

    Image.fromarray(np.full((4, 5), 0x8000, np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "pictures.jsonl").write_text('{"title": "a", "file": "a.png"}\n')
    store = MemoryImages()
    [hit] = load_image_library(tmp_path / "pictures.jsonl", store)
    with Image.open(io.BytesIO(store.get(hit.image))) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (128, 128, 128)
