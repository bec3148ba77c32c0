"""Rows with pictures: tokens are those of the model's own processor, and pixels live as long as their batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_pictures import noise_file
from published_helpers import ANSWER, CALL, OBSERVATION, sft_row, write_lines
from seeing_rows import as_folder, as_parquet, pictured_rows
from transformers import AutoProcessor
from zoo import VISION, build

from genevolve_ray.agent.chat import load_tokenizer, parts_of
from genevolve_ray.data.sft_pictures import RowExamples, RowPictures
from genevolve_ray.data.sft_rows import RowEncoder, TokenizedRow
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.trajectories import SftRow, read_sft
from genevolve_ray.tools.showing import Observations


@pytest.fixture(scope="module", params=["qwen2.5-vl", "qwen3-vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3-vl", tmp_path_factory.mktemp("qwen3") / "model")


class Encoding:
    """An encoder with what it needs."""

    def __init__(self, folder: Path, **observations: Any) -> None:
        self.pictures = RowPictures(folder, Observations(**observations))
        self.encoder = RowEncoder(load_tokenizer(folder), pictures=self.pictures)
        self.report = RejectionReport()

    def rows(self, file: Path) -> list[TokenizedRow]:
        return list(self.encoder.encode_all(read_sft([file], self.report), self.report))


def processed(folder: Path, row: SftRow, pictures: list[Any]) -> Any:
    """Return what the model's own processor makes of a row."""
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    said = [{"role": m.role, "content": parts_of(m.content) if m.role == "user" else m.content} for m in row.messages]
    text = processor.apply_chat_template(said, tokenize=False).removesuffix("\n")
    return processor(text=[text], images=pictures, return_tensors="pt")


FIRST_SHOWS = (CALL, OBSERVATION, ANSWER)


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("asks", [True, False], ids=["a picture in the request", "none in the request"])
def test_tokens_and_pixels_are_those_of_the_models_own_processor(
    folder: Path, tmp_path: Path, system: bool, asks: bool
) -> None:
    """Several pictures in several turns; images of a file in the order of all placeholders."""
    rows, files = pictured_rows(1)
    if asks:
        rows[0]["messages"][1]["content"] = "like <image>, but red"
        rows[0]["images"].insert(0, "images/asked.png")
        files[0].insert(0, noise_file(99, (70, 50)))
    if not system:
        del rows[0]["messages"][0]
    file = as_folder(tmp_path, rows, files)
    [row], encoding = list(read_sft([file], RejectionReport())), Encoding(folder)
    [tokens] = encoding.rows(file)
    [example] = RowExamples(encoding.pictures, encoding.report).of([tokens])
    wanted = processed(folder, row, encoding.pictures.opened(row.pictures))
    assert list(example.tokens) == wanted["input_ids"][0].tolist()
    assert torch.equal(example.images.pixel_values, wanted["pixel_values"])  # type: ignore[attr-defined]
    assert torch.equal(example.images.grid_thw, wanted["image_grid_thw"])  # type: ignore[attr-defined]
    assert not any(
        m for t, m in zip(example.tokens, example.policy_mask, strict=True) if t == encoding.pictures.tokens.id
    )


def test_json_lines_and_parquet_give_the_same_rows(qwen3: Path, tmp_path: Path) -> None:
    rows, files = pictured_rows(5)
    encoding = Encoding(qwen3)
    lines, columns = (encoding.rows(write(tmp_path, rows, files)) for write in (as_folder, as_parquet))
    assert [row.tokens for row in lines] == [row.tokens for row in columns]
    examples = RowExamples(encoding.pictures, encoding.report)
    mixed = [2, 0, 4, 3, 1]
    for one, other in zip(*(examples.of([kind[i] for i in mixed]) for kind in (lines, columns)), strict=True):
        assert list(one.tokens) == list(other.tokens)
        assert torch.equal(one.images.pixel_values, other.images.pixel_values)  # type: ignore[attr-defined]


def test_pictures_are_scaled_as_the_profile_shows_them(qwen3: Path, tmp_path: Path) -> None:
    rows, files = pictured_rows(1, *FIRST_SHOWS)
    files[0][0] = noise_file(1, (400, 200))
    file = as_folder(tmp_path, rows, files)
    grids = [Encoding(qwen3, **limits).rows(file)[0].pictures[0].grid for limits in ({}, {"max_side": 128})]
    assert grids == [(1, 12, 24), (1, 4, 8)]
    [scaled] = Encoding(qwen3, max_pixels=128 * 64).rows(file)
    assert scaled.pictures[0].grid == (1, 4, 8)


