"""Evaluated rows made up for the tests, and the formulas of KScore written again from their definition."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from genevolve_ray.records.published.results import EvaluatedRow

TYPES = ("Knowledge-Anchored", "Quality-Anchored")
WEIGHTS = {
    "faithfulness": Fraction(1, 10),
    "visual_correctness": Fraction(4, 10),
    "text_accuracy": Fraction(4, 10),
    "aesthetics": Fraction(1, 10),
}
grades = st.sampled_from([0.0, 0.5, 1.0])


def raw_row(number: int, scores: dict[str, Any] | None = None, success: bool = True, **fields: Any) -> dict[str, Any]:
    """Return a published evaluation row of a generator that was asked directly."""
    return {
        "id": str(number),
        "prompt": f"request {number}",
        "eval_type": TYPES[number % 2],
        "category": f"category_{number % 3}",
        "difficulty": ("medium", "hard")[number % 5 == 0],
        "output_path": f"images/{number}.png" if success else "",
        "success": success,
        "image_status": "ok" if success else "error: down",
        "eval_success": scores is not None,
        "error": None if scores is not None else "timeout",
        "scores": scores,
    } | fields


def scored(f: float, v: float, t: float | None, a: float) -> dict[str, Any]:
    """Return published scores; text None is a row without required text."""
    text = {"text_accuracy": 0.5, "text_accuracy_na": True} if t is None else {"text_accuracy": t}
    return {"rationale": "r", "faithfulness": f, "visual_correctness": v, **text, "aesthetics": a, "overall": -1}


def read(rows: list[dict[str, Any]]) -> list[EvaluatedRow]:
    """Return rows as the package reads them."""
    return [EvaluatedRow.read(row) for row in rows]


@st.composite
def raw_rows(draw: st.DrawFn, min_size: int = 1) -> list[dict[str, Any]]:
    """Rows that were scored, not scored, or not rendered."""
    rows = []
    for number in range(draw(st.integers(min_size, 12))):
        what = draw(st.sampled_from(["scored", "scored", "scored", "failed", "missing"]))
        scores = scored(draw(grades), draw(grades), draw(st.none() | grades), draw(grades))
        rows.append(raw_row(number, scores if what == "scored" else None, success=what != "missing"))
    return rows


def good(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores of the rows that have them, from the raw rows alone."""
    return [row["scores"] for row in rows if row["success"] and row["eval_success"]]


def _mean(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def overall_by_definition(formula: str, scores: list[dict[str, Any]]) -> float:
    """Return the KScore of published scores under a formula, in exact arithmetic."""
    rows = [
        {name: None if name == "text_accuracy" and s.get("text_accuracy_na") else Fraction(s[name]) for name in WEIGHTS}
        for s in scores
    ]
    if formula == "release-eval":
        total = Fraction(0)
        for name, weight in WEIGHTS.items():
            values = [row[name] for row in rows if row[name] is not None]
            total += weight * (_mean(values) if values else Fraction(1, 2))
        return float(total)
    each = []
    for row in rows:
        if formula == "paper":
            used = {name: weight for name, weight in WEIGHTS.items() if row[name] is not None}
            each.append(sum(w * row[n] for n, w in used.items()) / sum(used.values()))
        else:
            each.append(sum(w * (Fraction(1, 2) if row[n] is None else row[n]) for n, w in WEIGHTS.items()))
    return float(_mean(each))
