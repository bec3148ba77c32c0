"""`genevolve data build`: from recipes to published parts, stage by stage, each row of each stage once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from genevolve_ray.commands.build_config import BuildConfig, load_build
from genevolve_ray.commands.build_output import DATASET, publish_build
from genevolve_ray.commands.build_stages import BuildPlans, context_of, store_of
from genevolve_ray.data.build import audit, truths
from genevolve_ray.data.build.audit import AuditRow, agreement
from genevolve_ray.data.build.entities import assign_entities, select_entities
from genevolve_ray.data.build.entity_files import read_entities
from genevolve_ray.data.build.filter import apply_thresholds, yields
from genevolve_ray.data.build.fingerprints import RowMark, mark_picture
from genevolve_ray.data.build.journal import StageJournal
from genevolve_ray.data.build.near_duplicates import reject_similar_embeddings, reject_similar_words
from genevolve_ray.data.build.publishing import published_picture
from genevolve_ray.data.build.recipes import plan_recipes
from genevolve_ray.data.build.rows import BuildRow, NamedEntity, PromptRow, count_rejections, kept
from genevolve_ray.data.build.running import BuildCounts, Watch, journal_folder, run_in_process
from genevolve_ray.data.build.split import SplitResult, split_rows
from genevolve_ray.data.build.stage import StagePlan
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.doctor.preflight import check_secrets
from genevolve_ray.errors import RunError, UserFault
from genevolve_ray.experience.factory import build_embedder
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.usage import Usage

_EVERY_SECONDS = 15.0
Carry = Callable[[Iterable[BuildRow], Sequence[StagePlan[Any]], Path, Watch], BuildCounts]
"""Carries rows through stages, here or on a cluster."""


class BuildStage(StrEnum):
    """Name the stages of a build, in order."""

    RECIPES = "recipes"
    PROMPTS = "prompts"
    TRAJECTORIES = "trajectories"
    AUDIT = "audit"
    TRUTHS = "truths"
    FILTER = "filter"
    SPLIT = "split"
    CARD = "card"


class BuildStopped(RunError):
    """End a build before its last stage; the same command resumes. 3 for a cap, 75 for services that failed."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


@dataclass
class BuildTable:
    """Hold the counts of a build as its stages end."""

    yields: dict[str, dict[str, int]] = field(default_factory=dict)
    rejections: Counter[tuple[str, str]] = field(default_factory=Counter)
    usage: dict[str, dict[str, Usage]] = field(default_factory=dict)
    splits: list[dict[str, Any]] = field(default_factory=list)
    """What `SplitResult.summary` returned for trajectories and for requests."""

    def note(self, stage: str, came: int, rows: Sequence[BuildRow]) -> None:
        """Add a stage that ended: the rows that came and the rows that it kept."""
        self.yields[stage] = {"in": came, "out": len(kept(rows))}
        self.rejections.update({key: n for key, n in count_rejections(rows).items() if key not in self.rejections})


