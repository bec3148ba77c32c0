"""Truth images of every kind that cannot be opened: each costs its row, with a reason, and never a run."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from published_helpers import bench_row, write_lines

from genevolve_ray.data import truths
from genevolve_ray.data.requests import PublishedRequests
from genevolve_ray.data.truths import TRUTH_LIMITS, acceptance, check_truths, known_truths, remember_truths
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.published.rejections import DataError, RejectionReason


def encoded(format: str = "PNG", size: tuple[int, int] = (40, 30), color: int = 9) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def floats() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
BAD = {
    "pointer": (POINTER, "Git LFS pointer"),
    "empty": (b"", "an empty file"),
    "gif": (encoded("GIF"), "a GIF file"),
    "bmp": (encoded("BMP"), "a BMP file"),
    "tiff": (encoded("TIFF"), "a TIFF file"),
    "tiff of floats": (floats(), "a TIFF file"),
    "avif": (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(300), "a AVIF file"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a SVG file"),
    "html": (b"<!DOCTYPE html><html>404</html>", "a HTML file"),
    "text": (b"not found", "not a PNG / JPEG / WEBP picture"),
    "cut": (encoded("JPEG", (400, 300))[:-200], "not a PNG / JPEG / WEBP picture"),
    "cut in its header": (encoded()[:20], "not a PNG / JPEG / WEBP picture"),
    "too many pixels": (encoded(size=(7000, 6000)), "42000000|7000 x 6000 pixels, allowed"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_truth_has_a_reason(name: str, tmp_path: Path) -> None:
    data, reason = BAD[name]
    path = tmp_path / "truth.png"
    path.write_bytes(data)
    found = check_truths([path])[path]
    assert any(part in found.fault for part in reason.split("|")) and not found.missing


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_usable_truth_has_none(format: str, tmp_path: Path) -> None:
    (path := tmp_path / "any-name.bin").write_bytes(encoded(format))
    assert check_truths([path])[path].fault == ""


def test_a_missing_truth_says_so(tmp_path: Path) -> None:
    [found] = check_truths([tmp_path / "gone.png"]).values()
    assert found.missing and "No such file" in found.fault


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    found = check_truths([tmp_path / "pipe.png", tmp_path / "folder.png", tmp_path / ("x" * 300)])
    assert all(one.missing and one.fault for one in found.values())


def test_each_content_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(truths, "check_apart", lambda data, limits: decoded.append(len(data)))
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(color=100 + number // 3))
    limits = acceptance(PictureLimits(min_side=2))
    check_truths(paths, limits)
    check_truths([*paths, *paths], limits)
    assert len(decoded) == 2
    check_truths(paths, acceptance(PictureLimits(min_side=3)))
    assert len(decoded) == 4


def test_a_resumed_run_does_not_read_unchanged_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.png").write_bytes(encoded(color=77))
    before = check_truths([path])[path]
    known = json.loads(json.dumps(known_truths([path], TRUTH_LIMITS)))
    monkeypatch.setattr(truths, "_BY_FILE", {})
    monkeypatch.setattr(truths, "_BY_CONTENT", {})
    remember_truths(known)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    assert check_truths([path])[path] == before
    os.utime(path, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="it was read"):
        check_truths([path])


# --- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [bench_row(number) for number in range(40)]
    for number, row in enumerate(rows):
        path = tmp_path / row["gt_image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(color=number))
    write_lines(tmp_path / "rows.jsonl", rows)
    return tmp_path


def truth(data: Path, number: int) -> Path:
    return data / bench_row(number)["gt_image"]


def source(data: Path, **changes: Any) -> PublishedRequests:
    settings = {"paths": (data / "rows.jsonl",), "split": {"validation_count": 6, "test_count": 6}, **changes}
    return PublishedRequests(PublishedRequests.Config.model_validate(settings), MemoryImages())


def members(requests: PublishedRequests) -> dict[str, set[str]]:
    return {part: set(ids) for part, ids in requests.record()["parts"].items()}


def test_rows_with_an_unusable_truth_are_left_out_with_their_reasons(data: Path) -> None:
    for number, (content, _) in enumerate(BAD.values()):
        truth(data, number).write_bytes(content)
    truth(data, 20).unlink()
    requests = source(data)
    assert requests.report.rejected == {
        RejectionReason.UNREADABLE_IMAGE: len(BAD),
        RejectionReason.MISSING_IMAGE: 1,
    }
    lines = [json.loads(line) for line in requests.report.json_lines().splitlines()]
    assert len(lines) == len(BAD) + 1
    assert {line["reason"] for line in lines} == {"unreadable_image", "missing_image"}
    assert any("Git LFS pointer" in line["detail"] and line["row"] == 1 for line in lines)
    assert "26 of 40 rows kept, 14 rejected: 13 unreadable_image (first: " in requests.report.line()


@pytest.mark.parametrize("split", [{"validation_count": 6, "test_count": 6}, {"validation": 0.2, "test": 0.2}])
def test_when_all_rows_are_rejected_the_message_has_reasons_and_counts(data: Path, split: dict[str, Any]) -> None:
    for number in range(40):
        truth(data, number).write_bytes(POINTER)
    with pytest.raises(DataError, match=r"(?s)40 rejected.*40|unreadable_image: 40") as caught:
        source(data, split=split)
    assert "Git LFS pointer" in str(caught.value) and "unreadable_image" in str(caught.value)


def test_a_judge_with_other_limits_decides_which_rows_are_usable(data: Path) -> None:
    truth(data, 3).write_bytes(encoded(size=(20, 20)))
    requests = source(data)
    assert "3" in set.union(*members(requests).values())
    requests.accept(PictureLimits(min_side=25))
    assert "3" not in set.union(*members(requests).values())
    assert requests.report.rejected == {RejectionReason.UNREADABLE_IMAGE: 1}


def test_a_truth_that_is_lost_later_costs_its_row_alone(data: Path) -> None:
    requests = source(data)
    before = [requests.train(index).id for index in range(len(requests))]
    again = source(data)
    lost = before[3]
    truth(data, int(lost)).unlink()
    after = [again.train(index).id for index in range(len(again))]
    assert lost not in after and [a for a in after if a != after[3]] == [b for b in before if b not in (lost, after[3])]
    assert abs(before.index(after[3]) - 3) > 8  # Not in the same step.
    assert again.train(3).id == after[3]
    [first, *rest] = [request.id for request in source(data).heldout(6)]
    truth(data, int(first)).unlink()
    fresh = source(data, check_images=True)
    assert first not in [request.id for request in fresh.heldout(6)] and rest


# --- a run that is resumed on changed rows -------------------------------------------------------------------------------


def resumed(data: Path, record: Any, **changes: Any) -> tuple[PublishedRequests, list[str]]:
    requests = source(data, **changes)
    return requests, requests.keep(json.loads(json.dumps(record)))


def test_unchanged_rows_stay_as_they_are(data: Path) -> None:
    first = source(data)
    again, notes = resumed(data, first.record())
    assert (members(again), notes) == (members(first), [])
    assert [again.train(index).id for index in range(70)] == [first.train(index).id for index in range(70)]


def test_added_rows_move_no_held_out_request_into_training(data: Path) -> None:
    first = source(data)
    write_lines(data / "rows.jsonl", [bench_row(number) for number in range(120)])
    for number in range(40, 120):
        truth(data, number).write_bytes(encoded(color=number))
    assert members(source(data)) != members(first)
    again, notes = resumed(data, first.record())
    assert members(again) == members(first)
    assert notes[0].startswith("80 rows that were added since this run began are left out (")
    assert any("stay in the part" in note for note in notes)
    assert [again.train(index).id for index in range(70)] == [first.train(index).id for index in range(70)]


@pytest.mark.parametrize("removed", [1, 20])
def test_rows_that_are_gone_are_refused_with_their_ids(data: Path, removed: int) -> None:
    record = source(data).record()
    write_lines(data / "rows.jsonl", [bench_row(number) for number in range(removed, 40)])
    with pytest.raises(DataError, match=rf"no longer those that it began with: {removed} gone \(.*start a new run"):
        resumed(data, record)


@pytest.mark.parametrize("change", ["request", "truth", "category"])
def test_a_row_with_other_content_is_refused(data: Path, change: str) -> None:
    record, rows = source(data).record(), [bench_row(number) for number in range(40)]
    if change == "truth":
        truth(data, 7).write_bytes(encoded(color=200))
    else:
        name = {"request": "question", "category": "difficulty"}[change]
        rows[7][name] = "something else"
        write_lines(data / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"1 changed \(7\)"):
        resumed(data, record)


def test_a_row_that_lost_its_truth_keeps_its_place(data: Path) -> None:
    first = source(data)
    lost = first.train(5).id
    record = first.record()
    truth(data, int(lost)).write_bytes(POINTER)
    again, notes = resumed(data, record)
    assert notes == [f"1 rows have lost their truth image and are replaced ({lost})"]
    ids = [again.train(index).id for index in range(len(again))]
    assert [a for i, a in enumerate(ids) if i != 5] == [first.train(i).id for i in range(len(first)) if i != 5]
    assert lost not in ids


def test_equal_ids_of_different_files_are_different_rows(data: Path) -> None:
    bench = [bench_row(number, id=str(number - 200)) for number in range(200, 206)]
    for row in bench:
        path = data / row["gt_image"]
        path.write_bytes(encoded(color=3))
    write_lines(data / "bench.jsonl", bench)
    changes = {"heldout_paths": (data / "bench.jsonl",), "split": {"validation_count": 6}}
    (data / bench[2]["gt_image"]).write_bytes(POINTER)
    requests = source(data, **changes)
    assert "2" in set.union(*members(requests).values()) and "heldout:2" not in members(requests)["test"]
    again, notes = resumed(data, requests.record(), **changes)
    assert (members(again), notes) == (members(requests), [])


def test_an_unusable_validation_row_is_still_no_request_to_train_on(data: Path) -> None:
    write_lines(data / "validation.jsonl", [bench_row(number) for number in (3, 4, 5)])
    truth(data, 3).write_bytes(POINTER)
    requests = source(data, validation_paths=(data / "validation.jsonl",), split={"test_count": 6})
    assert not {"3", "4", "5"} & members(requests)["train"]
