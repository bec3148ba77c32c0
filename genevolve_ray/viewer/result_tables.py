"""Tables of a results page, from the summary that a command wrote, or from the rows where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.verdict import WEIGHTS
from genevolve_ray.viewer.figures import number
from genevolve_ray.viewer.scale import Mark, Scale

_SPLITS = (("by_eval_type", "Type"), ("by_category", "Category"), ("by_difficulty", "Difficulty"))
_VERDICTS = "verdicts"
"""Entry of a row's provenance with the components of several judges."""

Scored = tuple[ResultRow, float | None]


@dataclass(frozen=True)
class ScoreSplit:
    """Hold the scores of some rows; `mark` is on the scale from `ends[0]` to `ends[1]` that all splits share."""

    name: str
    rows: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    dimensions: tuple[float | None, ...] = ()
    mark: Mark | None = None
    ends: tuple[float, float] = (0.0, 1.0)


def score_interval(summary: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Return the overall score of a summary and its interval, None for what it does not state."""
    every = _mapping(summary.get("all"))
    mean = number(every.get("overall", summary.get("overall")))
    interval = summary.get("interval")
    bounds = _mapping(interval) if isinstance(interval, Mapping) else _intervals(summary, "all").get("overall")
    return mean, *_ends(bounds)


def splits(summary: Mapping[str, Any], rows: Sequence[Scored]) -> list[tuple[str, list[ScoreSplit]]]:
    """Return (label, splits) by type, category and difficulty; labels with a single split are left out."""
    tables = [(label, _of_summary(summary, key)) for key, label in _SPLITS]
    if wise := _of_wise(summary):
        tables = [("Category", wise)]
    elif not any(table for _, table in tables):
        tables = _of_rows(rows) if any(score is not None for _, score in rows) else []
    tables = [(label, table) for label, table in tables if len(table) > 1]
    reach = [v for _, table in tables for one in table for v in (one.mean, one.low, one.high) if v is not None]
    scale = Scale.around(reach)
    return [(label, [_marked(one, scale) for one in table]) for label, table in tables]


def components_of_rows(rows: Sequence[ResultRow]) -> list[tuple[str, int, float, float, float]]:
    """Return (judge.component, rows, mean, lowest, highest) of rows that several judges examined."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for judge, verdict in _mapping(row.provenance.get(_VERDICTS)).items():
            for name, part in _mapping(_mapping(verdict).get("components")).items():
                if (value := number(_mapping(part).get("value"))) is not None:
                    found.setdefault(f"{judge}.{name}", []).append(value)
    return [(name, len(v), sum(v) / len(v), min(v), max(v)) for name, v in found.items()]


def made_by(rows: Sequence[ResultRow], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, values) of the makers of rows: what the summary states, else what the rows do."""
    stated = _mapping(_mapping(summary.get(PROVENANCE)).get("made_by"))
    if not stated:
        kinds = ("profile", "renderer", "judge", "edition", "formula")
        stated = {k: sorted({str(v) for row in rows if (v := row.provenance.get(k)) is not None}) for k in kinds}
    rows_of = {str(kind): ", ".join(map(str, values)) for kind, values in stated.items() if isinstance(values, list)}
    by_formula = _mapping(_mapping(summary.get(PROVENANCE)).get("overall_by_formula"))
    told = {f"score by the formula {name}": str(value) for name, value in by_formula.items() if value is not None}
    return [(name, value) for name, value in {**rows_of, **told}.items() if value]


def _of_summary(summary: Mapping[str, Any], key: str) -> list[ScoreSplit]:
    intervals = _intervals(summary, key)
    found = []
    for name, values in _mapping(summary.get(key)).items():
        values = _mapping(values)
        low, high = _ends(_mapping(intervals.get(name)).get("overall"))
        found.append(
            ScoreSplit(
                name=str(name),
                rows=_count(values, "denominator"),
                scored=_count(values, "count_eval_success"),
                mean=number(values.get("overall")),
                low=low,
                high=high,
                dimensions=tuple(number(values.get(dimension)) for dimension in WEIGHTS),
            )
        )
    return found


def _of_wise(summary: Mapping[str, Any]) -> list[ScoreSplit]:
    return [
        ScoreSplit(str(name), _count(one, "denominator"), _count(one, "count"), number(one.get("mean")), None, None)
        for name, one in ((name, _mapping(value)) for name, value in _mapping(summary.get("categories")).items())
    ]


def _of_rows(rows: Sequence[Scored]) -> list[tuple[str, list[ScoreSplit]]]:
    tables = []
    for key, label in _SPLITS:
        parts: dict[str, list[float | None]] = {}
        for row, score in rows:
            if kind := str(getattr(row, key.removeprefix("by_"))):
                parts.setdefault(kind, []).append(score)
        table = []
        for name, values in sorted(parts.items()):
            known = [v for v in values if v is not None]
            mean = sum(known) / len(known) if known else None
            table.append(ScoreSplit(name, len(values), len(known), mean, None, None))
        tables.append((label, table))
    return tables


def _marked(one: ScoreSplit, scale: Scale) -> ScoreSplit:
    mark = scale.mark(one.mean, one.low, one.high)
    return ScoreSplit(**{**vars(one), "mark": mark, "ends": scale.inner()})


def _intervals(summary: Mapping[str, Any], key: str) -> Mapping[Any, Any]:
    return _mapping(_mapping(_mapping(summary.get(PROVENANCE)).get("intervals")).get(key))


def _ends(bounds: object) -> tuple[float | None, float | None]:
    if isinstance(bounds, Mapping):
        return number(bounds.get("low")), number(bounds.get("high"))
    if isinstance(bounds, Sequence) and len(bounds) == 2:
        return number(bounds[0]), number(bounds[1])
    return None, None


def _count(values: Mapping[Any, Any], key: str) -> int:
    return round(number(values.get(key)) or 0)


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
