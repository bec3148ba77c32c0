"""`genevolve judge --repeat N`: the same pictures judged several times, to see how far the judge agrees with itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genevolve_ray.commands.inference import CONSOLE, Common, judge_rows
from genevolve_ray.faults import UserFault
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import WEIGHTS, ScoreFormula, kscore


def judge_again_run(
    rows: Path, out: Path | None, common: Common, *, roots: Sequence[Path], formula: str | None, repeat: int
) -> int:
    """Judge every row `repeat` times, each into a folder of its own, and write how far the judgements agree."""
    config = common.load(*([f"reward.formula={formula}"] if formula else []))
    folder = out or rows.parent
    codes, found = [], []
    for number in range(1, repeat + 1):
        carried = judge_rows(rows, folder / f"repeat-{number}", config, common, roots=roots)
        if number > 1 and carried.state.taken.cached:
            raise UserFault("--repeat: verdicts came from a cache, which always agrees with itself: switch it off")
        codes.append(carried.exit_code)
        found.append([EvaluatedRow.read(row.values) for row in carried.rows])
        if carried.state.stopped is not None:
            return carried.exit_code
    told = agreement(found, config.reward.formula)
    write_object(folder / "repeatability.json", told)
    CONSOLE.print(
        f"{told['rows']} rows judged {repeat} times: KScore differs by {told['kscore_difference']} on average, "
        f"{told['identical']} of pairs are identical; {folder / 'repeatability.json'}",
        highlight=False,
        soft_wrap=True,
    )
    return max(codes)


def agreement(repeats: Sequence[Sequence[EvaluatedRow]], formula: ScoreFormula) -> dict[str, Any]:
    """Return how far repeated judgements of rows agree: over pairs of repeats of the rows that every repeat has scored."""
    by_row: dict[str, list[EvaluatedRow]] = {}
    for rows in repeats:
        for row in rows:
            if row.scores is not None:
                by_row.setdefault(row.id, []).append(row)
    whole = [rows for rows in by_row.values() if len(rows) == len(repeats)]
    pairs = [(a.scores, b.scores) for rows in whole for i, a in enumerate(rows) for b in rows[i + 1 :]]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    differences = [abs(kscore(a, formula) - kscore(b, formula)) for a, b in known]
    return {
        "formula": formula.value,
        "repeats": len(repeats),
        "rows": len(whole),
        "rows_without_every_score": len({row.id for rows in repeats for row in rows}) - len(whole),
        "identical": _mean([a == b for a, b in known]),
        "kscore_difference": _mean(differences),
        "dimensions": {name: _mean([getattr(a, name) == getattr(b, name) for a, b in known]) for name in WEIGHTS},
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
