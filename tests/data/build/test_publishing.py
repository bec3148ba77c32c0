"""Published folders: our readers take every row, `datasets` loads them, and the same rows give the same bytes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from published_samples import ANSWER, FACTS, case, parts, talk

from genevolve_ray.data.build.publishing import (
    ConversationSample,
    DataPart,
    PublishConfig,
    PublishedFolder,
    PublishFault,
    data_hash,
    publish,
    verify,
)
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.requests import read_bench, read_rl
from genevolve_ray.records.published.row_pictures import RowPictureReader
from genevolve_ray.records.published.rows import ReadConfig
from genevolve_ray.records.published.trajectories import Message, SftReadConfig, read_sft

NAMES = {"sft/train": 5, "sft/validation": 1, "rl/train": 6, "rl/validation": 1, "bench/test": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PublishedFolder:
    images = MemoryImages()
    return publish(tmp_path_factory.mktemp("sets") / "mills", parts(images), FACTS, images)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_conversation_is_read_with_its_pictures(made: PublishedFolder, suffix: str) -> None:
    report = RejectionReport()
    rows = list(read_sft([made.path / f"sft/train.{suffix}"], report, SftReadConfig(check_images=True)))
    assert (len(rows), report.rejected.total(), report.noted.total()) == (5, 0, 0)
    assert rows[3].images == ("images/traj_00003/IMG_001.jpg", "images/traj_00003/IMG_002.jpg")
    images = MemoryImages()
    asked = talk(images, 3)
    with RowPictureReader(1 << 20) as reader:
        assert [reader.read(place) for place in rows[3].pictures] == [images.get(ref) for ref in asked.pictures]
    assert rows[3].messages == asked.messages


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_case_is_read_with_its_truth_and_its_facts(made: PublishedFolder, suffix: str) -> None:
    report = RejectionReport()
    rows = list(read_bench([made.path / f"bench/test.{suffix}"], report, ReadConfig(check_images=True)))
    rows += read_rl([made.path / f"rl/train.{suffix}"], report, ReadConfig(check_images=True))
    assert (len(rows), report.rejected.total(), report.noted.total()) == (9, 0, 0)
    asked = case(MemoryImages(), 1)
    read = rows[1]
    assert (read.id, read.prompt, read.pool_index) == ("case-1", asked.request.prompt, 1)
    assert (read.eval_type, read.category, read.difficulty) == (asked.request.eval_type, "city_street_scene", "hard")
    assert (read.truth, read.primary_skills, read.secondary_skills) == ("images/case_00001.jpg", ("text",), ("layout",))
    assert read.meta == asked.request.meta
    assert read.truth_file.read_bytes()[:3] == b"\xff\xd8\xff"


def test_the_bench_states_bundle_and_challenge_and_the_other_cases_do_not(made: PublishedFolder) -> None:
    bench = json.loads((made.path / "bench/test.jsonl").read_text().splitlines()[0])
    assert (bench["skill_bundle"], bench["skill_challenge"]) == (["text", "layout"], "hard text")
    other = json.loads((made.path / "rl/train.jsonl").read_text().splitlines()[0])
    assert "skill_bundle" not in other and "skill_challenge" not in other


def test_the_summary_holds_what_was_counted_and_what_the_pipeline_passed(made: PublishedFolder) -> None:
    summary = json.loads((made.path / "summary.json").read_text())
    assert summary == made.summary
    assert {name: part["rows"] for name, part in summary["parts"].items()} == NAMES
    assert summary["parts"]["sft/train"]["pictures"] == 10
    assert summary["yields"]["audit"] == {"in": 40, "out": 10}
    assert (summary["marginals"], summary["leaks"], summary["splits"]) == (FACTS.marginals, FACTS.leaks, FACTS.splits)
    assert summary["output_hash"] == data_hash(made.path)


def test_rows_in_another_order_give_the_same_bytes(made: PublishedFolder, tmp_path: Path) -> None:
    images = MemoryImages()
    shuffled = [replace(part, rows=random.Random(1).sample(part.rows, len(part.rows))) for part in parts(images)]
    publish(tmp_path / "again", shuffled, FACTS, images)
    names = sorted(path.relative_to(made.path) for path in made.path.rglob("*"))
    assert names == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*"))
    for name in names:
        if (made.path / name).is_file():
            assert (made.path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_another_picture_changes_the_hash(made: PublishedFolder, tmp_path: Path) -> None:
    images = MemoryImages()
    other = [*parts(images)[:4], DataPart("bench/test", [case(images, number) for number in (0, 1, 3)])]
    assert publish(tmp_path / "other", other, FACTS, images).output_hash != made.output_hash


def test_the_library_datasets_loads_every_part_by_the_card(
    made: PublishedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    found = {}
    for config in ("sft", "rl", "bench"):
        loaded = datasets.load_dataset(str(made.path), config, cache_dir=str(tmp_path))
        found |= {f"{config}/{split}": rows for split, rows in loaded.items()}
    assert {name: len(rows) for name, rows in found.items()} == NAMES
    shown = found["sft/train"][0]
    assert [image.size for image in shown["images"]] == [(96, 96), (96, 96)]
    assert shown["messages"][-1] == {"role": "assistant", "content": ANSWER}
    assert found["bench/test"][2]["gt_image"] == "images/case_00002.jpg"
    assert json.loads(found["bench/test"][2]["meta"]) == {"entities": ["mill 2"], "facts": {"sails": 2}}


def test_parquet_has_row_groups_of_at_most_a_hundred_rows(tmp_path: Path) -> None:
    images = MemoryImages()
    rows = [talk(images, number, pictures=0) for number in range(250)]
    publish(tmp_path / "many", [DataPart("sft/train", rows)], FACTS, images)
    file = pq.ParquetFile(tmp_path / "many/sft/train.parquet")
    assert [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)] == [100, 100, 50]


def test_rows_without_their_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    images = MemoryImages()
    broken = images.put(b"no picture", width=9, height=9)
    missing = ImageRef(sha256="0" * 64, width=9, height=9)
    good = [case(images, number) for number in range(4)]
    faults = {1: broken, 2: missing, 3: None}
    rows = [
        replace(row, request=row.request.model_copy(update={"truth_image": faults[row.pool_index]}))
        if row.pool_index in faults
        else row
        for row in good
    ]
    made = publish(tmp_path / "set", [DataPart("bench/test", rows)], FACTS, images)
    assert made.summary["parts"]["bench/test"]["rows"] == 1
    assert made.summary["left_out"]["rejected"] == {"unreadable_image": 1, "missing_image": 1, "missing_truth": 1}
    assert made.left_out.kept == 1
    assert "missing\\_truth" in (tmp_path / "set/README.md").read_text()


@pytest.mark.parametrize("value", [b"bytes", "\ud800", {"deep": {"er": "\udfff"}}])
def test_values_that_no_file_can_hold_cost_their_row_alone(tmp_path: Path, value: object) -> None:
    images = MemoryImages()
    rows = [case(images, 1), replace(case(images, 2), extra_info={"value": value})]
    made = publish(tmp_path / "set", [DataPart("rl/train", rows)], FACTS, images)
    assert made.summary["parts"]["rl/train"]["rows"] == 1
    assert made.left_out.rejected.total() == 1


def test_pictures_keep_their_format_where_that_is_wanted(tmp_path: Path) -> None:
    images = MemoryImages()
    rows = [case(images, 1, kind="png"), case(images, 2, kind="jpg")]
    publish(tmp_path / "set", [DataPart("rl/train", rows)], FACTS, images, PublishConfig(pictures="stored"))
    written = sorted((tmp_path / "set/rl/images").iterdir())
    assert [path.name for path in written] == ["case_00001.png", "case_00002.jpg"]
    assert written[0].read_bytes() == images.get(rows[0].request.truth_image)  # type: ignore[arg-type]


def test_a_row_that_a_reader_rejects_stops_everything_and_leaves_nothing(tmp_path: Path) -> None:
    images = MemoryImages()
    bad = ConversationSample("bad", (Message(role="user", content="x"), Message(role="assistant", content="no answer")))
    with pytest.raises(PublishFault, match=r"sft/train: 1 of 2 rows kept, 1 rejected: 1 no_answer"):
        publish(tmp_path / "set", [DataPart("sft/train", [talk(images, 1), bad])], FACTS, images)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = MemoryImages()
    first = publish(tmp_path / "set", [DataPart("rl/train", [case(images, 1)])], FACTS, images)
    monkeypatch.setattr("genevolve_ray.data.build.publishing.card_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(tmp_path / "set", [DataPart("rl/train", [case(images, 2)])], FACTS, images, overwrite=True)
    assert data_hash(tmp_path / "set") == first.output_hash
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_only_a_data_set_is_replaced_and_only_when_that_is_asked(tmp_path: Path) -> None:
    images = MemoryImages()
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    one, two = [DataPart("rl/train", [case(images, number)]) for number in (1, 2)]
    publish(own, [one], FACTS, images)
    with pytest.raises(DataError, match="holds a data set"):
        publish(own, [two], FACTS, images)
    replaced = publish(own, [two], FACTS, images, overwrite=True)
    assert verify(own) == {"rl/train": 1} and data_hash(own) == replaced.output_hash
    assert not (own / "rl/images/case_00001.jpg").exists()
    with pytest.raises(DataError, match="holds other files"):
        publish(foreign, [one], FACTS, images, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "own"]


@pytest.mark.parametrize(
    ("names", "numbers", "message"),
    [
        (("rl/train", "rl/train"), (1, 2), "'rl/train' is given twice"),
        (("../rl", "rl/train"), (1, 2), r"part '\.\./rl'"),
        (("rl/train", "bench/test"), (1, 1), "1 values of id are those of several rows, 'case-1' among them"),
    ],
)
def test_parts_that_cannot_be_told_from_each_other_are_refused(
    tmp_path: Path, names: tuple[str, str], numbers: tuple[int, int], message: str
) -> None:
    images = MemoryImages()
    asked = [DataPart(name, [case(images, number)]) for name, number in zip(names, numbers, strict=True)]
    with pytest.raises(PublishFault, match=message):
        publish(tmp_path / "set", asked, FACTS, images)


def test_a_configuration_holds_one_kind_of_row(tmp_path: Path) -> None:
    images = MemoryImages()
    asked = [DataPart("rl/train", [case(images, 1)]), DataPart("rl/test", [talk(images, 1)])]
    with pytest.raises(PublishFault, match="the parts of 'rl' hold conversations and cases"):
        publish(tmp_path / "set", asked, FACTS, images)


def test_a_tampered_parquet_file_is_noticed(tmp_path: Path) -> None:
    images = MemoryImages()
    made = publish(tmp_path / "set", [DataPart("rl/train", [case(images, 1), case(images, 2)])], FACTS, images)
    table = pq.read_table(made.path / "rl/train.parquet")
    pq.write_table(table.slice(0, 1), made.path / "rl/train.parquet")
    with pytest.raises(PublishFault, match="rl/train: the Parquet file holds 1 other rows than the 2 JSON lines"):
        verify(made.path)
