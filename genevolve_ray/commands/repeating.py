"""`genevolve judge --repeat N`: the same images judged several times, to measure the judge's agreement with itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from genevolve_ray.bench.repeatability import repeatability, repeatability_table
from genevolve_ray.commands.inference import CONSOLE, Common, judge_rows
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import NOT_EXAMINED, UNEXAMINED, Verdict


def judge_again_run(
    rows: Path, out: Path | None, common: Common, *, roots: Sequence[Path], formula: str | None, repeat: int
) -> int:
    """Judge every row `repeat` times, each time into a separate folder, and write how far the judgments agree."""
    config = common.load(*([f"reward.formula={formula}"] if formula else []))
    folder = out or rows.parent
    codes = []
    verdicts: dict[str, list[Verdict | None]] = {}
    for number in range(1, repeat + 1):
        result = judge_rows(rows, folder / f"repeat-{number}", config, common, roots=roots)
        if result.state.taken.cached:
            raise UserFault(
                "--repeat: verdicts came from a cache, so they would always agree: --set judge.config.cache=null"
            )
        codes.append(result.exit_code)
        for row in (EvaluatedRow.read(row.values) for row in result.rows):
            if row.success:
                verdicts.setdefault(row.id, []).append(verdict_of(row))
        if result.state.stopped is not None:
            return result.exit_code
    if not verdicts:
        raise UserFault(f"{rows}: no row has an image to judge")
    report = repeatability(list(verdicts.values()), formula=config.reward.formula, seed=config.seed)
    write_object(folder / "repeatability.json", report.model_dump(mode="json"))
    Console().print(repeatability_table(report))
    CONSOLE.print(str(folder / "repeatability.json"), highlight=False, soft_wrap=True)
    return max(codes)


def verdict_of(row: EvaluatedRow) -> Verdict | None:
    """Return the verdict behind a row that this project judged, None for one without scores."""
    ours = row.provenance
    if row.scores is None:
        return None
    return Verdict(
        image=row.scores,
        text=ours.get("sufficiency", NOT_EXAMINED),
        rationale=row.rationale,
        text_rationale=ours.get("sufficiency_rationale", ""),
        judge=ours["judge"],
        formula=ours["formula"],
        flags=(*ours.get("flags", ()), *(() if "sufficiency" in ours else (UNEXAMINED,))),
    )
