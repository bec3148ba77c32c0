"""`genevolve data build`: from recipes to published parts, stage by stage, each row of each stage once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from genevolve_ray.commands.build_checks import check_build, policy_path, with_paths
from genevolve_ray.commands.build_config import BuildConfig, BuildStage, load_build
from genevolve_ray.commands.build_output import (
    DATASET,
    REJECTED,
    BuildTable,
    clear_leftovers,
    publish_build,
    write_lost,
)
from genevolve_ray.commands.build_progress import BuildProgress, yield_table
from genevolve_ray.commands.build_splits import BuildSplits
from genevolve_ray.commands.build_stages import BuildPlans, context_of, store_of
from genevolve_ray.data.build import audit, truths
from genevolve_ray.data.build.audit import AuditRow, agreement
from genevolve_ray.data.build.entities import assign_entities, select_entities
from genevolve_ray.data.build.entity_files import read_entities
from genevolve_ray.data.build.filter import apply_thresholds
from genevolve_ray.data.build.journal import StageJournal
from genevolve_ray.data.build.near_duplicates import reject_similar_embeddings, reject_similar_words
from genevolve_ray.data.build.recipes import plan_recipes
from genevolve_ray.data.build.rows import BuildRow, NamedEntity, PromptRow, count_rejections, kept
from genevolve_ray.data.build.running import BuildCounts, Watch, journal_folder, run_in_process
from genevolve_ray.data.build.stage import StagePlan
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.errors import InfraFailure, RunError, UserFault
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.records.published.rejections import RejectionReport

_READ_AGAIN: dict[str, Any] = {
    "answer": {},
    "meta": {},
    "pictures": (),
    "audit_rationale": "",
    "truth_rationale": "",
}
"""Fields of a row that are not held between stages, and their empty values: truths and whole trajectories above all."""
Carry = Callable[[Iterable[BuildRow], Sequence[StagePlan[Any]], Path, Watch], BuildCounts]
"""Carries rows through stages, here or on a cluster."""


class BuildStopped(RunError):
    """End a build before its last stage: 3 at a cap, 75 when services failed, 1 when no row is left."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class DataBuild:
    """Build a data set in a folder."""

    def __init__(self, config: BuildConfig, folder: Path, plans: BuildPlans, *, carry: Carry, console: Console) -> None:
        """Build by a configuration that was checked (`check_build`), and by the plans of its stages."""
        self._config, self._folder, self._console, self._carry = config, folder, console, carry
        self._plans = plans
        self._table = BuildTable()
        self._generic: set[str] = set()
        self._splits: BuildSplits | None = None
        self._placed = 0
        """Rows in parts of trajectories."""

    def run(self, until: BuildStage) -> Mapping[str, Any] | None:
        """Carry out the stages up to `until`, and return the summary where that is the last one.

        Raises:
            BuildStopped: when a cap was reached, services failed, or no row is left; finished rows are kept.
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
        self._splits = splits = BuildSplits(self._config, store_of(self._folder), self._generic)
        trajectories, requests = splits.trajectories(kept(audited))
        self._placed = sum(map(len, trajectories.values()))
        drawn = self._rendered(requests)
        if until is BuildStage.TRUTHS:
            return None
        filtered = self._filtered(drawn)
        if until is BuildStage.FILTER:
            return None
        parts = self._parts(splits, trajectories, filtered)
        if until is BuildStage.SPLIT:
            return None
        whole = {name: self._whole(part, self._plans.audit()) for name, part in trajectories.items()}
        answered = {name: self._whole(part, self._plans.truths()) for name, part in parts.items()}
        return publish_build(
            self._config,
            self._folder,
            self._table,
            splits,
            {name: list(part) for name, part in whole.items()},
            {name: list(part) for name, part in answered.items()},
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
        rows = _rejected_in(BuildStage.RECIPES, rows)
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
        came = kept(rows)
        done: list[PromptRow] = self._through(came, came, [self._plans.prompts()], PromptRow)
        data = self._config.data
        if data.similar_words is not None:
            done = reject_similar_words(done, data.similar_words)
        if data.similar_meaning is not None:
            embedder = build_run_embedder(self._config.experience.embedder)
            done = asyncio.run(reject_similar_embeddings(done, embedder, data.similar_meaning))
        done = _rejected_in(BuildStage.PROMPTS, done)
        self._ended(BuildStage.PROMPTS, len(came), done)
        return done

    def _answered(self, rows: list[PromptRow], until: BuildStage) -> list[AuditRow]:
        """Have the teacher answer and the auditors grade; then reject what is below the thresholds."""
        came, plans = kept(rows), list[StagePlan[Any]]([self._plans.trajectories()])
        if until is not BuildStage.TRAJECTORIES:
            plans.append(self._plans.audit())
        whole = self._whole(came, self._plans.prompts())
        done: list[AuditRow] = self._through(whole, came, plans, AuditRow)
        self._ended(BuildStage.TRAJECTORIES, len(came), done)
        if until is BuildStage.TRAJECTORIES:
            return done
        complete = kept(done)
        thresholds = self._config.data.audit_thresholds
        self._console.print(yield_table("audit", [row.audit for row in complete], audit.SCALES))
        for each in agreement(done):
            kappa = "none" if each.kappa is None else f"{each.kappa:.2f}"
            self._say(f"{each.scale}: weighted kappa of both auditors {kappa} on {each.rows} rows")
        done = apply_thresholds(done, lambda row: row.audit, audit.SCALES, thresholds, BuildStage.AUDIT)
        self._ended(BuildStage.AUDIT, len(complete), done)
        return done

    def _rendered(self, rows: Sequence[AuditRow]) -> list[TruthRow]:
        """Have the truths rendered and graded."""
        whole = self._whole(sorted(rows, key=lambda row: row.id), self._plans.audit())
        done: list[TruthRow] = self._through(whole, rows, [self._plans.truths()], TruthRow) if rows else []
        self._ended(BuildStage.TRUTHS, len(rows), done)
        return done

    def _filtered(self, rows: list[TruthRow]) -> list[TruthRow]:
        """Reject the truths below the thresholds."""
        came = kept(rows)
        self._console.print(yield_table("truths", [row.truth_grades for row in came], truths.SCALES))
        thresholds = self._config.data.truth_thresholds
        done = apply_thresholds(rows, lambda row: row.truth_grades, truths.SCALES, thresholds, BuildStage.FILTER)
        self._ended(BuildStage.FILTER, len(came), done)
        return done

    def _parts(
        self, splits: BuildSplits, trajectories: Mapping[str, Sequence[AuditRow]], rows: list[TruthRow]
    ) -> dict[str, list[TruthRow]]:
        """Return the parts of requests with a truth; rows of no part are rejected."""
        came = kept(rows)
        said = [row for part in trajectories.values() for row in part]
        parts, judged = splits.requests(said, came)
        self._ended(BuildStage.SPLIT, len(came), judged)
        for summary in splits.summaries:
            for name, part in summary["parts"].items():
                if part["wanted"] is not None and part["rows"] < part["wanted"]:
                    self._say(f"{name}: {part['rows']} of {part['wanted']} wanted rows")
        return parts

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _through(
        self,
        rows: Iterable[BuildRow],
        named: Sequence[BuildRow],
        plans: Sequence[StagePlan[Any]],
        kind: type[Any],
    ) -> list[Any]:
        """Carry rows through stages and return them all, in the order of their ids, without what later stages read again.

        Args:
            rows: whole rows, in any order; they are read as they are carried.
            named: the same rows, of which the ids matter.
            plans: of the stages.
            kind: of the last stage's rows.

        Raises:
            BuildStopped: when a cap held rows back, or a service failed for some.
        """
        names = " and ".join(plan.name for plan in plans)
        with BuildProgress(self._console, names, len(named)) as shown:
            progress = self._carry(rows, plans, self._folder, shown.update)
        for plan in plans:
            with self._journal(plan) as journal:
                self._table.usage[plan.name] = dict(journal.usage)
        if progress.held:
            told = ", ".join(f"{count} rows by the cap of {stage}" for stage, count in sorted(progress.held.items()))
            raise BuildStopped(f"held back: {told}. The same command with a higher cap resumes", 3)
        if progress.outages:
            raise BuildStopped(f"services failed for {progress.outages} rows. The same command tries them again", 75)
        return list(self._results(sorted(named, key=lambda row: row.id), plans, kind))

    def _results(self, rows: Sequence[BuildRow], plans: Sequence[StagePlan[Any]], kind: type[Any]) -> Iterator[Any]:
        """Yield the result of each row: that of the last stage that did something with it, lightened."""
        with ExitStack() as stack:
            journals = [stack.enter_context(self._journal(plan)) for plan in reversed(plans)]
            for row in rows:
                found = next((done for journal in journals if (done := journal.get(row.id)) is not None), row)
                yield _light(kind.model_validate(found.model_dump()))

    def _whole(self, rows: Iterable[BuildRow], plan: StagePlan[Any]) -> Iterator[Any]:
        """Yield rows that a stage finished, whole."""
        with self._journal(plan) as journal:
            for row in rows:
                found = journal.get(row.id)
                assert found is not None, f"{plan.name} has not finished {row.id}"
                yield found

    def _journal(self, plan: StagePlan[Any]) -> StageJournal[Any]:
        return StageJournal(journal_folder(self._folder, plan), plan.name, plan.kind)

    def _ended(self, stage: BuildStage, came: int, rows: Sequence[PromptRow]) -> None:
        """Count and print a stage that ended: the rows that came, and what became of them.

        Raises:
            BuildStopped: when no row is left; rejections and summary are written then.
        """
        left = len(kept(rows))
        self._table.yields[stage] = {"in": came, "out": left}
        self._table.rows.update({row.id: row for row in rows})
        reasons = Counter({r: n for (at, r), n in count_rejections(rows).items() if at == stage})
        told = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common(4))})" if reasons else ""
        self._say(f"{stage}: {left} of {came} rows{told}")
        if not left and not self._placed:
            write_lost(self._config, self._folder, self._table, self._splits.summaries if self._splits else ())
            raise BuildStopped(f"{stage}: no row is left of {came}{told}; {self._folder / REJECTED} has the reasons", 1)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _light(row: PromptRow) -> PromptRow:
    """Return a row without what stages that need it read again from the journal."""
    return row.model_copy(update={name: empty for name, empty in _READ_AGAIN.items() if name in type(row).model_fields})


def _rejected_in(stage: BuildStage, rows: Sequence[PromptRow]) -> list[PromptRow]:
    """Return rows whose rejections by a step of a stage are those of the stage."""
    return [
        row
        if row.rejected is None or row.rejected.stage in set(BuildStage)
        else row.model_copy(update={"rejected": row.rejected.model_copy(update={"stage": stage.value})})
        for row in rows
    ]


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
    config, policy = with_paths(load_build(name, tuple(overrides))), policy_path(policy)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserFault(f"--out {folder}: another build is writing this folder") from error
        stack.callback(lock.release)
        clear_leftovers(folder)

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        config, source = check_build(config, folder, policy, until, in_process=in_process, say=say)
        plans = BuildPlans(config, folder.resolve(), policy, source)
        carry = stack.enter_context(_carrying(config, in_process))
        try:
            summary = DataBuild(config, folder.resolve(), plans, carry=carry, console=console).run(until)
        except InfraFailure as failure:  # Of a service that serves no single row, such as the embedder.
            raise BuildStopped(f"a service failed: {failure}. The same command goes on from here", 75) from failure
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
