"""`genevolve data build small`: rows of the cold start, and requests, through the stages of the data pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_world import world_tools_for
from typer.testing import CliRunner

from genevolve_ray.cli.entry import app
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.requests import read_rl
from genevolve_ray.records.published.trajectories import read_sft
from genevolve_ray.small.data_build import says
from genevolve_ray.small.factbook import Country
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.requests import divide_world

pytestmark = pytest.mark.slow
RECIPES, PART = 40, "validation"


@pytest.fixture(scope="module")
def built(
    library: PictureLibrary,
    countries: list[Country],
    factbook: Path,
    minilm: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished build; its renderer repeats the reference, as no renderer is trained here."""
    root = tmp_path_factory.mktemp("small")
    world_tools_for([], library, countries, root / "corpus", pictures=_pictures(library, countries))
    given = {"factbook": str(factbook), "pictures": str(library.folder), "part": PART}
    settings = {
        "tools.config": {"folder": str(root / "corpus"), "cache": None, "top_k": 3, "embedder": None},
        "experience.embedder": {"kind": "transformers", "transformers": {"model": str(minilm), "pooling": "mean"}},
        "data.entities.source.config": given,
        "data.writer.config": given,
        "data.truth_grader.config": given,
        "data.truth_thresholds": {"least": {"reference_use": 5}},
        "renderer": {"type": "small_world:ReferencePainter", "config": {}},
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    out = root / "build"
    arguments = ["data", "build", "small", "--recipes", str(RECIPES), "--out", str(out), "--in-process", *sets]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    return out


def _pictures(library: PictureLibrary, countries: Sequence[Country]) -> set[str]:
    part = divide_world(library, countries, 1)[PART]
    return {library.flags[country.iso].id for country in part.countries} | {subject.id for subject in part.rare}


def test_the_parts_hold_rows_about_the_entities_of_one_part(
    built: Path, library: PictureLibrary, countries: list[Country]
) -> None:
    report = RejectionReport()
    rows = list(read_sft([built / "dataset" / "sft" / "train.jsonl"], report))
    posed = list(read_rl([built / "dataset" / "rl" / "train.jsonl"], report))
    assert rows and posed and not report.rejected
    part = divide_world(library, countries, 1)[PART]
    allowed = {country.iso for country in part.countries} | {subject.id for subject in part.rare}
    assert {row.request().meta["entity"] for row in posed} <= allowed


@pytest.mark.parametrize(
    ("prompt", "words", "exactly", "said"),
    [
        ("An elephant in front of the flag.", "ant", False, False),
        ("An ant in front of the flag.", "ant", False, True),
        ("Three cats on a red background.", "cat", False, False),
        ("A colored cat.", "red", False, False),
        ("A cat in front of the flag.", "IN", True, False),
        ("A cat in front of the flag, with the letters IN below.", "IN", True, True),
    ],
)
def test_a_prompt_says_whole_words(prompt: str, words: str, exactly: bool, said: bool) -> None:
    assert says(prompt, words, exactly=exactly) is said


def test_an_answer_without_its_search_is_rejected(built: Path) -> None:
    rejected = [json.loads(line) for line in (built / "rejected.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rejected if row["stage"] == "trajectories"} <= {"no_text_search"}
    told = json.loads((built / "summary.json").read_text())["yields"]["prompts"]
    assert re.search(rf"\b{RECIPES}\b", json.dumps(told))