def test_a_row_keeps_no_pixels(qwen3: Path, tmp_path: Path) -> None:
    rows, files = pictured_rows(3)
    encoding = Encoding(qwen3)
    made = encoding.rows(as_parquet(tmp_path, rows, files))
    held = {type(value) for row in made for picture in row.pictures for value in (picture.place, *picture.grid)}
    assert {kind.__name__ for kind in held} == {"PicturePlace", "int"}


def test_a_placeholder_of_the_assistant_stays_text_and_its_image_is_noted(qwen3: Path, tmp_path: Path) -> None:
    said = CALL.replace("look it up", "like <image>")
    rows, files = pictured_rows(1, said, OBSERVATION, ANSWER)
    encoding = Encoding(qwen3)
    [row] = encoding.rows(as_folder(tmp_path, rows, files))
    assert [picture.place.name for picture in row.pictures] == [rows[0]["images"][1]]
    assert encoding.report.noted == {RejectionReason.IMAGE_NOT_SHOWN: 1}
    assert "1 of 2 images" in encoding.report.examples(RejectionReason.IMAGE_NOT_SHOWN)[0].detail
    text = load_tokenizer(qwen3).encode("<image>", add_special_tokens=False)
    assert encoding.pictures.tokens.id not in text


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
@pytest.mark.parametrize("place", [2, 3])
def test_a_text_that_spells_a_token_of_pictures_is_rejected(
    qwen3: Path, tmp_path: Path, token: str, place: int
) -> None:
    rows, files = pictured_rows(1)
    rows[0]["messages"][place]["content"] = f"{token} " + rows[0]["messages"][place]["content"]
    encoding = Encoding(qwen3)
    assert encoding.rows(as_folder(tmp_path, rows, files)) == []
    assert encoding.report.rejected == {RejectionReason.CONTROL_TEXT: 1}


def test_image_tokens_count_towards_the_cutoff(qwen3: Path, tmp_path: Path) -> None:
    file = as_folder(tmp_path, *pictured_rows(1))
    encoding = Encoding(qwen3)
    [row] = read_sft([file], RejectionReport())
    encoded_row = encoding.encoder.encode(row)
    assert encoded_row.tokens.count(encoding.pictures.tokens.id) == 4 + 6 + 8
    size = len(encoded_row)
    with pytest.raises(RowFault, match=f"too_many_tokens: {size} tokens"):
        RowEncoder(load_tokenizer(qwen3), size - 1, encoding.pictures).encode(row)


def test_a_row_whose_picture_is_lost_during_training_is_left_out_once_and_named(
    qwen3: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, files = pictured_rows(4, *FIRST_SHOWS)
    file = as_folder(tmp_path, rows, files)
    encoding = Encoding(qwen3)
    made = encoding.rows(file)
    (tmp_path / rows[0]["images"][0]).unlink()
    (tmp_path / rows[1]["images"][0]).write_bytes(b"")
    (tmp_path / rows[2]["images"][0]).write_bytes(noise_file(1, (200, 200)))
    examples = RowExamples(encoding.pictures, encoding.report)
    with caplog.at_level(logging.WARNING):
        assert [len(examples.of(made)) for _ in range(2)] == [1, 1]
    assert encoding.report.rejected == {RejectionReason.MISSING_IMAGE: 1, RejectionReason.UNREADABLE_IMAGE: 2}
    assert encoding.report.kept == 1
    assert len(caplog.records) == 3
    assert f"{file}:2: unreadable_image: {rows[1]['images'][0]}: an empty file (during training)" in caplog.text
    assert "has another size than when it was read" in caplog.text


def test_a_model_that_does_not_see_or_has_no_processor_is_refused(qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images=vision, but the model does not see"):
        RowPictures(build("qwen3", tmp_path / "blind"), Observations())
    bare = build("qwen3-vl", tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no image processor"):
        RowPictures(bare, Observations())


def test_a_template_that_shows_no_pictures_is_refused(qwen3: Path) -> None:
    tokenizer = load_tokenizer(qwen3)
    tokenizer.chat_template = VISION.replace("<|image_pad|>", "")
    with pytest.raises(ValueError, match="shows 0 image tokens for 1 pictures"):
        RowEncoder(tokenizer, pictures=RowPictures(qwen3, Observations()))


def test_a_row_without_pictures_has_the_tokens_of_text(qwen3: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [sft_row(1, ANSWER)])
    [row] = read_sft([file], RejectionReport())
    encoding = Encoding(qwen3)
    [seen] = encoding.rows(file)
    assert seen.tokens == RowEncoder(load_tokenizer(qwen3)).encode(row).tokens and seen.pictures == ()
