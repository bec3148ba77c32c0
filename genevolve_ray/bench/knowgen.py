"""KnowGen, Gen-Searcher's benchmark: KScore over two groups of categories; the overall score is the mean of the two.

Rows are those of `results.json`; the category is `meta.category`, as KnowGen's evaluator reads it, or else a field of the
row. The judge and its dimensions are those of KScore.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genevolve_ray.bench.scoring import MEASURES, SplitScores, Summary, published_values, rounded, summarise
from genevolve_ray.records.base import Record
from genevolve_ray.records.published.aliases import facet, meta_of
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import ScoreFormula

SCIENCE, POPULAR = "science_and_knowledge", "pop_culture_and_news"
GROUPS = {
    SCIENCE: frozenset(
        "astronomy biology chemistry physics engineering medicine industry architecture history geography religion politics"
        " culture art sports".split()
    ),
    POPULAR: frozenset(
        "anime game film celebrities posters multi-subject-anime multi-subject-celebrities multi-subject-game news".split()
    ),
}


class KnowGenSummary(Record):
    """Summarize KnowGen's scores under one formula (its own evaluator uses release-eval).

    `overall` is the mean of the groups' overall scores, None unless both have one. `rows` is the summary over all rows.
    `uncategorised` lists the cases of neither group, which count in `rows` alone.
    """

    formula: ScoreFormula
    groups: dict[str, SplitScores]
    overall: float | None
    overall_missing_zero: float | None
    rows: Summary
    uncategorised: tuple[str, ...] = ()


def group_of(category: str) -> str | None:
    """Return the group of a category, None for one that is in neither."""
    return next((name for name, members in GROUPS.items() if category.strip().lower() in members), None)


def row_group(row: ResultRow) -> str | None:
    """Return the group of a row's category, None for one of neither group."""
    return group_of(facet({}, meta_of(row.values), "category")) or group_of(row.category)


def summarise_knowgen(
    rows: Sequence[EvaluatedRow],
    formula: ScoreFormula = ScoreFormula.RELEASE_EVAL,
    *,
    eval_json: str = "",
    expected: Sequence[ResultRow] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> KnowGenSummary:
    """Return KnowGen's scores; arguments and errors are those of `summarise`."""
    cases: Sequence[ResultRow] = rows if expected is None else expected
    members = {name: [case for case in cases if row_group(case) == name] for name in GROUPS}
    groups = {
        name: summarise(rows, formula, expected=part, samples=samples, seed=seed).all for name, part in members.items()
    }
    means = [split.overall for split in groups.values()]
    zeros = [split.overall_missing_zero for split in groups.values()]
    return KnowGenSummary(
        formula=formula,
        groups=groups,
        overall=_mean(means),
        overall_missing_zero=_mean(zeros),
        rows=summarise(rows, formula, eval_json=eval_json, expected=expected, samples=samples, seed=seed),
        uncategorised=tuple(case.case_id for case in cases if row_group(case) is None),
    )


def is_knowgen(rows: Sequence[ResultRow]) -> bool:
    """Return whether every row has a category of KnowGen, so that it can be scored by its two groups."""
    return bool(rows) and all(row_group(row) for row in rows)


def knowgen_rows(found: KnowGenSummary) -> list[dict[str, Any]]:
    """Return the averages that KnowGen's evaluator appends to its file: each group, and the mean of the two."""
    figures = {name: published_values(split, found.formula) for name, split in found.groups.items()}
    means = {name: rounded(_mean([values[name] for values in figures.values()])) for name in MEASURES}
    counts = {name: split.count_eval_success for name, split in found.groups.items()}
    listed = [(name, values, counts[name]) for name, values in figures.items()]
    return [
        {
            "summary_type": name,
            "avg_scores": {measure: values[measure] for measure in MEASURES},
            "count": count,
            PROVENANCE: {"formula": found.formula.value},
        }
        for name, values, count in [*listed, ("overall_avg", means, sum(counts.values()))]
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
