"""Execution of a job: start its parts, process its rows, end cleanly, and print the result."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from genevolve_ray.bench.jobs.job import JobState, RowEnd, Stop, StopReason, run_job
from genevolve_ray.bench.jobs.pictures import STORE
from genevolve_ray.bench.jobs.pipeline import Pipeline, Stage
from genevolve_ray.bench.jobs.progress import JobLog
from genevolve_ray.bench.jobs.settings_file import claim_folder, job_path
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.preflight import check_kscore, check_plugin, check_secrets, placed, require_gpus
from genevolve_ray.doctor.toolbox import check_tools
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import InferencePorts, Wanted, inference_in_process
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.budget import Budget
from genevolve_ray.records.images import FilesystemImages, ImageStore
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.places import PathStyle
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.secrets import REMEDY, hide_secrets, shown
from genevolve_ray.remote.config import RemoteConfig

RESULTS = ("results.json", "results.jsonl")
"""Files of `rollout` and `render`."""
EXIT_FAILED, EXIT_COST = 1, 3
EXIT_STOPPED = {StopReason.COST: EXIT_COST, StopReason.INTERRUPT: 130, StopReason.TERMINATE: 143}
Build = Callable[[InferencePorts, ImageStore], list[tuple[Stage, Path]]]


@dataclass(frozen=True)
class Job:
    """Describe the job of a command; `build` returns the stages over the parts, each with the folder of its results."""

    name: str
    config: RunConfig
    folder: Path
    rows: Sequence[ResultRow]
    wanted: Wanted
    build: Build
    settings: Mapping[str, Any]
    """Settings that results depend on, besides the identities of renderer and judge; they are fixed for a folder."""
    store: Path
    """Folder that contains the image store."""
    report: RejectionReport | None = None
    """The rejected rows of the input, which make the exit code 1."""
    paths: PathStyle = "absolute"
    """How result files state the pictures of rows."""
    folders: Sequence[Path] = ()
    """Folders besides those of the stages that paths of rows may be relative to."""
    max_cost: float | None = None
    in_process: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))


@dataclass(frozen=True)
class JobResult:
    """Hold the final state of a job, its input, and the rows of its last stage, also as result files state them."""

    state: JobState
    rows: list[ResultRow]
    inputs: Sequence[ResultRow]
    published: list[dict[str, Any]]
    rejected: bool = False

    @property
    def exit_code(self) -> int:
        """0 when every row has its result, 1 when some failed or were rejected, 3 at the cost cap, 130 or 143 when stopped."""
        if self.state.stopped is not None:
            return EXIT_STOPPED[self.state.stopped]
        return EXIT_FAILED if self.state.ends[RowEnd.FAILED] or self.rejected else 0


def carry_out(job: Job) -> JobResult:
    """Execute a job.

    The first Ctrl-C or SIGTERM finishes the rows in flight; a second one ends the job at once. Both can be resumed.

    Raises:
        UserFault, DataError: for anything that cannot run, before any call is made.
    """
    check_parts(job.config, job.wanted, job.console, job.max_cost)
    result = asyncio.run(_carry(job))
    if (told := _ending(job, result.state)) is not None:
        job.console.print(shown(told), highlight=False, soft_wrap=True)
    return result


async def _carry(job: Job) -> JobResult:
    images = FilesystemImages(str((job.store / STORE).resolve()))
    with _signals(job) as guard:
        async with _parts(job, images) as ports:
            made_by = {
                role: port.identity
                for role, port in (("renderer", ports.renderer), ("judge", ports.judge or ports.grader))
                if port is not None
            } | {f"judges.{name}": port.identity for name, port in ports.judges.items()}
            claim_folder(job.folder, job.name, {**job.settings, **made_by})
            stages = job.build(ports, images)
            with Pipeline(stages, paths=job.paths, folders=job.folders) as pipeline:
                pending = pipeline.pending(job.rows)
                spent = pipeline.spent(job.rows)
                # The highest cost of a row so far is the estimate of the cost of a row.
                dearest = max((job.config.inference.row_cost, *spent))
                budget = Budget(job.max_cost, row_cost=dearest, spent=sum(spent))
                state = JobState(total=len(job.rows), kept=len(job.rows) - len(pending), spent=sum(spent))
                try:
                    with JobLog(job.name, job.console) as log, guard.draining() as stop:
                        await run_job(
                            pending,
                            pipeline.work,
                            state,
                            in_flight=job.config.inference.in_flight,
                            budget=budget,
                            stop=stop,
                            watch=log,
                        )
                finally:
                    pipeline.write(job.rows)
                rejected = job.report is not None and bool(job.report.rejected)
                rows = pipeline.outputs(job.rows)
                return JobResult(state, rows, job.rows, [pipeline.published(row.values) for row in rows], rejected)


@asynccontextmanager
async def _parts(job: Job, images: FilesystemImages) -> AsyncIterator[InferencePorts]:
    wanted = job.wanted
    if not (wanted.policy or wanted.render or wanted.judge or wanted.grade):
        yield InferencePorts()
    elif job.in_process:
        async with inference_in_process(job.config, images, wanted) as ports:
            yield ports
    else:
        from genevolve_ray.cluster.inference import inference_on_ray

        name = f"{job.config.name}-{job.name}"
        async with inference_on_ray(job.config, wanted, run_name=name, images_uri=images.uri) as ports:
            yield ports


# --- before and after -----------------------------------------------------------------------------------------------------


def used_specs(config: RunConfig, wanted: Wanted) -> dict[str, PluginSpec]:
    """Return the plug-ins that a command uses, by role."""
    roles = {"tools": wanted.policy is not None, "renderer": wanted.render, "judge": wanted.judge or wanted.grade}
    further = {role: spec for role, spec in config.judge_specs.items() if role != "judge"} if wanted.panel else {}
    return {role: getattr(config, role) for role, used in roles.items() if used} | further


def result_settings(spec: PluginSpec) -> dict[str, Any]:
    """Return a plug-in and its settings, without service addresses, retry limits, time limits and cache settings."""
    return {"type": spec.type, "config": _without_operation(spec.config)}


_OPERATION = {*RemoteConfig.model_fields, "cache"}


def _without_operation(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_operation(v) for k, v in value.items() if k not in _OPERATION}
    return [_without_operation(v) for v in value] if isinstance(value, list | tuple) else value


def check_parts(
    config: RunConfig, wanted: Wanted, console: Console, max_cost: float | None = None, *, local: bool = False
) -> None:
    """Check in a moment that the parts of a command can start, and print which secrets are given in plain.

    `local` states that all parts run in this process.

    Raises:
        UserFault: naming the invalid value.
    """
    specs = used_specs(config, wanted)
    for role, spec in specs.items():
        with placed(config):
            check_plugin(role, spec, local)
            if role == "judge" and wanted.kscore:
                check_kscore(spec)
    settings = {role: spec.model_dump(mode="json") for role, spec in specs.items()}
    if wanted.policy is not None and wanted.policy.endpoint is not None:
        settings["policy"] = wanted.policy.endpoint.model_dump(mode="json")
    check_secrets(settings, here=not config.cluster.address)
    for key in hide_secrets(settings):
        console.print(f"{key} is a secret in plain: it is masked in files; {REMEDY}", markup=False, soft_wrap=True)
    priced = [spec.config for spec in specs.values()]
    if wanted.policy is not None and wanted.policy.endpoint is not None:
        priced.append(wanted.policy.endpoint.model_dump())
    if max_cost is not None and not any(map(has_price, priced)):
        raise UserFault(
            f"--max-cost {max_cost:g}: no service has a price, so the cost would always be 0; set "
            "`price` in the config of the policy's endpoint, tools, renderer or judge"
        )
    if "tools" in specs:
        check_tools(config, wanted.policy.model if wanted.policy is not None else None)
    asked: dict[str, object] = {
        f"cluster.{role}.gpus": service.gpus for role in specs if (service := config.cluster.service(role))
    }
    if wanted.policy is not None and wanted.policy.model is not None:
        asked |= {"engine.device": config.engine.device, "cluster.rollout_gpus": config.cluster.rollout_gpus}
    if not config.cluster.address:  # A remote cluster has its own environment.
        require_gpus(asked)


def has_price(value: Any) -> bool:
    """Return whether settings, or any inside them, set a price above 0."""
    if isinstance(value, Mapping):
        own = value.get("price")
        return (isinstance(own, Mapping) and any(own.values())) or any(map(has_price, value.values()))
    return False


def _ending(job: Job, state: JobState) -> str | None:
    left = state.total - state.kept - state.ends[RowEnd.DONE] - state.ends[RowEnd.MISSED]
    again = "The same command resumes it"
    if state.stopped is StopReason.COST:
        return (
            f"stopped below --max-cost {job.max_cost:g}: {state.spent:.4g} is spent and another row could exceed it; "
            f"{left} of {state.total} rows are left. {again} with a higher cap."
        )
    if state.stopped is not None:
        return f"stopped: {left} of {state.total} rows are left. {again}."
    if failed := state.ends[RowEnd.FAILED]:
        return f"{failed} of {state.total} rows failed and have no result; {job.folder} has the reasons. {again} and retries them."
    return None


def refuse_foreign(folder: Path, name: str, files: Sequence[str]) -> None:
    """Check that a folder holds no such files but those that the command wrote itself. Raises UserFault."""
    found = [file for file in files if (folder / file).exists()]
    if found and not job_path(folder, name).is_file():
        raise UserFault(
            f"{folder} holds {', '.join(found)}, which `genevolve {name}` did not write and would overwrite: "
            "name another folder with --output"
        )


def refuse_mixed(folder: Path, name: str, other: str) -> None:
    """Check that a folder does not hold another command's `results.json`. Raises UserFault."""
    if job_path(folder, other).is_file():
        raise UserFault(
            f"{folder} holds the results of `genevolve {other}`, which {name} would overwrite: name another folder"
        )


# --- signals --------------------------------------------------------------------------------------------------------------


class _Guard:
    """Turns signals into a stop while rows are processed, and into cancellation before and after."""

    def __init__(self, console: Console) -> None:
        self._task, self._console = asyncio.current_task(), console
        self._stop: Stop | None = None

    @contextmanager
    def draining(self) -> Iterator[Stop]:
        """Lend a stop that signals request."""
        self._stop = Stop()
        try:
            yield self._stop
        finally:
            self._stop = None

    def heard(self, reason: StopReason) -> None:
        """Handle a signal."""
        if self._stop is None or self._stop.reason is not None:
            assert self._task is not None
            self._task.cancel()
            return
        self._stop.ask(reason)
        self._console.print("finishing the rows in flight; a second signal ends the process at once")


@contextmanager
def _signals(job: Job) -> Iterator[_Guard]:
    guard, loop = _Guard(job.console), asyncio.get_running_loop()
    kinds = {signal.SIGINT: StopReason.INTERRUPT, signal.SIGTERM: StopReason.TERMINATE}
    for number, reason in kinds.items():
        loop.add_signal_handler(number, guard.heard, reason)
    try:
        yield guard
    finally:
        for number in kinds:
            loop.remove_signal_handler(number)
