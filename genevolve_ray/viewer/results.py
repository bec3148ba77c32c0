"""Page of benchmark and job outputs: scores with intervals, scores by split, pictures of cases, failures by reason.

It reads the files that the commands write and nothing else, so a page can be written again anywhere. Rows of other
tools are shown as well, as far as they state their scores.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.records.decoding import clean_apart
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.pictures import ImageRefused, PictureLimits
from genevolve_ray.records.published.names import locate
from genevolve_ray.records.published.rejections import RejectionReport, RowFault
from genevolve_ray.records.published.results import AgentRow, EvaluatedRow, read_results
from genevolve_ray.records.trajectory import Termination
from genevolve_ray.records.verdict import WEIGHTS, ScoreFormula, kscore
from genevolve_ray.viewer.figures import number, score_histogram
from genevolve_ray.viewer.gallery import FULL_SIDE, PagePicture, Pictures, clip
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.outputs import Output, OutputKind, read_object
from genevolve_ray.viewer.page import fixed, render_page, write_page
from genevolve_ray.viewer.result_tables import ScoreSplit, components_of_rows, made_by, score_interval, splits

CASES = 8
"""Cases of each kind that the page shows: best, worst, and drawn at random."""
NAMED = 8
"""Cases that a reason of failure names."""
_MAX_BYTES = 64 << 20
_WHY = {"best": "best", "worst": "worst", "random": "drawn at random"}


@dataclass(frozen=True)
class ResultCase:
    """Hold a row with its score (None without one) and the reason why it has none."""

    row: AgentRow
    score: float | None
    reason: str
    picture: tuple[str, ...] = ()
    rationale: str = ""
    grades: tuple[tuple[str, float | None, float], ...] = ()
    """Name, value and best value of each grade."""


def write_results(output: Output, out: Path, roots: Sequence[Path] = ()) -> Path:
    """Write the page of a benchmark or job output, and return its path. The file appears complete or not at all.

    Args:
        output: the output.
        out: the HTML file.
        roots: further folders that hold pictures of the rows, such as the benchmark with its ground truths.

    Raises:
        DataError: for a file of rows that is missing or broken.
        UserFault: for a summary that is broken.
        OSError: when the page cannot be written.
    """
    return write_page(render_results(output, roots), out)


def render_results(output: Output, roots: Sequence[Path] = ()) -> str:
    """Return the page. All texts are untrusted and get escaped; pictures are decoded and encoded again."""
    summary = _summary(output)
    formula = _formula(summary)
    report = RejectionReport()
    rows = [_judged(row, formula, output.kind) for row in read_results(output.rows[:1], EvaluatedRow, report)]
    images = _Images(roots=(*output.stages, *(file.parent for file in output.rows), *roots))
    scores = [one.score for one in rows if one.score is not None]
    tables = splits(summary, [(one.row, one.score) for one in rows])
    context: dict[str, Any] = {
        "what": output.kind.value,
        "title": output.folder.name or str(output.folder),
        "subtitle": _subtitle(output, rows, summary),
        "tiles": _tiles(rows, scores, summary, output.kind),
        "histogram": score_histogram(scores),
        "splits": tables,
        "ends": _ends(tables),
        "components": components_of_rows([one.row for one in rows]),
        "measures": [],
        "cards": [_card(one, why, images) for one, why in _choose(rows)],
        "whys": _WHY,
        "failures": _failures(rows),
        "rejected": [
            (reason.value, report.rejected[reason], str(report.examples(reason)[0])) for reason in report.rejected
        ],
        "facts": made_by([one.row for one in rows], summary),
    }
    context["thumbs"] = images.pictures.full()
    return render_page("results.html.j2", context)


def _summary(output: Output) -> dict[str, Any]:
    file = output.rows[0].parent / "summary.json"
    return read_object(file) if file.is_file() else {}


def _formula(summary: Mapping[str, Any]) -> ScoreFormula:
    try:
        return ScoreFormula(str(summary.get("formula")))
    except ValueError:
        return ScoreFormula.RELEASE_SUMMARY


# --- rows -----------------------------------------------------------------------------------------------------------------


def _judged(row: EvaluatedRow, formula: ScoreFormula, kind: OutputKind) -> ResultCase:
    agent = _as_agent(row)
    if kind is OutputKind.ROLLOUTS:
        return ResultCase(agent, None, _no_program(agent))
    raw = row.values.get("scores")
    graded = _wise(raw) if isinstance(raw, Mapping) and row.scores is None else None
    grades: tuple[tuple[str, float | None, float], ...] = ()
    score = None
    if row.scores is not None:
        score = kscore(row.scores, formula)
        grades = tuple((name.replace("_", " "), getattr(row.scores, name), 1.0) for name in WEIGHTS)
    elif graded is not None:
        score, grades = graded
    judged = kind in (OutputKind.BENCH, OutputKind.JUDGMENTS) and "eval_success" in row.values
    reason = "" if score is not None or (row.success and not judged) else row.failure
    return ResultCase(agent, score, _plain(reason), row.images, row.rationale, grades)


def _as_agent(row: EvaluatedRow) -> AgentRow:
    try:
        return AgentRow.read(row.values)
    except RowFault:
        # The program of another tool that cannot be read; the rest of the row can.
        return AgentRow.read({**row.values, "reference_images": None, "used_images": None, "gen_prompt": None})


def _no_program(row: AgentRow) -> str:
    if row.gen_prompt and row.termination in (Termination.ANSWER, None):
        return ""
    ended = row.termination.value.replace("_", " ") if row.termination else ""
    return _plain(row.error) or (f"no program: {ended}" if ended else "no program")


def _plain(reason: str) -> str:
    return clip(" ".join(reason.split()).removeprefix("error: "), 160)


def _wise(raw: Mapping[Any, Any]) -> tuple[float, tuple[tuple[str, float | None, float], ...]] | None:
    """Return score and grades of a WISE row: (7 consistency + 2 realism + aesthetic quality) / 20, or its one grade."""
    weights = {"consistency": 7, "realism": 2, "aesthetic_quality": 1} if "consistency" in raw else {"score": 20}
    values = {name: number(raw.get(name)) for name in weights}
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < len(weights):
        return None
    score = sum(weights[name] * value for name, value in known.items()) / 20
    return score, tuple((n.replace("_", " "), v, 1.0 if n == "score" else 2.0) for n, v in known.items())


def _choose(rows: Sequence[ResultCase], count: int = CASES, seed: int = 0) -> list[tuple[ResultCase, str]]:
    """Return the best, the worst and some other rows, each once; without scores, rows at random."""
    ordered = sorted((one for one in rows if one.score is not None), key=lambda one: (-(one.score or 0.0), one.row.id))
    best = ordered[: min(count, (len(ordered) + 1) // 2)]
    worst = ordered[len(best) :][-count:][::-1]
    taken = {one.row.id for one in (*best, *worst)}
    rest = [one for one in rows if one.row.id not in taken and (one.score is not None or not ordered)]
    drawn = random.Random(seed).sample(rest, min(len(rest), count))
    return [
        *((one, "best") for one in best),
        *((one, "worst") for one in worst),
        *((one, "random") for one in drawn),
    ]


def _failures(rows: Sequence[ResultCase]) -> list[tuple[str, int, str]]:
    """Return (reason, rows, first ids) of rows without a result, the most frequent reason first."""
    found: dict[str, list[str]] = {}
    for one in rows:
        if one.reason:
            found.setdefault(one.reason, []).append(one.row.id)
    listed = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(reason, len(ids), ", ".join(ids[:NAMED]) + (" …" if len(ids) > NAMED else "")) for reason, ids in listed]


# --- pictures -------------------------------------------------------------------------------------------------------------


class _Images:
    """Pictures of rows, from below the given folders alone."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots, self._store = tuple(dict.fromkeys(roots)), MemoryImages()
        self.pictures = Pictures(self._store.get)

    def get(self, paths: Iterable[str]) -> PagePicture | None:
        """Return the first picture that is there, None where none can be opened."""
        for path in paths:
            try:
                file = locate(path, self._roots, "picture")
                if file.stat().st_size > _MAX_BYTES:
                    continue
                seen = clean_apart(file.read_bytes(), PictureLimits(max_bytes=_MAX_BYTES, long_side=FULL_SIDE))
            except (RowFault, ImageRefused, OSError):
                continue
            ref = self._store.put(seen.data, width=seen.width, height=seen.height, media_type=seen.media_type)
            return self.pictures.get(ref)
        return None


