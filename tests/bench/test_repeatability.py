"""Agreement of a judge with itself, against values derived by hand; failures are missing and never 0."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from genevolve_ray.bench.repeatability import (
    JudgedRow,
    RepeatabilityConfig,
    _row_kscores,
    _set_kscore,
    agreement,
    judge_repeatability_run,
    repeat_judgements,
    repeatability,
    repeatability_table,
)
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.plugins import JudgeSpec
from genevolve_ray.records.base import Config
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.records.verdict import WEIGHTS, ImageScores, ScoreFormula, Sufficiency, Verdict, kscore, mean_kscore

SUMMARY, EVAL, PAPER = ScoreFormula.RELEASE_SUMMARY, ScoreFormula.RELEASE_EVAL, ScoreFormula.PAPER


def verdict(
    grade: float, text: float | None = 1, formula: ScoreFormula = SUMMARY, flags: tuple[str, ...] = ()
) -> Verdict:
    return Verdict(
        image=ImageScores(faithfulness=grade, visual_correctness=grade, text_accuracy=text, aesthetics=1),
        text=Sufficiency(facts=grade > 0.4, reference_binding=True, skill_knowledge=True, executable_constraints=True),
        judge="j",
        formula=formula,
        flags=flags,
    )


def test_agreement_of_three_rows_is_what_it_is_by_hand() -> None:
    found = agreement([[0, 0, 1], [1, 1], [0.5]])
    assert found.rows == 2
    assert found.exact == pytest.approx((1 / 3 + 1) / 2)
    assert found.mean_difference == pytest.approx((2 / 3 + 0) / 2)
    # Between: 3 (1/3 - 3/5)^2 + 2 (1 - 3/5)^2 over 1; within: 2/3 over 3; n0 = 5 - 13/5.
    between, within, n0 = 3 * (1 / 3 - 0.6) ** 2 + 2 * 0.4**2, (2 / 3) / 3, 5 - 13 / 5
    assert found.row_share == pytest.approx((between - within) / (between + (n0 - 1) * within))


def test_a_judge_that_repeats_itself_agrees_in_all() -> None:
    found = agreement([[0, 0], [1, 1], [0.5, 0.5]])
    assert (found.exact, found.mean_difference, found.row_share) == (1, 0, 1)


def test_a_judge_that_rolls_dice_has_no_share() -> None:
    rng = np.random.default_rng(0)
    found = agreement(rng.choice([0, 0.5, 1], size=(2000, 4)).tolist())
    assert found.row_share is not None and abs(found.row_share) < 0.03
    assert found.exact == pytest.approx(1 / 3, abs=0.02)


def test_no_text_asked_equals_only_itself_and_is_no_number() -> None:
    found = agreement([[None, None], [None, 1.0], [0.5, 1.0]])
    assert (found.rows, found.exact, found.mean_difference) == (3, pytest.approx(1 / 3), 0.5)


@pytest.mark.parametrize("rows", [[], [[1.0]], [[], [0.5]]])
def test_what_was_judged_once_says_nothing(rows: list[list[float]]) -> None:
    found = agreement(rows)
    assert (found.rows, found.exact, found.mean_difference, found.row_share) == (0, None, None, None)


def test_failures_are_counted_and_in_no_mean() -> None:
    report = repeatability([[verdict(1), None], [verdict(1), verdict(1)], [None, None]])
    assert (report.failure_rate, report.lost_rows, report.rows, report.repeats) == (0.5, 1, 3, 2)
    assert report.measures["faithfulness"].rows == 1
    assert report.single is not None and report.single.mean == 1
    gone = repeatability([[None], [None]])
    assert (gone.failure_rate, gone.single, gone.averaged, gone.judge_error) == (1, None, None, None)


def test_the_judges_own_error_is_that_of_a_mean_over_rows() -> None:
    """Each row is 0 or 1 in two dimensions of weight .5 together, by the toss of a coin: sd .25 over sqrt(rows)."""
    rng = np.random.default_rng(1)
    rows, repeats = 100, 40
    verdicts = [[verdict(float(g)) for g in row] for row in rng.integers(2, size=(rows, repeats))]
    report = repeatability(verdicts, samples=4000)
    assert report.judge_error == pytest.approx(0.25 / math.sqrt(rows), rel=0.1)
    assert report.widening is not None and report.widening > 3
    assert report.single is not None and report.single.low < report.single.mean < report.single.high


def test_with_two_repeats_the_error_is_put_right() -> None:
    rng = np.random.default_rng(2)
    verdicts = [[verdict(float(g)) for g in row] for row in rng.integers(2, size=(800, 2))]
    assert repeatability(verdicts, samples=3000).judge_error == pytest.approx(0.25 / math.sqrt(800), rel=0.15)


def test_a_steady_judge_widens_nothing() -> None:
    report = repeatability([[verdict(g)] * 3 for g in (0, 0.5, 1, 1)])
    assert (report.judge_error, report.widening) == (0, pytest.approx(1, abs=0.15))
    assert repeatability([[verdict(1)] * 2] * 3).widening is None


def test_the_report_is_the_same_for_the_same_seed() -> None:
    verdicts = [[verdict(0), verdict(1)], [verdict(0.5), verdict(0.5)]]
    assert repeatability(verdicts, seed=3) == repeatability(verdicts, seed=3)


def test_formulas_are_not_mixed() -> None:
    mixed = [[verdict(1), verdict(1, formula=PAPER)]]
    with pytest.raises(ValueError, match="name the formula"):
        repeatability(mixed)
    assert repeatability(mixed, formula=PAPER).formula is PAPER
    with pytest.raises(ValueError, match="no judgment in 1 rows"):
        repeatability([[]])


def test_flags_are_counted() -> None:
    assert repeatability([[verdict(1, flags=("salvaged",)), verdict(1)]]).flagged_rate == 0.5


unit = st.sampled_from([0.0, 0.5, 1.0])
image_scores = st.builds(
    ImageScores, faithfulness=unit, visual_correctness=unit, text_accuracy=st.none() | unit, aesthetics=unit
)


@given(st.lists(image_scores, min_size=1, max_size=6), st.sampled_from(ScoreFormula))
def test_kscores_are_those_of_the_records(scores: list[ImageScores], formula: ScoreFormula) -> None:
    array = np.array([[math.nan if (v := getattr(s, n)) is None else v for n in WEIGHTS] for s in scores])
    assert _row_kscores(array, formula) == pytest.approx([kscore(s, formula) for s in scores])
    assert _set_kscore(array, formula) == pytest.approx(mean_kscore(scores, formula))


@pytest.mark.parametrize("formula", ScoreFormula)
def test_every_formula_has_its_interval(formula: ScoreFormula) -> None:
    rows = [
        [verdict(1, None, formula), verdict(0.5, None, formula)],
        [verdict(0, 0.5, formula), verdict(0, 0.5, formula)],
    ]
    report = repeatability(rows)
    assert report.averaged is not None and report.averaged.low <= report.averaged.mean <= report.averaged.high


# --- over the Judge protocol ---


class MoodyJudge:
    """Gives each row grade 1 and 0 in turn, and fails the row named `broken`."""

    Config = Config
    identity = "moody/1"

    def __init__(self, _: Any = None) -> None:
        self.asked: list[str] = []
        self.on_the_way = self.most = 0

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        self.on_the_way += 1
        self.most = max(self.most, self.on_the_way)
        await asyncio.sleep(0)
        self.on_the_way -= 1
        if request.id == "broken":
            raise InfraFailure("down")
        self.asked.append(request.id)
        return verdict(float(self.asked.count(request.id) % 2))


class CachedJudge(MoodyJudge):
    """Answers from a cache, unless it is asked not to."""

    async def judge(self, *args: Any) -> Verdict:
        record_usage("judge", Usage(cached=1))
        return verdict(1)


class FrankJudge(CachedJudge):
    """Can be asked without its cache."""

    def without_cache(self) -> MoodyJudge:
        return MoodyJudge()


def row(name: str) -> JudgedRow:
    request = Request(id=name, prompt="x", eval_type=EvalType.QUALITY)
    return JudgedRow(request, b"image", b"truth", Program(gen_prompt="p", reference_images=()))


async def test_rows_are_judged_again_and_again_and_failures_stay_missing() -> None:
    judge = MoodyJudge()
    verdicts = await repeat_judgements(judge, [row("a"), row("broken"), row("b")], 4, concurrency=2)
    assert [[v and v.image.faithfulness for v in each] for each in verdicts] == [[1, 0, 1, 0], [None] * 4, [1, 0, 1, 0]]
    assert judge.most == 2
    assert judge.asked[:2] == ["a", "b"]


async def test_a_cache_is_stepped_around_or_found_out() -> None:
    verdicts = await repeat_judgements(FrankJudge(), [row("a")], 2)
    assert [v and v.image.faithfulness for v in verdicts[0]] == [1, 0]
    with pytest.raises(ValueError, match="2 verdicts of moody/1 came from a cache"):
        await repeat_judgements(CachedJudge(), [row("a")], 2)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        await repeat_judgements(MoodyJudge(), [row("a")], 1)


async def test_a_run_reports_on_a_configured_judge() -> None:
    config = RepeatabilityConfig(judge=JudgeSpec(type=f"{__name__}:MoodyJudge"))
    report = await judge_repeatability_run(config, [row("a"), row("b"), row("broken")], 2)
    assert (report.judges, report.failure_rate, report.lost_rows) == (("j",), pytest.approx(1 / 3), 1)
    assert report.measures["faithfulness"].exact == 0
    assert report.measures["aesthetics"].exact == 1


def test_a_table_says_it_all() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(repeatability_table(repeatability([[verdict(1), verdict(0.5)], [verdict(0), None]])))
    told = console.export_text()
    for part in (*WEIGHTS, "kscore", "sufficiency", "failed 25.0%", "release-summary", "judge alone"):
        assert part in told
    console.print(repeatability_table(repeatability([[None]])))
    assert "rows without a verdict 1" in console.export_text()
