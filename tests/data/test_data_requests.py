"""Published rows as a run's requests: one order whatever the files' order, no leak, pictures when they are needed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from published_helpers import bench_row, write_lines
from pydantic import ValidationError

from genevolve_ray.data.requests import PublishedRequests, store_image
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.rejections import DataError, RejectionReason


def picture(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (colour % 256, 0, 0)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with 60 training rows, 6 validation rows and 5 bench rows, two of which are training rows too."""
    rows = [bench_row(number) for number in range(71)]
    for number, row in enumerate(rows):
        picture(tmp_path / row["gt_image"], number)
    write_lines(tmp_path / "train.jsonl", rows[:60])
    write_lines(tmp_path / "validation.jsonl", [*rows[60:66], rows[3]])
    write_lines(
        tmp_path / "bench.jsonl", [*rows[66:], rows[1], bench_row(70, id="b", question="a lighthouse with 2 WINDOWS")]
    )
    return tmp_path


def source(data: Path, images: MemoryImages | None = None, **config: Any) -> PublishedRequests:
    settings = {
        "paths": [str(data / "train.jsonl")],
        "validation_paths": [str(data / "validation.jsonl")],
        "heldout_paths": [str(data / "bench.jsonl")],
    } | config
    settings = {name: value for name, value in settings.items() if value is not None}
    spec = PluginSpec(type="genevolve_ray.data.requests:PublishedRequests", config=settings)
    built = spec.build(images or MemoryImages())
    assert isinstance(built, PublishedRequests)
    return built


def epoch(requests: PublishedRequests, number: int) -> list[str]:
    size = len(requests)
    return [requests.train(number * size + place).id for place in range(size)]


def test_no_held_out_request_is_trained_on(data: Path) -> None:
    requests = source(data)
    # Rows 1 and 2 are on the bench (the second by its text alone), row 3 is for validation.
    assert sorted(map(int, epoch(requests, 0))) == [0, *range(4, 60)]
    assert {r.id for r in requests.validation(99)} == {"60", "61", "62", "63", "64", "65", "3"}
    assert {r.id for r in requests.heldout(99)} == {"66", "67", "68", "69", "70", "1", "b"}
    assert requests.report.rejected == {RejectionReason.HELD_OUT_INDEX: 2, RejectionReason.HELD_OUT_REQUEST: 1}


def test_further_files_can_be_excluded(data: Path) -> None:
    write_lines(data / "more.jsonl", [bench_row(10)])
    assert "10" not in epoch(source(data, exclude_paths=[str(data / "more.jsonl")]), 0)


def test_an_index_is_always_the_same_request_whatever_the_order_of_the_file(data: Path) -> None:
    first = source(data)
    lines = (data / "train.jsonl").read_bytes().splitlines()
    write_lines(data / "train.jsonl", lines[::-1])
    again = source(data)
    assert [first.train(index).id for index in (150, 3, 80)] == [again.train(index).id for index in (150, 3, 80)]
    assert [r.id for r in first.heldout(4)] == [r.id for r in again.heldout(7)][:4]


def test_every_epoch_holds_every_request_once_in_an_order_of_its_own(data: Path) -> None:
    requests = source(data)
    epochs = [epoch(requests, number) for number in range(4)]
    assert all(sorted(ids) == sorted(epochs[0]) for ids in epochs)
    assert len({tuple(ids) for ids in epochs}) == 4
    assert epoch(source(data, seed=2), 0) != epochs[0]


def test_a_request_does_not_come_again_at_the_start_of_the_next_epoch(data: Path) -> None:
    requests = source(data)
    apart = len(requests) // 3
    for number in range(30):
        assert not set(epoch(requests, number)[-apart:]) & set(epoch(requests, number + 1)[:apart])


def test_parts_can_be_split_off_the_training_rows(data: Path) -> None:
    counts = {"validation_count": 9, "test_count": 11}
    requests = source(data, validation_paths=None, heldout_paths=None, split=counts)
    parts = [set(epoch(requests, 0)), {r.id for r in requests.validation(99)}, {r.id for r in requests.heldout(99)}]
    assert [len(part) for part in parts] == [40, 9, 11]
    assert len(set.union(*parts)) == 60


def test_pictures_enter_the_store_when_a_request_is_asked_for(data: Path) -> None:
    images = MemoryImages()
    requests = source(data, images)
    assert images._data == {}
    request = requests.train(5)
    assert request.truth_image is not None
    assert (request.truth_image.width, request.truth_image.height, request.truth_image.media_type) == (
        4,
        3,
        "image/png",
    )
    assert images.get(request.truth_image) == (data / bench_row(int(request.id))["gt_image"]).read_bytes()
    assert requests.train(5) == request
    assert len(images._data) == 1


def test_rows_without_a_picture_are_left_out_or_stop_the_run_that_needs_them(data: Path) -> None:
    for number in range(4, 58):
        (data / bench_row(number)["gt_image"]).unlink()
    requests = source(data)
    assert sorted(epoch(requests, 0)) == ["0", "58", "59"]
    assert requests.report.rejected[RejectionReason.MISSING_IMAGE] == 54
    with pytest.raises(DataError, match=r"case_000\d\d\.jpg: cannot be used as an image"):
        epoch(source(data, check_images=False), 0)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a\.png: cannot be used as an image"):
        store_image(tmp_path / "a.png", MemoryImages())


def test_a_part_without_rows_is_an_error_before_the_run(data: Path) -> None:
    write_lines(data / "validation.jsonl", [b"{"])
    with pytest.raises(DataError, match=r"(?s)no validation requests left in .*not_json: 1"):
        source(data)


def test_counts_beyond_the_rows_are_an_error(data: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: test_count=50 and validation_count=30 of 60"):
        source(data, validation_paths=None, heldout_paths=None, split={"validation_count": 30, "test_count": 50})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_paths": None}, "validation requests come from .*: neither is given"),
        ({"heldout_paths": None}, "heldout requests come from .*: neither is given"),
        ({"split": {"test": 0.1}}, "heldout requests come from .*: both are given"),
        ({"paths": []}, "paths"),
        ({"path": "x"}, "path"),
    ],
)
def test_settings_that_cannot_work_are_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(data, **changes)


def test_the_check_before_a_run_reads_everything(data: Path) -> None:
    config = PublishedRequests.Config(
        paths=(data / "gone.jsonl",),
        validation_paths=(data / "validation.jsonl",),
        heldout_paths=(data / "bench.jsonl",),
    )
    with pytest.raises(DataError, match=r"gone\.jsonl: does not exist"):
        PublishedRequests.check(config)
