"""The check for leaks: one of each kind is planted in a published folder and found, and a clean folder passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from published_samples import FACTS, case, parts, talk
from rows_to_compare import encoded, photo, words
from typer.testing import CliRunner

from genevolve_ray.cli import app
from genevolve_ray.data.build.leaks import LeakCheckConfig, LeakReport, check_leaks
from genevolve_ray.data.build.overlaps import OverlapKind
from genevolve_ray.data.build.publishing import CaseSample, DataPart, publish
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.rejections import DataError

LONG = words("long", 40)


class MeanColor:
    """Embed a picture by its mean color about gray, as a stand-in for a model."""

    Config = Config
    identity = "mean-color"

    def __init__(self, config: Config | None = None) -> None:
        """Take no settings."""

    async def embed(self, pictures: Sequence[bytes]) -> NDArray[np.float32]:
        """Return a direction for each picture."""
        import io

        means = [np.asarray(Image.open(io.BytesIO(data)).resize((4, 4)), dtype=np.float32).ravel() for data in pictures]
        rows = np.array([mean - mean.mean() for mean in means], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Synonyms:
    """Embed a text by the first letter of its words, so that texts may be near without a common word."""

    identity = "synonyms"

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a direction for each text."""
        rows = np.zeros((len(texts), 26), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[ord(word[0]) % 26] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(images: MemoryImages, leak: CaseSample, other: CaseSample | None = None) -> list[DataPart]:
    """Return a clean data set with one more row in the benchmark, and one in the training rows."""
    found = {part.name: list(part.rows) for part in parts(images)}
    found["bench/test"].append(leak)  # type: ignore[arg-type]
    found["rl/train"] += [other] if other else []  # type: ignore[list-item]
    return [DataPart(name, rows) for name, rows in found.items()]  # type: ignore[arg-type]


async def checked(folder: Path, made: Sequence[DataPart], images: MemoryImages, **options: Any) -> LeakReport:
    publish(folder / "set", made, FACTS, images)
    embedder = options.pop("embedder", HashingEmbedder())
    return await check_leaks(folder / "set", options.pop("config", LeakCheckConfig()), embedder, **options)


def only(report: LeakReport) -> tuple[set[str], set[OverlapKind]]:
    """Return the ids and the kinds of the only leak."""
    [leak] = report.leaks
    assert report.total == 1 and not report.clean
    return {leak.first.id, leak.second.id}, set(leak.values)


async def test_a_clean_data_set_passes(tmp_path: Path) -> None:
    images = MemoryImages()
    report = await checked(tmp_path, parts(images), images, pictures=MeanColor(), config=LeakCheckConfig())
    near = [leak for leak in report.leaks if set(leak.values) != {OverlapKind.NEAR_PICTURE}]
    assert near == []  # Mean colors say little; they are no model.
    report = await check_leaks(tmp_path / "set", LeakCheckConfig(), HashingEmbedder())
    assert report.clean and report.leaks == () and report.counts == {}
    assert {name: part.rows for name, part in report.parts.items()} == {
        "bench/test": 3, "rl/train": 6, "rl/validation": 1, "sft/train": 5, "sft/validation": 1,
    }  # fmt: skip
    assert report.parts["sft/train"].pictures == 10 and report.parts["bench/test"].pictures == 3


async def test_the_same_request_is_found_in_a_conversation(tmp_path: Path) -> None:
    images = MemoryImages()
    text = talk(images, 2).messages[1].content
    report = await checked(tmp_path, planted(images, case(images, 90, f" {text.upper()} ")), images)
    ids, kinds = only(report)
    assert ids == {"case-90", "talk-002"} and OverlapKind.SAME_TEXT in kinds


async def test_a_changed_request_is_found_by_its_shingles(tmp_path: Path) -> None:
    images = MemoryImages()
    one, other = case(images, 90, LONG), case(images, 91, f"Please draw this: {LONG.replace(LONG.split()[7], 'red')}.")
    ids, kinds = only(await checked(tmp_path, planted(images, one, other), images))
    assert ids == {"case-90", "case-91"} and kinds == {OverlapKind.NEAR_TEXT, OverlapKind.PARAPHRASE}


async def test_words_in_another_order_are_found_by_the_embedder_alone(tmp_path: Path) -> None:
    images = MemoryImages()
    one, other = case(images, 90, "big cat at dusk"), case(images, 91, "bold cougar around daybreak")
    report = await checked(tmp_path, planted(images, one, other), images, embedder=Synonyms())
    pair = next(leak for leak in report.leaks if {leak.first.id, leak.second.id} == {"case-90", "case-91"})
    assert set(pair.values) == {OverlapKind.PARAPHRASE} and pair.values[OverlapKind.PARAPHRASE] == 1
    assert (await check_leaks(tmp_path / "set", LeakCheckConfig(), HashingEmbedder())).clean


async def test_a_shared_entity_is_found_in_requests_and_conversations(tmp_path: Path) -> None:
    images = MemoryImages()
    leak = case(images, 90)
    leak = replace(leak, request=leak.request.model_copy(update={"meta": {"entity": "WHEEL  4"}}))
    assert only(await checked(tmp_path, planted(images, leak), images)) == (
        {"case-90", "talk-004"},
        {OverlapKind.ENTITY},
    )


@pytest.mark.parametrize(("width", "quality"), [(96, 60), (300, 90), (48, 75), (200, 40)], ids=lambda value: str(value))
async def test_a_resized_and_compressed_picture_is_found(tmp_path: Path, width: int, quality: int) -> None:
    images = MemoryImages()
    copy = encoded(photo("truth 12", 96).resize((width, width)), "JPEG", quality=quality)
    leak = case(images, 90)
    truth = images.put(copy, width=width, height=width, media_type="image/jpeg")
    leak = replace(leak, request=leak.request.model_copy(update={"truth_image": truth}))
    ids, kinds = only(await checked(tmp_path, planted(images, leak), images))
    assert ids == {"case-90", "case-12"} and kinds == {OverlapKind.PICTURE}


async def test_a_truth_that_a_conversation_shows_is_found(tmp_path: Path) -> None:
    images = MemoryImages()
    shown = talk(images, 3).pictures[1]
    leak = case(images, 90)
    leak = replace(leak, request=leak.request.model_copy(update={"truth_image": shown}))
    assert only(await checked(tmp_path, planted(images, leak), images)) == (
        {"case-90", "talk-003"},
        {OverlapKind.PICTURE},
    )


async def test_a_picture_that_its_hash_does_not_know_is_found_by_an_embedder(tmp_path: Path) -> None:
    images = MemoryImages()
    changed = ImageEnhance.Contrast(photo("truth 12", 96)).enhance(0.6).crop((4, 4, 92, 92)).rotate(4, expand=False)
    truth = images.put(encoded(changed, "JPEG"), width=88, height=88, media_type="image/jpeg")
    leak = case(images, 90)
    leak = replace(leak, request=leak.request.model_copy(update={"truth_image": truth}))
    report = await checked(tmp_path, planted(images, leak), images, pictures=MeanColor())
    ids = [{one.first.id, one.second.id} for one in report.leaks]
    assert {"case-90", "case-12"} in ids
    assert report.picture_embedder == "mean-color"


async def test_parts_are_compared_with_another_data_set_and_that_is_not_compared_with_itself(tmp_path: Path) -> None:
    images = MemoryImages()
    text = "draw the mill of the delta at noon"
    publish(tmp_path / "own", [DataPart("rl/train", [case(images, 1, text), case(images, 2)])], FACTS, images)
    twice = [DataPart("bench/test", [case(images, 3, text)]), DataPart("bench/more", [case(images, 4, text)])]
    publish(tmp_path / "other", twice, FACTS, images)
    report = await check_leaks(tmp_path / "own", LeakCheckConfig(), HashingEmbedder(), against=tmp_path / "other")
    assert [(leak.first.part, leak.second.part) for leak in report.leaks] == [
        ("rl/train", "against:bench/more"),
        ("rl/train", "against:bench/test"),
    ]
    file = tmp_path / "other/bench/test.parquet"
    report = await check_leaks(tmp_path / "own", LeakCheckConfig(), HashingEmbedder(), against=file)
    assert [leak.second.part for leak in report.leaks] == ["against:test"]


async def test_rows_and_pictures_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": words("a"), "gt_image": "images/none.jpg"}, {"id": "b"}]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "two.jsonl").write_text(json.dumps({"id": "c", "prompt": words("c")}))
    report = await check_leaks(tmp_path, LeakCheckConfig(), HashingEmbedder())
    one = report.parts["one"]
    assert (one.rows, one.rejected, one.pictures, one.unreadable_pictures) == (1, 1, 0, 1)
    assert report.parts["two"].rows == 1


async def test_a_search_with_very_many_pairs_ends_early_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        rows = [{"id": f"{name}-{number}", "prompt": words(str(number))} for number in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert not (whole := await check_leaks(tmp_path, LeakCheckConfig(), HashingEmbedder())).cut and whole.total == 9
    monkeypatch.setattr("genevolve_ray.data.build.leaks._MOST", 4)
    report = await check_leaks(tmp_path, LeakCheckConfig(listed=2), HashingEmbedder())
    assert (report.cut, report.total, len(report.leaks), report.clean) == (True, 4, 2, False)


async def test_one_part_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": "c", "prompt": "x"}))
    with pytest.raises(DataError, match="has one part, one"):
        await check_leaks(tmp_path, LeakCheckConfig(), HashingEmbedder())
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        (tmp_path / "empty").mkdir()
        await check_leaks(tmp_path / "empty", LeakCheckConfig(), HashingEmbedder())


def test_the_command_reports_pairs_and_ends_with_1(tmp_path: Path) -> None:
    images = MemoryImages()
    publish(tmp_path / "set", planted(images, case(images, 90, LONG), case(images, 91, LONG)), FACTS, images)
    line = ["data", "leaks", str(tmp_path / "set"), "--json", str(tmp_path / "leaks.json")]
    answer = CliRunner().invoke(app, line)
    assert answer.exit_code == 1
    assert "bench/test:4 case-90" in answer.output and "same text 1" in answer.output
    found = json.loads((tmp_path / "leaks.json").read_text())
    assert (found["clean"], found["total"], found["counts"]["same_text"]) == (False, 1, 1)
    assert found["leaks"][0]["second"] == {"part": "rl/train", "id": "case-91", "number": 7}


def test_the_command_ends_with_0_on_a_clean_data_set_and_takes_an_embedder(tmp_path: Path) -> None:
    images = MemoryImages()
    publish(tmp_path / "set", parts(images), FACTS, images)
    line = ["data", "leaks", str(tmp_path / "set")]
    assert (answer := CliRunner().invoke(app, line)).exit_code == 0
    assert "no leaks" in answer.output
    seen = [*line, "--set", "picture_embedder.type=test_build_leaks:MeanColor", "--set", "limits.picture_cosine=0.9999"]
    answer = CliRunner().invoke(app, seen)
    assert answer.exit_code == 0 and "mean-color" in answer.output


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("limits.picture_bits=65", "limits.picture_bits"),
        ("picture_embedder.type=nowhere:Class", "'nowhere:Class' cannot be loaded"),
        ("embedder.kind=endpoint", "needs url and model"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path: Path, setting: str, message: str) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": "c", "prompt": "x"}))
    answer = CliRunner().invoke(app, ["data", "leaks", str(tmp_path), "--set", setting])
    assert answer.exit_code != 0 and message in str(answer.exception)
