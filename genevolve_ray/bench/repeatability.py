"""Agreement of a judge with itself: the same rows judged several times, and the effect on a KScore.

Shape legend: N rows, R repeats, D KScore dimensions in the order of WEIGHTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.table import Table

from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.plugins import JudgeSpec
from genevolve_ray.judges.protocol import Judge
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.components import graded
from genevolve_ray.records.intervals import Interval, percentile_interval
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import NO_TEXT_VALUE, UNEXAMINED, WEIGHTS, ScoreFormula, Sufficiency, Verdict, kscore

Floats = NDArray[np.float64]
CHECKS = tuple(Sufficiency.model_fields)


class Agreement(Record):
    """Report how far repeats of one measure agree; figures are None where there is nothing to compare."""

    rows: int
    """Rows with at least two judgments."""
    exact: float | None
    """Share of pairs of repeats of a row that are equal; "no text required" equals only itself."""
    mean_difference: float | None
    """Mean absolute difference of such pairs, where both are numbers."""
    row_share: float | None
    """ICC(1): the share of a single judgment's variance that is between rows; the rest is the judge's own. It can be
    negative where a judge distinguishes rows worse than chance; None where nothing varies."""


class Repeatability(Record):
    """Report the agreement of repeated judgments of the same rows."""

    judges: tuple[str, ...]
    formula: ScoreFormula
    rows: int
    repeats: int
    """Most repeats of a row."""
    failure_rate: float
    """Share of judgments that gave no verdict."""
    lost_rows: int
    """Rows without any verdict; the figures below exclude them."""
    flagged_rate: float
    """Share of verdicts with a flag."""
    measures: dict[str, Agreement]
    """By KScore dimension, sufficiency check, `sufficiency` and `kscore`."""
    single: Interval | None
    """KScore of the rows, each judged once: the interval resamples rows, and which of its judgments counts."""
    averaged: Interval | None
    """The same where each row counts with the mean of its judgments."""
    judge_error: float | None
    """Standard error that the judge alone causes in the KScore of these rows, each judged once: the rows are fixed."""

    @property
    def widening(self) -> float | None:
        """Ratio of the widths of the single and the averaged interval; None without width."""
        if self.single is None or self.averaged is None or self.averaged.high <= self.averaged.low:
            return None
        return (self.single.high - self.single.low) / (self.averaged.high - self.averaged.low)


@dataclass(frozen=True)
class JudgedRow:
    """Hold the input of a judge for one row."""

    request: Request
    image: bytes
    truth: bytes
    program: Program
    references: tuple[ImageHit, ...] = ()


class RepeatabilityConfig(Config):
    """Configure the judge and its calls."""

    judge: JudgeSpec
    formula: ScoreFormula | None = None
    """Formula of the KScore; by default the verdicts' own."""
    concurrency: int = Field(default=8, ge=1)
    """Concurrent judgments."""
    seed: int = 0
    """Seed of the bootstrap."""


async def judge_repeatability_run(
    config: RepeatabilityConfig, rows: Sequence[JudgedRow], repeats: int
) -> Repeatability:
    """Build a judge, have it judge every row `repeats` times, and report. Raises as `repeat_judgements`."""
    judge = config.judge.build()
    try:
        verdicts = await repeat_judgements(judge, rows, repeats, concurrency=config.concurrency)
    finally:
        if (close := getattr(judge, "aclose", None)) is not None:
            await close()
    return repeatability(verdicts, formula=config.formula, seed=config.seed)


