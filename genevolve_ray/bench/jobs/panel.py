"""A stage in which every judge of a configuration scores each picture: KScores, open verdicts, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.bench.jobs.job import RowEnd
from genevolve_ray.bench.jobs.stages import JudgeStage, Made, bounded
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.collect import gather_or_cancel
from genevolve_ray.evolution.ports import JudgePort
from genevolve_ray.records.components import AnyVerdict, components_of
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.rejections import RowFault
from genevolve_ray.records.published.results import RenderedRow
from genevolve_ray.records.verdict import ScoreFormula

VERDICTS = "verdicts"


class PanelStage:
    """Let every judge score each picture. A judge that gave up leaves a reason, never a score, and is asked again."""

    name, kind, results = "panel", RenderedRow, "verdicts.json"

    def __init__(
        self,
        judges: Mapping[str, JudgePort],
        images: ImageStore,
        *,
        roots: Sequence[Path],
        formula: ScoreFormula,
        tries: int,
    ) -> None:
        """Judge through the image store; images and ground truths are read from below `roots`."""
        self._judges, self._formula, self._tries = dict(judges), formula, tries
        self._reader = JudgeStage(next(iter(judges.values())), images, roots=roots, formula=formula, tries=tries)

    async def do(self, row: ResultRow) -> Made:
        """Return the row with the components of every judge by its name."""
        if not RenderedRow.read(row.values).success:
            return dict(row.values), RowEnd.MISSED
        found: dict[str, Any] = {}
        try:
            seen = await self._reader.inputs(row, truth=bool(row.truths))
        except (RowFault, ImageRefused) as error:
            found = {name: {"error": str(error)} for name in self._judges}
        else:

            async def ask(name: str, judge: JudgePort) -> None:
                try:
                    found[name] = self._told(await bounded(lambda: judge.judge(*seen), self._tries))
                except InfraFailure as error:
                    found[name] = {"judge": judge.identity, "error": str(error)}

            await gather_or_cancel(ask(name, judge) for name, judge in self._judges.items())
        values = {**row.values, PROVENANCE: {**row.provenance, VERDICTS: {name: found[name] for name in self._judges}}}
        return values, RowEnd.FAILED if any("error" in one for one in found.values()) else RowEnd.DONE

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return whether every judge gave a verdict."""
        found = ResultRow.read(kept).provenance.get(VERDICTS)
        verdicts = found if isinstance(found, Mapping) else {}
        return all("components" in verdicts.get(name, {}) for name in self._judges)

    def _told(self, verdict: AnyVerdict) -> dict[str, Any]:
        parts = {n: c.model_dump(mode="json") for n, c in components_of(verdict, self._formula).items()}
        return {"judge": verdict.judge, "components": parts, "flags": list(verdict.flags)}


def panel_components(row: ResultRow) -> dict[str, float]:
    """Return the values of a row that `PanelStage` wrote, by `JUDGE.COMPONENT`, on the scale of each component."""
    verdicts = row.provenance.get(VERDICTS)
    named = verdicts if isinstance(verdicts, Mapping) else {}
    return {
        f"{judge}.{name}": float(part["value"])
        for judge, verdict in named.items()
        for name, part in verdict.get("components", {}).items()
    }
