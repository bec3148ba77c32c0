"""Stages of a job, one behind the other: each keeps its rows in a journal, so that nothing that is done is done twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from genevolve_ray.bench.jobs.job import RowEnd
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.journal import RowJournal
from genevolve_ray.records.published.rejections import RowFault
from genevolve_ray.records.usage import Usage, metered


class Stage(Protocol):
    """What is done to a row."""

    @property
    def name(self) -> str:
        """Name in what a row says of its making."""
        ...

    @property
    def kind(self) -> type[ResultRow]:
        """What its rows are read as."""
        ...

    @property
    def results(self) -> str:
        """Name of its file; the journal has the same stem."""
        ...

    async def do(self, row: ResultRow) -> tuple[dict[str, Any], RowEnd]:
        """Return the row with its result, or with the reason why there is none, and which of the two it is."""
        ...

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return whether what a kept row stands for is still there, and counts."""
        ...


class PipelineStage:
    """A stage with its folder and its journal."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        """Open the journal. Raises DataError when another process writes it."""
        self.stage, self.folder = stage, folder
        self.journal = RowJournal(folder / Path(stage.results).with_suffix(".jsonl"), stage.kind)

    @property
    def path(self) -> Path:
        """The stage's result file."""
        return self.folder / self.stage.results

    def done(self, row: ResultRow) -> dict[str, Any] | None:
        """Return the finished row that stems from `row`, None when there is none."""
        return None if self.journal.pending([row], self.stage.intact) else self.journal.get(row.id)

    async def carry(self, row: ResultRow) -> tuple[dict[str, Any], RowEnd]:
        """Return what the stage makes of a row, kept from an earlier run or made now."""
        if (kept := self.done(row)) is not None:
            return kept, RowEnd.DONE
        with metered() as meter:
            values, end = await self.stage.do(row)
        before = self.journal.get(row.id)
        values = self._with_usage(values, before, meter.by_service)
        if values != before:
            self.journal.append(values)
        return values, end

    def spent(self, row_id: str) -> float:
        """Return the money that the stage has taken for a row over all tries that ended."""
        return sum((usage.money for usage in self._usage(self.journal.get(row_id)).values()), 0.0)

    def _with_usage(
        self, values: dict[str, Any], before: Mapping[str, Any] | None, used: Mapping[str, Usage]
    ) -> dict[str, Any]:
        """Add what the row took, earlier tries included, to what it says of its making."""
        total = self._usage(before)
        for service, usage in used.items():
            total[service] = total.get(service, Usage()) + usage
        ours = dict(values.get(PROVENANCE) or {})
        listed = {
            service: {name: round(n, 6) if isinstance(n, float) else n for name, n in usage.model_dump().items() if n}
            for service, usage in total.items()
        }
        if listed:
            ours["usage"] = {**(ours.get("usage") or {}), self.stage.name: listed}
        return {**values, PROVENANCE: ours}

    def _usage(self, row: Mapping[str, Any] | None) -> dict[str, Usage]:
        found = ((row or {}).get(PROVENANCE) or {}).get("usage", {}).get(self.stage.name, {})
        return {service: Usage(**values) for service, values in found.items()}


class Pipeline:
    """A row's way through all stages. Use as a context manager; leaving it gives the journals back."""

    def __init__(self, stages: Sequence[tuple[Stage, Path]]) -> None:
        """Open every journal. Raises DataError when another process writes one."""
        self.stages: list[PipelineStage] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for stage, folder in stages:
                self.stages.append(PipelineStage(stage, folder))
            undo.pop_all()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the journals back."""
        for stage in self.stages:
            stage.journal.close()

    def pending(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Return the rows that some stage has not finished, in order."""
        return [row for row in rows if not self._finished(row)]

    async def work(self, row: ResultRow) -> RowEnd:
        """Put one row through the stages, see `jobs.Work`."""
        ends = []
        for stage in self.stages:
            values, end = await stage.carry(row)
            ends.append(end)
            row = ResultRow.read(values)
        return next((end for end in (RowEnd.FAILED, RowEnd.MISSED) if end in ends), RowEnd.DONE)

    def spent(self, rows: Sequence[ResultRow]) -> list[float]:
        """Return the money that earlier runs have taken for each of these rows."""
        return [sum(stage.spent(row.id) for stage in self.stages) for row in rows]

    def write(self, rows: Sequence[ResultRow]) -> None:
        """Write each stage's result file, with the rows that it has, in the order of the input."""
        inputs = list(rows)
        for stage in self.stages:
            stage.journal.write(inputs, stage.path)
            inputs = self._outputs(stage, inputs)

    def outputs(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Return what the last stage has made of the rows, as far as it has."""
        inputs = list(rows)
        for stage in self.stages:
            inputs = self._outputs(stage, inputs)
        return inputs

    def _outputs(self, stage: PipelineStage, inputs: Sequence[ResultRow]) -> list[ResultRow]:
        found = (stage.journal.get(row.id) for row in inputs)
        return [ResultRow.read(values) for values in found if values is not None]

    def _finished(self, row: ResultRow) -> bool:
        for stage in self.stages:
            kept = stage.done(row)
            if kept is None:
                return False
            try:
                row = ResultRow.read(kept)
            except RowFault:
                return False
        return True