async def repeat_judgements(
    judge: Judge, rows: Sequence[JudgedRow], repeats: int, *, concurrency: int = 8
) -> list[list[Verdict | None]]:
    """Return N lists of R verdicts, None for a judgment that failed.

    A judge with a cache is called without it (`without_cache()`): a cache always agrees with itself. Repeats of a row
    are spread over the whole run, so that the drift of a judge becomes visible.

    Raises:
        ValueError: when `repeats` is below 2, or verdicts still came from a cache.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}")
    bare: Callable[[], Judge] | None = getattr(judge, "without_cache", None)
    asked = bare() if bare is not None else judge
    gate = asyncio.Semaphore(concurrency)

    async def one(row: JudgedRow) -> Verdict | None:
        async with gate:
            try:
                return graded(await asked.judge(row.request, row.image, row.truth, row.program, row.references))
            except InfraFailure:
                return None

    with metered() as meter:
        flat = await asyncio.gather(*(one(row) for _ in range(repeats) for row in rows))
    if meter.total.cached:
        raise ValueError(f"{meter.total.cached} verdicts of {judge.identity} came from a cache: disable it")
    return [flat[i :: len(rows)] for i in range(len(rows))]


def repeatability(
    verdicts: Sequence[Sequence[Verdict | None]],
    *,
    formula: ScoreFormula | None = None,
    seed: int = 0,
    samples: int = 2000,
) -> Repeatability:
    """Return how far repeated verdicts of the same rows agree.

    Args:
        verdicts: N rows of any number of judgments each; None for a failed one, which is missing and never 0.
        formula: of the KScore; by default the verdicts' own.
        seed: of the bootstrap.
        samples: number of bootstrap samples.

    Raises:
        ValueError: when there is no judgment at all, or when the verdicts have several formulas and `formula` is None.
    """
    attempts = [verdict for row in verdicts for verdict in row]
    given = [verdict for verdict in attempts if verdict is not None]
    if not attempts:
        raise ValueError(f"no judgment in {len(verdicts)} rows")
    formulas = sorted({verdict.formula for verdict in given})
    if formula is None and len(formulas) > 1:
        raise ValueError(f"verdicts are under {', '.join(formulas)}: name the formula")
    formula = formula or (formulas[0] if formulas else ScoreFormula.RELEASE_SUMMARY)
    kept = [[verdict for verdict in row if verdict is not None] for row in verdicts]
    measured = {
        name: agreement([[value(verdict) for verdict in row] for row in kept])
        for name, value in _measures(formula).items()
    }
    scored = [row for row in kept if row]
    single, averaged, error = _kscore_intervals(scored, formula, seed, samples) if scored else (None, None, None)
    return Repeatability(
        judges=tuple(sorted({verdict.judge for verdict in given})),
        formula=formula,
        rows=len(verdicts),
        repeats=max(len(row) for row in verdicts),
        failure_rate=1 - len(given) / len(attempts),
        lost_rows=len(verdicts) - len(scored),
        flagged_rate=sum(bool({*verdict.flags} - {UNEXAMINED}) for verdict in given) / max(1, len(given)),
        measures=measured,
        single=single,
        averaged=averaged,
        judge_error=error,
    )


def agreement(rows: Sequence[Sequence[float | None]]) -> Agreement:
    """Return how far repeats agree; rows with fewer than two values do not count."""
    repeated = [row for row in rows if len(row) > 1]
    # The mean over rows of the mean over a row's pairs: a row with more repeats weighs no more than another.
    equal = [float(np.mean([a == b for a, b in combinations(row, 2)])) for row in repeated]
    gaps = []
    for row in repeated:
        numbers = [value for value in row if value is not None]
        if len(numbers) > 1:
            gaps.append(float(np.mean([abs(a - b) for a, b in combinations(numbers, 2)])))
    return Agreement(
        rows=len(repeated),
        exact=float(np.mean(equal)) if equal else None,
        mean_difference=float(np.mean(gaps)) if gaps else None,
        row_share=_row_share([[v for v in row if v is not None] for row in repeated]),
    )


def _row_share(rows: Sequence[Sequence[float]]) -> float | None:
    """Return ICC(1) of a one-way random-effects layout with unequal rows (Shrout and Fleiss 1979, n0 for n)."""
    groups = [np.asarray(row, dtype=np.float64) for row in rows if len(row) > 1]
    if len(groups) < 2:
        return None
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    total, count = sizes.sum(), len(groups)
    grand = sum(float(group.sum()) for group in groups) / total
    between = sum(len(group) * float(group.mean() - grand) ** 2 for group in groups) / (count - 1)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (total - count)
    n0 = (total - float((sizes**2).sum()) / total) / (count - 1)
    spread = between + (n0 - 1) * within
    return float((between - within) / spread) if spread > 0 else None


def _measures(formula: ScoreFormula) -> Mapping[str, Callable[[Verdict], float | None]]:
    def scored(name: str) -> Callable[[Verdict], float | None]:
        return lambda verdict: getattr(verdict.image, name)

    def checked(name: str) -> Callable[[Verdict], float | None]:
        # A judge that gives one grade has a score and no checks.
        return lambda verdict: getattr(verdict.text, name, None) if verdict.examined else None

    dimensions = {name: scored(name) for name in WEIGHTS}
    checks = {name: checked(name) for name in CHECKS}
    return {
        **dimensions,
        "kscore": lambda verdict: kscore(verdict.image, formula),
        **checks,
        "sufficiency": checked("score"),
    }


def _kscore_intervals(
    rows: Sequence[Sequence[Verdict]], formula: ScoreFormula, seed: int, samples: int
) -> tuple[Interval, Interval, float | None]:
    """Return the KScore's interval with one judgment a row and with their mean, and the judge's own standard error."""
    longest = max(len(row) for row in rows)
    scores_N_R_D = np.full((len(rows), longest, len(WEIGHTS)), np.nan)
    for i, row in enumerate(rows):
        for j, verdict in enumerate(row):
            scores_N_R_D[i, j] = [np.nan if (v := getattr(verdict.image, n)) is None else v for n in WEIGHTS]
    counts_N = np.array([len(row) for row in rows])
    per_row = formula is not ScoreFormula.RELEASE_EVAL
    rng, everything = np.random.default_rng(seed), np.arange(len(rows))
    # With release-eval, dimensions are averaged first; a row's text is then its mean over the judgments that had text.
    means_N_D = np.stack([_nanmean(scores_N_R_D[i, : counts_N[i]]) for i in everything])
    values_N = [float(np.mean(_row_kscores(scores_N_R_D[i, : counts_N[i]], formula))) for i in everything]
    row_values_N = np.array(values_N)

    def mean_of(picked: NDArray[np.int64]) -> float:
        return float(row_values_N[picked].mean()) if per_row else _set_kscore(means_N_D[picked], formula)

    def drawn(picked: NDArray[np.int64]) -> Floats:
        return scores_N_R_D[picked, rng.integers(counts_N[picked])]

    once, mean, judge_alone = np.empty(samples), np.empty(samples), np.empty(samples)
    for i in range(samples):
        picked = rng.integers(len(rows), size=len(rows))
        once[i], mean[i] = _set_kscore(drawn(picked), formula), mean_of(picked)
        judge_alone[i] = _set_kscore(drawn(everything), formula)
    centre = mean_of(everything)
    # A draw from R judgments has (R - 1) / R of the judge's variance: correct that with the mean R over rows.
    repeats = float(np.mean(counts_N))
    error = float(judge_alone.std()) * float(np.sqrt(repeats / (repeats - 1))) if repeats > 1 else None
    return percentile_interval(centre, once), percentile_interval(centre, mean), error


def _nanmean(scores_R_D: Floats) -> Floats:
    """Return the mean of each column over its numbers, NaN for one without any."""
    there = ~np.isnan(scores_R_D)
    counts = there.sum(axis=0)
    return np.where(counts > 0, np.where(there, scores_R_D, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _row_kscores(scores_R_D: Floats, formula: ScoreFormula) -> Floats:
    """Return each row's KScore; the same as `records.verdict.kscore`."""
    weights = np.array(list(WEIGHTS.values()))
    if formula is ScoreFormula.PAPER:
        there = ~np.isnan(scores_R_D)
        return np.asarray(np.where(there, scores_R_D, 0) @ weights / (there @ weights))
    return np.asarray(np.where(np.isnan(scores_R_D), NO_TEXT_VALUE, scores_R_D) @ weights)


