"""`genevolve samples`: the files are in the published shapes, and our readers and the published rules read every row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genevolve_ray.agent.profile import PROFILES, system_prompt
from genevolve_ray.atlas.sources import AtlasTools, WorldConfig
from genevolve_ray.bench.knowgen import group_of
from genevolve_ray.bench.wise import CATEGORIES, Edition, category_ids, read_prompts
from genevolve_ray.commands.samples import write_samples
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.requests import read_bench, read_rl
from genevolve_ray.records.published.results import read_results
from genevolve_ray.records.published.trajectories import read_sft

ROWS = (
    "requests.jsonl",
    "bench.jsonl",
    "rl.jsonl",
    "validation.jsonl",
    "sft.jsonl",
    "knowgen.json",
    "wise.json",
    "wise.yaml",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("samples") / "rows"
    assert [path.name for path in write_samples(made)] == ["README.md", *ROWS]
    return made


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def test_every_row_is_read_and_none_is_rejected(folder: Path) -> None:
    report = RejectionReport()
    bench = list(read_bench([folder / "bench.jsonl"], report))
    train, validation = (list(read_rl([folder / name], report)) for name in ("rl.jsonl", "validation.jsonl"))
    requests, knowgen = (
        list(read_results([folder / name], ResultRow, report)) for name in ("requests.jsonl", "knowgen.json")
    )
    sft = list(read_sft([folder / "sft.jsonl"], report))
    prompts = read_prompts([folder / "wise.json"], report)
    assert not report.rejected, report.text()
    assert [len(rows) for rows in (bench, train, validation, requests, knowgen, sft)] == [12] * 6 and len(prompts) == 7
    posed = [*bench, *train, *validation]
    assert len({row.key for row in posed}) == len({row.pool_index for row in posed}) == 36
    assert {row.eval_type.value for row in bench} == {"Knowledge-Anchored", "Quality-Anchored"}
    assert all(row.primary_skills for row in (*bench, *train))


@pytest.mark.parametrize("name", ["bench.jsonl", "rl.jsonl", "validation.jsonl", "knowgen.json"])
def test_a_published_program_finds_request_truth_and_type(name: str, folder: Path) -> None:
    """Its rules: an id, `prompt` as text, `gt_image` from the folder of the file, the type, and KnowGen's category in meta."""
    for row in rows_of(folder / name):
        assert isinstance(row["id"], str) and row["prompt"].strip()
        with Image.open(folder / row["gt_image"]) as picture:
            assert picture.size == (128, 128)
        assert row["gt_image"] == f"images/case_{row['prompt_pool_index']:05d}.png"
        assert row["eval_type"] in ("Knowledge-Anchored", "Quality-Anchored")
        assert (group_of(row["meta"].get("category", "")) is not None) == (name == "knowgen.json")


def test_wise_prompts_are_of_the_category_of_their_id(folder: Path) -> None:
    named = {(row["prompt_id"], row["Category"]) for row in rows_of(folder / "wise.json")}
    for edition in Edition:
        assert all(number in category_ids(category, edition) for number, category in named)
    assert {category for _, category in named} == set(CATEGORIES)


def test_sft_rows_have_the_system_prompt_of_a_run(folder: Path) -> None:
    tools = AtlasTools(WorldConfig(), MemoryImages()).tools
    for row in rows_of(folder / "sft.jsonl"):
        assert row["messages"][0] == {"role": "system", "content": system_prompt(PROFILES["atlas"], tools)}
        assert row["images"] == [] and "<image>" not in json.dumps(row["messages"])
        assert "<answer>" in row["messages"][-1]["content"]


def test_the_tools_of_the_atlas_know_every_request(folder: Path) -> None:
    tools = AtlasTools(WorldConfig(), MemoryImages())
    for name in ("requests.jsonl", "bench.jsonl", "rl.jsonl", "validation.jsonl"):
        assert all(tools.of(ResultRow.read(row).request()) for row in rows_of(folder / name))


def test_a_second_call_writes_the_same_and_keeps_what_the_user_changed(
    genevolve: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert genevolve("samples", folder).code == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    (tmp_path / "bench.jsonl").write_text("mine", encoding="utf-8")
    refused = genevolve("samples", tmp_path)
    assert refused.code == 2 and "bench.jsonl exists with other content" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["bench.jsonl"]