class DataBuild:
    """Build a data set in a folder."""

    def __init__(
        self, config: BuildConfig, folder: Path, *, policy: str | None, carry: Carry, console: Console
    ) -> None:
        """Plan a build; nothing is called yet.

        Raises:
            TaxonomyError: for a taxonomy that cannot be used.
        """
        self._config, self._folder, self._console, self._carry = config, folder, console, carry
        self._plans = BuildPlans(config, folder, policy)
        self._table = BuildTable()
        self._generic: set[str] = set()

    def run(self, until: BuildStage) -> Mapping[str, Any] | None:
        """Carry out the stages up to `until`, and return the summary where that is the last one.

        Raises:
            BuildStopped: when a cap was reached, or services failed; finished rows are kept.
        """
        prompted = self._recipes()
        if until is BuildStage.RECIPES:
            return None
        written = self._written(prompted)
        if until is BuildStage.PROMPTS:
            return None
        audited = self._answered(written, until)
        if until in (BuildStage.TRAJECTORIES, BuildStage.AUDIT):
            return None
        trajectories, requests = self._trajectory_parts(audited)
        drawn = self._rendered(requests)
        if until is BuildStage.TRUTHS:
            return None
        filtered = self._filtered(drawn)
        if until is BuildStage.FILTER:
            return None
        parts = self._request_parts(filtered)
        if until is BuildStage.SPLIT:
            return None
        everything = {row.id: row for row in [*prompted, *written, *audited, *filtered]}
        return publish_build(
            self._config, self._folder, self._table, trajectories, parts, list(everything.values()), self._generic
        )

    # --- stages ------------------------------------------------------------------------------------------------------

    def _recipes(self) -> list[PromptRow]:
        """Draw the recipes, and give each the entities that it names."""
        data, seed = self._config.data, self._config.seed
        taxonomy = context_of(self._config, self._folder).taxonomy
        plan = plan_recipes(taxonomy, seed=seed, rows=data.recipes)
        entities = asyncio.run(self._entities())
        chosen = entities if data.entities.select is None else select_entities(entities, data.entities.select)
        self._generic = {entity.name for entity in chosen if entity.kind in data.entities.generic}
        rows = assign_entities(
            plan.recipes(), chosen, taxonomy, seed=seed, max_uses=data.entities.max_uses, group=data.entities.group
        )
        self._ended(BuildStage.RECIPES, len(plan), rows)
        if plan.coverage.uncovered:
            self._say(f"{len(plan.coverage.uncovered)} pairs of values occur in no recipe")
        return rows

    async def _entities(self) -> list[NamedEntity]:
        wanted = self._config.data.entities
        found: list[NamedEntity] = []
        for file in wanted.files:
            report = RejectionReport()
            found += read_entities(file.path, report, kind=file.kind, license=file.license, source=file.source)
            if report.rejected:
                self._say(report.text())
        if wanted.source is not None:
            found += await wanted.source.build(context_of(self._config, self._folder)).entities()
        return found

    def _written(self, rows: list[PromptRow]) -> list[PromptRow]:
        """Have the prompts written, and reject those that nearly repeat another."""
        plan = self._plans.prompts()
        done = self._through(kept(rows), [plan], PromptRow)
        data = self._config.data
        if data.similar_words is not None:
            done = reject_similar_words(done, data.similar_words)
        if data.similar_meaning is not None:
            embedder = build_embedder(self._config.experience.embedder)
            done = asyncio.run(reject_similar_embeddings(done, embedder, data.similar_meaning))
        self._ended(BuildStage.PROMPTS, len(kept(rows)), done)
        return done

    def _answered(self, rows: list[PromptRow], until: BuildStage) -> list[AuditRow]:
        """Have the teacher answer and the auditors grade; then reject what is below the thresholds."""
        answers, grades = self._plans.trajectories(), self._plans.audit()
        came = kept(rows)
        plans: list[StagePlan[Any]] = [answers] if until is BuildStage.TRAJECTORIES else [answers, grades]
        done = self._through(came, plans, AuditRow)
        complete = [row for row in done if row.rejected is None or row.rejected.stage != answers.name]
        self._table.yields[BuildStage.TRAJECTORIES] = {"in": len(came), "out": len(complete)}
        if until is BuildStage.TRAJECTORIES:
            self._ended(BuildStage.TRAJECTORIES, len(came), done)
            return done
        thresholds = self._config.data.audit_thresholds
        self._tell_yields("audit", [row.audit for row in complete if row.audit], audit.SCALES)
        for each in agreement(done):
            kappa = "none" if each.kappa is None else f"{each.kappa:.2f}"
            self._say(f"{each.scale}: weighted kappa of both auditors {kappa} on {each.rows} rows")
        done = apply_thresholds(done, lambda row: row.audit, audit.SCALES, thresholds, BuildStage.AUDIT)
        self._ended(BuildStage.AUDIT, len(complete), done)
        return done

    def _trajectory_parts(self, rows: list[AuditRow]) -> tuple[dict[str, list[AuditRow]], list[AuditRow]]:
        """Return the parts of trajectories, and the rows whose truth is to be rendered."""
        good = kept(rows)
        config = self._config.data.trajectory_parts
        placed = split_rows([self._mark(row) for row in good], config)
        self._table.splits.append(placed.summary())
        parts = _parts(placed, good, [part.name for part in config.parts])
        taken = {row.id for part in parts.values() for row in part}
        return parts, [row for row in good if row.id not in taken]

    def _rendered(self, rows: list[AuditRow]) -> list[TruthRow]:
        """Have the truths rendered and graded."""
        done = self._through(rows, [self._plans.truths()], TruthRow)
        self._ended(BuildStage.TRUTHS, len(rows), done)
        return done

    def _filtered(self, rows: list[TruthRow]) -> list[TruthRow]:
        """Reject the truths below the thresholds."""
        came = kept(rows)
        self._tell_yields("truths", [row.truth_grades for row in came], truths.SCALES)
        thresholds = self._config.data.truth_thresholds
        done = apply_thresholds(rows, lambda row: row.truth_grades, truths.SCALES, thresholds, BuildStage.FILTER)
        self._ended(BuildStage.FILTER, len(came), done)
        return done

    def _request_parts(self, rows: list[TruthRow]) -> dict[str, list[TruthRow]]:
        """Return the parts of requests with a truth."""
        good, images = kept(rows), store_of(self._folder)
        marks = [self._mark(row, self._published(images.get(row.truth_image), row.truth_image)) for row in good]
        config = self._config.data.request_parts
        placed = split_rows(marks, config)
        self._table.splits.append(placed.summary())
        parts = _parts(placed, good, [part.name for part in config.parts])
        self._table.yields[BuildStage.SPLIT] = {"in": len(good), "out": sum(map(len, parts.values()))}
        return parts

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _mark(self, row: PromptRow, *pictures: bytes) -> RowMark:
        names = tuple(name for name in row.entities if name not in self._generic)
        return RowMark(row.id, row.prompt, names, tuple(map(mark_picture, pictures)))

    def _published(self, data: bytes, ref: ImageRef) -> bytes:
        """Return a picture as it is published, so that the check of the data set compares the same bytes."""
        return published_picture(data, ref, self._config.data.publish)[1]

    def _through(self, rows: Sequence[BuildRow], plans: Sequence[StagePlan[Any]], kind: type[Any]) -> list[Any]:
        """Carry rows through stages and return them all, in the order of their ids.

        Raises:
            BuildStopped: when a cap held rows back, or a service failed for some.
        """
        ordered = sorted(rows, key=lambda row: row.id)
        names = " and ".join(plan.name for plan in plans)
        with BuildProgress(self._console, names, len(ordered)) as shown:
            progress = self._carry(ordered, plans, self._folder, shown.update)
        for plan in plans:
            with StageJournal(journal_folder(self._folder, plan), plan.name, plan.kind) as journal:
                self._table.usage[plan.name] = dict(journal.usage)
        if progress.held:
            told = ", ".join(f"{count} rows by the cap of {stage}" for stage, count in sorted(progress.held.items()))
            raise BuildStopped(f"held back: {told}. The same command with a higher cap resumes", 3)
        if progress.outages:
            raise BuildStopped(f"services failed for {progress.outages} rows. The same command tries them again", 75)
        return list(self._results(ordered, plans, kind))

    def _results(self, rows: Sequence[BuildRow], plans: Sequence[StagePlan[Any]], kind: type[Any]) -> Iterator[Any]:
        """Yield the result of each row: that of the last stage that did something with it."""
        journals = [StageJournal(journal_folder(self._folder, plan), plan.name, plan.kind) for plan in plans]
        for row in rows:
            found = next((done for journal in reversed(journals) if (done := journal.get(row.id)) is not None), row)
            yield kind.model_validate(found.model_dump())

    def _ended(self, stage: BuildStage, came: int, rows: Sequence[BuildRow]) -> None:
        self._table.note(stage, came, rows)
        reasons = Counter({r: n for (at, r), n in count_rejections(rows).items() if at == stage})
        told = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common(4))})" if reasons else ""
        counts = self._table.yields[stage]
        self._say(f"{stage}: {counts['out']} of {counts['in']} rows{told}")

    def _tell_yields(self, title: str, grades: Sequence[Mapping[str, Any]], scales: Sequence[str]) -> None:
        """Print how many rows reach each threshold, before any is rejected."""
        table = Table("scale", "at least", "rows", "share", title=f"{title}: yield at each threshold")
        for at in yields(grades, scales):
            if at.rows:
                table.add_row(at.scale, f"{at.least:g}", str(at.kept), f"{at.kept / at.rows:.1%}")
        self._console.print(table)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class BuildProgress:
    """Show how many rows have ended, with time left and reasons of rejections. A context manager."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        """Show rows of `total` under a title; without a terminal, a line every few seconds."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = ProgressBar(*columns, TextColumn("{task.fields[told]}"), console=console, transient=True)
        self._task = self._bar.add_task(title, total=total, told="")
        self._console, self._title, self._total = console, title, total
        self._last = monotonic()

    def __enter__(self) -> BuildProgress:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the display."""
        self._bar.stop()

    def update(self, progress: BuildCounts) -> None:
        """Receive the progress."""
        told = ", ".join(f"{count} {reason}" for (_, reason), count in progress.rejected.most_common(3))
        self._bar.update(self._task, completed=progress.ended, told=told)
        if not self._console.is_terminal and monotonic() - self._last >= _EVERY_SECONDS:
            self._last = monotonic()
            line = f"{self._title}: {progress.ended}/{self._total}{f' ({told})' if told else ''}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _parts(placed: SplitResult, rows: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    by_id = {row.id: row for row in rows}
    return {name: [by_id[row_id] for row_id in placed.ids(name)] for name in names}


def carry_here(rows: Iterable[BuildRow], plans: Sequence[StagePlan[Any]], folder: Path, watch: Watch) -> BuildCounts:
    """Carry rows through stages in this process."""
    return asyncio.run(run_in_process(rows, plans, folder, watch))


def build_data(
    name: str,
    folder: Path,
    *,
    overrides: Sequence[str],
    until: BuildStage,
    policy: str | None,
    in_process: bool,
    console: Console,
) -> int:
    """Build a data set, or resume one, and return the exit code: 0 when it is done and clean, 1 with leaks.

    Raises:
        UserFault, ConfigError: for settings that cannot be used, or a folder that another build writes.
        BuildStopped: at a cap, or after failures of services.
    """
    config = load_build(name, tuple(overrides))
    check_secrets(config.data.model_dump(mode="json"), here=not config.cluster.address)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0), _carrying(config, in_process) as carry:
            build = DataBuild(config, folder.resolve(), policy=policy, carry=carry, console=console)
            summary = build.run(until)
    except Timeout as error:
        raise UserFault(f"--out {folder}: another build is writing this folder") from error
    if summary is None:
        console.print(f"{until} is done; the same command without --until continues", highlight=False, soft_wrap=True)
        return 0
    rows = ", ".join(f"{part} {count['rows']}" for part, count in summary["parts"].items())
    console.print(f"{folder / DATASET}: {rows}; output_hash {summary['output_hash']}", highlight=False, soft_wrap=True)
    leaks = summary["leaks"].get("total", 0)
    if leaks:
        console.print(f"{leaks} leaks between parts: genevolve data leaks {folder / DATASET}", soft_wrap=True)
    return 1 if leaks else 0


@contextmanager
def _carrying(config: BuildConfig, in_process: bool) -> Iterator[Carry]:
    """Lend what carries rows through stages: this process, or a Ray cluster for the time of the build."""
    if in_process:
        yield carry_here
        return
    from genevolve_ray.cluster.data_build import run_on_ray_data
    from genevolve_ray.cluster.session import ray_session

    with ray_session(config.cluster, namespace=f"{config.name}-data"):
        yield run_on_ray_data
