"""Sequential stages of a job: each keeps its rows in a journal, so that no finished work is repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from genevolve_ray.bench.jobs.job import RowEnd
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.journal import RowJournal
from genevolve_ray.records.published.places import PathStyle, absolute_paths
from genevolve_ray.records.published.rejections import RowFault
from genevolve_ray.records.usage import Usage, metered


class Stage(Protocol):
    """Define one processing step of a row."""

    @property
    def name(self) -> str:
        """Name of the stage in the provenance of a row."""
        ...

    @property
    def kind(self) -> type[ResultRow]:
        """The class that its rows are read as."""
        ...

    @property
    def results(self) -> str:
        """Name of the result file; the journal has the same stem."""
        ...

    async def do(self, row: ResultRow) -> tuple[dict[str, Any], RowEnd]:
        """Return the row with its result, or with the reason for its absence, and the kind of end."""
        ...

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return whether the result of a kept row still exists and is valid."""
        ...


class PipelineStage:
    """Bind a stage to its folder and its journal."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        """Open the journal. Raises DataError when another process writes it."""
        self.stage, self.folder = stage, folder
        self.journal = RowJournal(folder / Path(stage.results).with_suffix(".jsonl"), stage.kind)

    @property
    def path(self) -> Path:
        """The result file of the stage."""
        return self.folder / self.stage.results

    def done(self, row: ResultRow) -> dict[str, Any] | None:
        """Return the finished row that was derived from `row`, None when there is none."""
        return None if self.journal.pending([row], self.stage.intact) else self.journal.get(row.id)

    async def carry(self, row: ResultRow) -> tuple[dict[str, Any], RowEnd]:
        """Return the stage's result for a row, kept from an earlier run or computed now."""
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
        """Return the money that the stage has spent on a row over all tries that ended."""
        return sum((usage.money for usage in self._usage(self.journal.get(row_id)).values()), 0.0)

    def _with_usage(
        self, values: dict[str, Any], before: Mapping[str, Any] | None, used: Mapping[str, Usage]
    ) -> dict[str, Any]:
        """Add the usage of the row, earlier tries included, to its provenance."""
        total = self._usage(before)
        for service, usage in used.items():
            total[service] = total.get(service, Usage()) + usage
        ours = ResultRow.read(values).provenance
        listed = {
            service: {name: round(n, 6) if isinstance(n, float) else n for name, n in usage.model_dump().items() if n}
            for service, usage in total.items()
        }
        if listed:
            earlier = ours.get("usage")
            ours["usage"] = {**(earlier if isinstance(earlier, dict) else {}), self.stage.name: listed}
        return {**values, PROVENANCE: ours}

    def _usage(self, row: Mapping[str, Any] | None) -> dict[str, Usage]:
        found = ((row or {}).get(PROVENANCE) or {}).get("usage", {}).get(self.stage.name, {})
        return {service: Usage(**values) for service, values in found.items()}


class Pipeline:
    """Process rows through all stages. A context manager; leaving it releases the journals."""

    def __init__(
        self, stages: Sequence[tuple[Stage, Path]], *, paths: PathStyle = "absolute", folders: Sequence[Path] = ()
    ) -> None:
        """Open every journal.

        Args:
            stages: each with the folder of its results.
            paths: how result files state the pictures of rows; journals state them relative to a folder.
            folders: further folders that paths of rows may be relative to.

        Raises:
            DataError: when another process writes a journal.
        """
        self.stages: list[PipelineStage] = []
        self._paths, self._folders = paths, [*(folder for _, folder in reversed(stages)), *folders]
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
        """Release the journals."""
        for stage in self.stages:
            stage.journal.close()

    def pending(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Return the rows that some stage has not finished, in order."""
        return [row for row in rows if not self._finished(row)]

    async def work(self, row: ResultRow) -> RowEnd:
        """Process one row through the stages, see `jobs.Work`."""
        ends = []
        for stage in self.stages:
            values, end = await stage.carry(row)
            ends.append(end)
            row = ResultRow.read(values)
        return next((end for end in (RowEnd.FAILED, RowEnd.MISSED) if end in ends), RowEnd.DONE)

    def spent(self, rows: Sequence[ResultRow]) -> list[float]:
        """Return the money that earlier runs have spent on each of these rows."""
        return [sum(stage.spent(row.id) for stage in self.stages) for row in rows]

    def write(self, rows: Sequence[ResultRow]) -> None:
        """Write each stage's result file, with the rows that it has, in the order of the input."""
        inputs = list(rows)
        for stage in self.stages:
            stage.journal.write(inputs, stage.path, published=self.published)
            inputs = self._outputs(stage, inputs)

    def published(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of a journal as result files state it."""
        return dict(values) if self._paths == "relative" else absolute_paths(values, self._folders)

    def outputs(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Return the last stage's results of the rows, as far as they exist."""
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
