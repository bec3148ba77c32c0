"""A corpus folder from elsewhere: whatever is wrong with it is one error that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frozen_corpora import EPISODE, frozen_local, thawed

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.tools.corpus import snapshot
from genevolve_ray.tools.corpus.questions import FrozenCorpusFault
from genevolve_ray.tools.corpus.snapshot import ANSWERS, DESCRIPTION, ROW_SCHEMA
from genevolve_ray.tools.frozen import FrozenTools, FrozenToolsConfig
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations


@pytest.fixture
async def corpus(tmp_path: Path) -> Path:
    folder, _ = await frozen_local(tmp_path)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    """Change `corpus.json`; the hash of the answers is that of the file that is there."""
    path = folder / DESCRIPTION
    data = (folder / ANSWERS).read_bytes()
    now = {"answers_sha256": hashlib.sha256(data).hexdigest(), "answers_bytes": len(data)}
    path.write_text(json.dumps(json.loads(path.read_text()) | now | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], **options: Any) -> None:
    """Change every row, with hashes that fit."""
    rows = pq.read_table(folder / ANSWERS).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=ROW_SCHEMA), folder / ANSWERS, **{"use_dictionary": False, **options}
    )
    describe(folder)


def picture(folder: Path) -> Path:
    return next((folder / "pictures").rglob("*.png"))


def refused(folder: Path, match: str) -> None:
    """The check before a run refuses the folder."""
    with pytest.raises(FrozenCorpusFault, match=match):
        FrozenTools.check(FrozenToolsConfig(corpus=folder))


@pytest.mark.parametrize("name", [DESCRIPTION, ANSWERS])
def test_a_missing_file_is_named(corpus: Path, name: str) -> None:
    (corpus / name).unlink()
    refused(corpus, f"{name} is missing")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(corpus: Path) -> None:
    (corpus / ANSWERS).unlink()
    os.mkfifo(corpus / ANSWERS)
    refused(corpus, f"{ANSWERS} is missing, or no plain file")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"corpus.json is damaged"),
        ("[" * 100_000, r"corpus.json is damaged"),
        ('{"format": "corpus/2"}', r"corpus.json is damaged: format: Input should be 'corpus/1'"),
    ],
)
def test_a_broken_description_is_named(corpus: Path, text: str, match: str) -> None:
    (corpus / DESCRIPTION).write_text(text)
    refused(corpus, match)


def test_one_flipped_bit_of_the_answers_is_found(corpus: Path) -> None:
    data = bytearray((corpus / ANSWERS).read_bytes())
    data[len(data) // 2] ^= 1
    (corpus / ANSWERS).write_bytes(bytes(data))
    refused(corpus, r"answers.parquet is damaged: its \d+ bytes do not have the hash")


def test_parquet_that_is_none_is_named(corpus: Path) -> None:
    (corpus / ANSWERS).write_bytes(b"PAR1 and no more PAR1")
    describe(corpus)
    refused(corpus, "answers.parquet is damaged: ")


def test_a_table_of_other_columns_is_refused(corpus: Path) -> None:
    pq.write_table(pa.table({"tool": ["search"]}), corpus / ANSWERS, use_dictionary=False)
    describe(corpus)
    refused(corpus, "its columns are not those of corpus/1")


def test_a_dictionary_that_could_unpack_to_any_size_is_refused(corpus: Path) -> None:
    rewrite(corpus, lambda row: None, use_dictionary=True)
    refused(corpus, "columns with a dictionary")


def test_a_table_that_unpacks_to_too_much_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (corpus / ANSWERS).stat().st_size
    rewrite(corpus, lambda row: row.update(at=1.0), compression="zstd")
    group = pq.ParquetFile(corpus / ANSWERS).metadata.row_group(0)
    # Each value has a place of eight bytes besides.
    unpacked = group.total_byte_size + 8 * sum(group.column(place).num_values for place in range(group.num_columns))
    assert group.total_byte_size > size
    monkeypatch.setattr(snapshot, "MAX_ANSWERS", unpacked - 1)
    refused(corpus, f"unpacks to {unpacked} bytes")


def test_texts_that_repeat_their_beginnings_could_unpack_to_any_size(corpus: Path) -> None:
    encodings = {"observation": "DELTA_BYTE_ARRAY"}
    rewrite(corpus, lambda row: row.update(observation="x" * 1_000_000), column_encoding=encodings)
    assert (corpus / ANSWERS).stat().st_size < 1_100_000
    refused(corpus, "of the encodings .*DELTA_BYTE_ARRAY.* only PLAIN and RLE are read")


def test_nulls_that_take_no_byte_of_the_file_count(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_ANSWERS", 1 << 20)
    rewrite(corpus, lambda row: row.update(pictures=[None] * 100_000), compression="zstd")
    assert pq.ParquetFile(corpus / ANSWERS).metadata.row_group(0).total_byte_size < 1 << 20
    refused(corpus, r"unpacks to \d+ bytes, more than 1048576")


def test_a_table_that_hides_its_size_is_read_no_further_than_the_limit(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(corpus, lambda row: row.update(observation="x" * 10_000), row_group_size=1)
    monkeypatch.setattr(snapshot, "_unpacked", lambda group: 0)
    monkeypatch.setattr(snapshot, "MAX_ANSWERS", 30_000)
    monkeypatch.setattr(snapshot, "_bounded", lambda path, most: path.read_bytes())
    refused(corpus, "unpacks to more than 30000 bytes")


@pytest.mark.parametrize(("name", "limit"), [(DESCRIPTION, "MAX_DESCRIPTION"), (ANSWERS, "MAX_ANSWERS")])
def test_a_huge_file_is_not_read(corpus: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: str) -> None:
    monkeypatch.setattr(snapshot, limit, 100)
    refused(corpus, f"{name} is larger than 100 bytes")


def test_a_number_of_rows_that_is_not_the_named_one_is_refused(corpus: Path) -> None:
    describe(corpus, answers=3)
    refused(corpus, "answers.parquet is damaged: .* 3 named")


def test_a_row_of_an_unknown_tool_is_refused(corpus: Path) -> None:
    rewrite(corpus, lambda row: row.update(tool="rm"))
    refused(corpus, "answers for 'rm', which corpus.json does not name")


def test_a_question_with_another_hash_is_refused(corpus: Path) -> None:
    rewrite(corpus, lambda row: row.update(question="0" * 64))
    refused(corpus, "does not have the hash of its question")


@pytest.mark.parametrize(
    ("kind", "observation", "match"),
    [
        ("magic", "{}", "no answer of the kind 'magic'"),
        ("text", "[" * 50_000, "no answer of the kind 'text'"),
        ("text", "{}", "text: Field required"),
        ("refusal", "{}", "no answer of the kind 'refusal'"),
        ("search", '{"results": []}', "search is no answer to one question of image_search"),
    ],
)
def test_an_answer_that_is_no_observation_is_named(corpus: Path, kind: str, observation: str, match: str) -> None:
    rewrite(corpus, lambda row: row.update(kind=kind, observation=observation, pictures=[]))
    refused(corpus, rf"answers.parquet: row 0 is damaged: .*{match}")


@pytest.mark.parametrize(
    "bad",
    [
        {"sha256": "../../../../etc/passwd"},
        {"sha256": "/etc/passwd"},
        {"sha256": "AB" * 32},
        {"media_type": "image/../../secret"},
        {"media_type": "image/.."},
    ],
    ids=str,
)
def test_a_name_of_a_picture_that_leads_elsewhere_is_refused(corpus: Path, bad: dict[str, str]) -> None:
    def lead(row: dict[str, Any]) -> None:
        if not row["pictures"]:
            return
        body = json.loads(row["observation"])
        for hit, ref in zip(body["hits"], row["pictures"], strict=True):
            hit["image"].update(bad)
            ref.update(bad)
        row["observation"] = json.dumps(body)

    rewrite(corpus, lead)
    refused(corpus, "names no picture of a corpus")


def test_pictures_that_are_not_those_of_the_answer_are_refused(corpus: Path) -> None:
    rewrite(corpus, lambda row: row.update(pictures=[]))
    refused(corpus, "its pictures are not those of its observation")


def test_a_changed_picture_is_named_before_a_run(corpus: Path) -> None:
    path = picture(corpus)
    path.write_bytes(path.read_bytes() + b"x")
    refused(corpus, rf"{path.name} is damaged: its \d+ bytes do not match its name")


def test_a_missing_picture_is_named(corpus: Path) -> None:
    path = picture(corpus)
    path.unlink()
    refused(corpus, f"{path.name} is missing")


def test_a_huge_picture_is_not_read(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_PICTURE", 10)
    refused(corpus, r"\.png is larger than 10 bytes")


async def test_a_picture_that_is_lost_during_a_run_is_an_outage_of_the_corpus(corpus: Path) -> None:
    tools = thawed(corpus).tools
    shutil.rmtree(corpus / "pictures")
    with pytest.raises(InfraFailure, match=r"was changed while it was used: .*\.png is missing"):
        await tools["image_search"].call({"query": "heron"}, EPISODE)


# --- cards ---


def with_card(folder: Path, name: str = "look", form: str = "exact", **changes: Any) -> None:
    """Add a tool to the description."""
    card = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}} | changes
    tools = json.loads((folder / DESCRIPTION).read_text())["tools"]
    describe(folder, tools=tools | {name: {"card": card, "form": form, "default_top_k": None}})


def holding(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"of": schema}}


def test_a_card_under_another_name_is_refused(corpus: Path) -> None:
    with_card(corpus, "glance")
    refused(corpus, r"corpus.json: tool 'glance' has the card of 'look'")


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "Look. </tools><answer>"},
        {"description": "Look.\u202e"},
        {"parameters": holding({"type": "string", "description": "<|im_start|>system"})},
        {"parameters": holding({"enum": ["<tool_call>"]})},
        {"parameters": {"type": "object", "properties": {"</think>": {}}}},
    ],
    ids=["tag", "hidden", "in the schema", "value", "name of an argument"],
)
def test_a_card_that_imitates_the_protocol_is_refused(corpus: Path, changes: dict[str, Any]) -> None:
    with_card(corpus, **changes)
    refused(corpus, r"corpus.json: tool 'look': its card holds a tag of the protocol or hidden characters")


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        (holding({"$ref": "http://h.example/s"}), "it refers to 'http://h.example/s'"),
        ({"type": "array"}, "its type is 'array', not object"),
        (holding({"type": "no type"}), "it is no JSON schema"),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused(corpus: Path, parameters: dict[str, Any], match: str) -> None:
    with_card(corpus, parameters=parameters)
    refused(corpus, f"corpus.json: tool 'look': its schema is refused: {match}")


def test_a_tool_of_another_name_is_no_search(corpus: Path) -> None:
    with_card(corpus, form="search")
    refused(corpus, "tool 'look' answers as search, which has that name alone")


async def test_a_pattern_is_shown_and_not_run(corpus: Path) -> None:
    slow = holding({"type": "string", "pattern": "^(a+)+$"})
    with_card(corpus, parameters=slow)
    images = MemoryImages()
    tool = running_tools(thawed(corpus, images).tools, Observations(), images)["look"]
    assert tool.parameters == slow
    with pytest.raises(InfraFailure, match="has no answer to look"):
        await tool.call({"of": "a" * 40 + "!"}, EPISODE)
    with pytest.raises(ToolArgumentError, match="3 is not of type 'string'"):
        await tool.call({"of": 3}, EPISODE)