def _card(one: ResultCase, why: str, images: _Images) -> dict[str, Any]:
    row = one.row
    references = [
        (
            reference.img_id or f"reference {place}",
            reference.note or reference.title,
            images.get([reference.local_path]),
        )
        for place, reference in enumerate(row.references[:4], 1)
        if reference.local_path or reference.note or reference.title
    ]
    return {
        "id": row.id,
        "why": why,
        "score": one.score,
        "prompt": clip(row.prompt, 2000),
        "labels": [text for text in (row.eval_type, row.category.replace("_", " "), row.difficulty) if text],
        "truth": images.get(row.truths) if row.truths else None,
        "has_truth": bool(row.truths),
        "picture": images.get([*one.picture, row.picture]) if one.picture else None,
        "has_picture": bool(one.picture),
        "references": references,
        "program": clip(row.gen_prompt),
        "rationale": clip(one.rationale),
        "grades": one.grades,
        "reason": one.reason,
        "ended": row.termination.value.replace("_", " ") if row.termination else "",
        "rounds": row.rounds,
    }


# --- figures of the head --------------------------------------------------------------------------------------------------


def _tiles(
    rows: Sequence[ResultCase], scores: Sequence[float], summary: Mapping[str, Any], kind: OutputKind
) -> list[Tile]:
    tiles = [Tile("Rows", f"{len(rows):,}", note=f"{len(scores):,} with a score" if scores else "")]
    mean, low, high = score_interval(summary)
    if mean is None and scores:
        mean = sum(scores) / len(scores)
    if mean is not None:
        bounds = f"95% interval {fixed(low)} to {fixed(high)}" if low is not None and high is not None else ""
        tiles.append(Tile("Score", fixed(mean), note=bounds or "mean over rows with a score"))
    if (zero := _missing_zero(summary)) is not None and len(scores) < len(rows):
        tiles.append(Tile("Score, missing as 0", fixed(zero)))
    if kind is OutputKind.ROLLOUTS and rows:
        answered = sum(not one.reason for one in rows)
        tiles.append(Tile("Programs", f"{answered / len(rows):.1%}", note=f"{answered:,} of {len(rows):,} rows"))
    lost = sum(bool(one.reason) for one in rows)
    tiles.append(Tile("Without a result", f"{lost:,}", tone="bad" if lost else "good"))
    return tiles


def _missing_zero(summary: Mapping[str, Any]) -> float | None:
    every = summary.get("all")
    return number((every if isinstance(every, Mapping) else summary).get("overall_missing_zero"))


def _ends(tables: Sequence[tuple[str, Sequence[ScoreSplit]]]) -> tuple[float, float] | None:
    return next((table[0].ends for _, table in tables if table), None)


def _subtitle(output: Output, rows: Sequence[ResultCase], summary: Mapping[str, Any]) -> list[str]:
    described = {"formula": "formula", "edition": "WISE edition"}
    told = [f"{label} {summary[key]}" for key, label in described.items() if isinstance(summary.get(key), str)]
    kinds = sorted({one.row.eval_type for one in rows} - {""})
    return [output.rows[0].name, *told, *(kinds if len(kinds) <= 3 else [f"{len(kinds)} types"])]
