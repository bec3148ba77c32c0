from __future__ import annotations

import base64
import io
import random

import pytest
from PIL import Image

from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.viewer.data import ReportData, pairs
from genevolve_ray.viewer.gallery import (
    LARGE_SIDE,
    MAX_PREVIEW,
    THUMB_SIDE,
    Pictures,
    breakdown,
    choose,
    clip,
    parts,
    turn_tokens,
)


def stored(store: MemoryImages, width: int, height: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, format="JPEG")
    return store.put(buffer.getvalue(), width=width, height=height, media_type="image/jpeg")


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2])))


def test_small_pictures_are_shown_pixelated_at_twice_their_size() -> None:
    store = MemoryImages()
    picture = Pictures(store.get).get(stored(store, 128, 96))
    assert picture is not None
    assert (picture.shown, picture.pixelated, decoded(picture.uri).size) == (256, True, (128, 96))
    assert decoded(picture.uri).format == "PNG" and picture.full == ""


def test_large_pictures_have_a_preview_and_their_full_size_once() -> None:
    store = MemoryImages()
    pictures = Pictures(store.get)
    ref = stored(store, 1024, 512)
    picture, again, thumb = pictures.get(ref), pictures.get(ref), pictures.get(ref, THUMB_SIDE)
    assert picture is not None and thumb is not None and again is picture
    assert (picture.shown, picture.pixelated, picture.size) == (LARGE_SIDE, False, (1024, 512))
    assert decoded(picture.uri).size == (LARGE_SIDE, LARGE_SIDE // 2)
    [(key, uri)] = pictures.full().items()
    assert key == picture.full == thumb.full and decoded(uri).size == (1024, 512)


def test_full_sizes_end_at_the_budget_and_search_results_come_last() -> None:
    store = MemoryImages()
    pictures = Pictures(store.get)
    refs = [stored(store, 600 + 10 * i, 600) for i in range(4)]
    found = pictures.get(refs[0], THUMB_SIDE)
    keys = [p.full for ref in refs[1:] if (p := pictures.get(ref)) is not None]
    sizes = [len(uri) for uri in pictures.full().values()]
    assert found is not None and list(pictures.full()) == [*keys, found.full]
    assert list(pictures.full(sum(sizes[:2]))) == keys[:2]
    assert pictures.full(sizes[0] - 1) == {}


def test_a_preview_of_noise_stays_below_its_limit() -> None:
    noise = Image.frombytes("RGB", (512, 512), random.Random(1).randbytes(512 * 512 * 3))
    buffer = io.BytesIO()
    noise.save(buffer, format="PNG")
    store = MemoryImages()
    picture = Pictures(store.get).get(store.put(buffer.getvalue(), width=512, height=512))
    assert picture is not None
    assert len(base64.b64decode(picture.uri.partition(",")[2])) <= MAX_PREVIEW


@pytest.mark.parametrize(("format_", "size"), [("GIF", (8, 8)), ("PNG", (9000, 9000))])
def test_a_picture_beyond_the_limits_is_left_out(format_: str, size: tuple[int, int]) -> None:
    buffer, store = io.BytesIO(), MemoryImages()
    Image.new("RGB", size).save(buffer, format=format_)
    assert Pictures(store.get).get(store.put(buffer.getvalue(), width=size[0], height=size[1])) is None


def test_files_are_linked_below_the_folder_unless_a_browser_might_run_them() -> None:
    store = MemoryImages()
    ref = stored(store, 64, 64)
    linked = Pictures(store.get, "images").get(ref)
    assert linked is not None and linked.file == f"images/{ref.sha256[:2]}/{ref.sha256}.jpeg"
    odd = store.put(store.get(ref), width=64, height=64, media_type="image/svg+xml")
    for pictures, asked in ((Pictures(store.get), ref), (Pictures(store.get, "images"), odd)):
        picture = pictures.get(asked)
        assert picture is not None and picture.file == ""


@pytest.mark.parametrize("data", [b"", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\nbroken"])
def test_bytes_that_are_no_picture_give_none(data: bytes) -> None:
    store = MemoryImages()
    assert Pictures(store.get).get(store.put(data, width=1, height=1)) is None


def test_the_choice_holds_extremes_and_a_random_rest(report_data: ReportData) -> None:
    compared = pairs(report_data)
    gains = sorted((p.gain for p in compared), reverse=True)
    chosen = choose(compared, cards=6)
    assert [c.pair.gain for c in chosen if c.why == "gain"] == gains[:2]
    assert all(c.pair.gain < 0 for c in chosen if c.why == "loss")
    assert len({c.pair.request.id for c in chosen}) == len(chosen) == 6
    assert chosen == choose(compared, cards=6)


def test_few_pairs_are_all_shown(report_data: ReportData) -> None:
    assert len(choose(pairs(report_data), cards=36)) == len(report_data.requests)


def test_breakdown_counts_a_joined_category_in_each(report_data: ReportData) -> None:
    rows = breakdown(pairs(report_data))
    by_label = {label: sum(r.requests for r in rows if r.label == label) for label in ("eval_type", "category")}
    assert by_label == {"eval_type": 9, "category": 18}


def test_tokens_are_counted_per_turn() -> None:
    ledger = TokenLedger()
    ledger.append_context([1] * 5, SpanKind.PROMPT)
    for think, act, seen in ((3, 4, 6), (2, 1, 0)):
        ledger.append_policy([1] * think, [0.0] * think, [0] * think, SpanKind.THINK)
        ledger.append_policy([1] * act, [0.0] * act, [0] * act, SpanKind.TOOL_CALL)
        ledger.append_context([1] * seen, SpanKind.OBSERVATION)
    assert turn_tokens(ledger) == [(7, 6), (3, 0)]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("<think>a</think>\n<answer>{}</answer>", [("think", "a"), ("answer", "{}")]),
        ("a</think><tool_call>b</tool_call>", [("think", "a"), ("tool_call", "b")]),
        ("<think>never closed", [("think", "never closed")]),
        ("no tags", [("text", "no tags")]),
        ("<think>a</think> stray <answer>b", [("think", "a"), ("text", "stray"), ("answer", "b")]),
        ("", []),
    ],
)
def test_turns_are_cut_into_parts(text: str, cut: list[tuple[str, str]]) -> None:
    assert parts(text) == cut


def test_long_text_is_cut_with_a_note() -> None:
    assert clip("x" * 12, limit=10) == "x" * 10 + "\n… 2 more characters"