def _set_kscore(scores_M_D: Floats, formula: ScoreFormula) -> float:
    """Return the KScore of a set of rows; the same as `records.verdict.mean_kscore`."""
    if formula is not ScoreFormula.RELEASE_EVAL:
        return float(_row_kscores(scores_M_D, formula).mean())
    means_D = _nanmean(scores_M_D)
    return float(np.where(np.isnan(means_D), NO_TEXT_VALUE, means_D) @ np.array(list(WEIGHTS.values())))


def repeatability_table(report: Repeatability) -> Table:
    """Return a report for the terminal."""

    def shown(value: float | None, form: str = ".3f") -> str:
        return "–" if value is None else format(value, form)

    def told(interval: Interval | None) -> str:
        return "–" if interval is None else f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"

    caption = (
        f"{report.rows} rows x {report.repeats}; failed {report.failure_rate:.1%}, flagged {report.flagged_rate:.1%}, "
        f"rows without a verdict {report.lost_rows}\n"
        f"KScore ({report.formula.value}), each row judged once: {told(report.single)}\n"
        f"with the mean of its judgments: {told(report.averaged)}\n"
        f"widening {shown(report.widening, '.2f')}, judge alone ±{shown(report.judge_error, '.4f')} (standard error)"
    )
    table = Table(title=f"Repeatability of {', '.join(report.judges) or 'a judge'}", caption=caption)
    table.add_column("measure")
    for head in ("rows", "exact", "mean difference", "row share (ICC)"):
        table.add_column(head, justify="right")
    for name, found in report.measures.items():
        figures: list[Any] = [shown(found.exact), shown(found.mean_difference), shown(found.row_share)]
        table.add_row(name, str(found.rows), *figures)
    return table
