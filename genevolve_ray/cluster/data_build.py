"""Stages of a data build on Ray Data: rows stream through pools of actors, one pool a stage."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.cluster.errors import PlacementError, RemoteTraceback, await_remote
from genevolve_ray.data.build.journal import StageJournal
from genevolve_ray.data.build.rows import BuildRow, from_columns, to_columns
from genevolve_ray.data.build.running import BuildCounts, Watch, journal_folder, used_before
from genevolve_ray.data.build.stage import CapConfig, StageBudget, StagePlan, StageWorker
from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.usage import Usage
from genevolve_ray.remote.client import share_limits

if TYPE_CHECKING:
    import numpy as np

Batch = Mapping[str, "np.ndarray[Any, np.dtype[Any]] | Sequence[str]"]
"""Columns `row` (JSON text) and `held` (name of the stage whose cap held the row back, or ""); for the first stage the
column `block`, a file with these columns."""
BLOCK_ROWS = 64
"""Rows of a block: what a dead node costs at most, for each of its workers."""


class BudgetActor:
    """Admit the rows of one stage for all its workers."""

    def __init__(self, cap: CapConfig, used: Usage, dearest: Usage) -> None:
        """Start from the usage of earlier runs; see `StageBudget`."""
        self._budget = StageBudget(cap, used, dearest)

    async def admit(self, row_id: str) -> bool:
        """Return whether a row may start."""
        return await self._budget.admit(row_id)

    async def settle(self, row_id: str, used: Usage) -> None:
        """Add the usage of a row that was admitted."""
        await self._budget.settle(row_id, used)


class RemoteBudget:
    """Admit rows through a `BudgetActor`."""

    def __init__(self, actor: Any) -> None:
        """Keep the actor's handle."""
        self._actor = actor

    async def admit(self, row_id: str) -> bool:
        """Return whether a row may start."""
        return bool(await await_remote(self._actor.admit.remote(row_id)))

    async def settle(self, row_id: str, used: Usage) -> None:
        """Add the usage of a row that was admitted."""
        await await_remote(self._actor.settle.remote(row_id, used))


class StageActor:
    """Carry batches of rows through one stage, as a callable class of Ray Data."""

    def __init__(self, plan: StagePlan[Any], folder: Path, budget: Any) -> None:
        """Keep what the first batch needs to start the stage; without a budget the cap is none."""
        self._plan, self._folder, self._budget = plan, folder, budget
        self._stack = AsyncExitStack()
        self._started: asyncio.Task[StageWorker[Any]] | None = None

    async def __call__(self, batch: Batch) -> AsyncIterator[dict[str, list[str]]]:
        """Yield the batch after this stage, in the same order."""
        if self._started is None:
            self._started = asyncio.ensure_future(self._start())
        worker = await asyncio.shield(self._started)
        if "block" in batch:
            batch = _read_blocks([str(path) for path in batch["block"]])

        async def one(text: str, held: str) -> tuple[str, str]:
            if held:
                return text, held
            row = await worker.carry(from_columns(json.loads(text), self._plan.kind))
            return (text, self._plan.name) if row is None else (json.dumps(to_columns(row)), "")

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(str(text), str(held)))
                for text, held in zip(batch["row"], batch["held"], strict=True)
            ]
        done = [task.result() for task in tasks]
        yield {"row": [text for text, _ in done], "held": [held for _, held in done]}

    async def _start(self) -> StageWorker[Any]:
        plan = self._plan
        share_limits(plan.workers[1])
        journal = self._stack.enter_context(StageJournal(journal_folder(self._folder, plan), plan.name, plan.kind))
        stage = await self._stack.enter_async_context(plan.open())
        budget = StageBudget(CapConfig(), Usage()) if self._budget is None else RemoteBudget(self._budget)
        return StageWorker(plan, stage, journal, budget)


def run_on_ray_data(
    rows: Iterable[BuildRow],
    plans: Sequence[StagePlan[Any]],
    folder: Path,
    watch: Watch = lambda progress: None,
    block_rows: int = BLOCK_ROWS,
) -> BuildCounts:
    """Carry rows through the stages on the Ray cluster of this process; see `data.build.running.run_in_process`.

    Ray Data streams the blocks, holds back fast stages, scales each pool between its bounds, and gives the blocks of a
    dead node to another one. `folder` must be on a disk that all nodes share: the input is written there in blocks, and
    what a dead worker finished is taken from its journal.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    _check_room(plans, ray.cluster_resources())
    files = _write_blocks(rows, journal_folder(folder, plans[0]).with_name(f"{plans[0].name}-input"), block_rows)
    if not files:
        return BuildCounts()
    # The workers read the blocks themselves: a task that reads would wait for a CPU that they hold.
    data: ray.data.Dataset = ray.data.from_items([{"block": file} for file in files], override_num_blocks=len(files))
    for plan in plans:
        least, most = plan.workers
        # So many blocks at once that the next one fills the places which the slowest rows of another leave.
        calls = 1 + -(-2 * plan.in_flight // block_rows)
        data = data.map_batches(
            StageActor,
            fn_constructor_args=(plan, folder, _budget_actor(plan, folder, most * calls * block_rows)),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(
                min_size=least,
                max_size=most,
                max_concurrent_calls_per_actor=calls,
                max_tasks_in_flight_per_actor=2 * calls,
            ),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
        )
    progress = BuildCounts()
    with _own_errors():
        for batch in data.iter_batches(batch_size=None, batch_format="numpy"):
            for text, held in zip(batch["row"], batch["held"], strict=True):
                progress.note(None if held else from_columns(json.loads(text), plans[-1].kind), held)
            watch(progress)
    return progress


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the error of a worker with its own class, and the remote traceback as its cause."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        cause: BaseException | None = error.cause
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        if isinstance(cause, GenevolveError | BaseExceptionGroup):
            raise cause from RemoteTraceback(str(error))
        raise


def _write_blocks(rows: Iterable[BuildRow], folder: Path, size: int) -> list[str]:
    """Write the input of the first stage in files of one block each, so that no process holds all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    left, files = iter(rows), list[str]()
    while texts := [json.dumps(to_columns(row)) for row in islice(left, size)]:
        columns = {"row": pa.array(texts, pa.string()), "held": pa.array([""] * len(texts), pa.string())}
        files.append(str(folder / f"{len(files):06d}.parquet"))
        pq.write_table(pa.table(columns), files[-1])
    return files


def _read_blocks(files: Sequence[str]) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, list[str]] = pa.concat_tables([pq.read_table(file) for file in files]).to_pydict()
    return found


def _check_room(plans: Sequence[StagePlan[Any]], there: Mapping[str, float]) -> None:
    """Check that the least number of workers fits the cluster; otherwise the rows would wait for ever.

    Raises:
        PlacementError: naming what is needed and what is there.
    """
    for resource, needed in (
        ("CPU", sum(plan.workers[0] * plan.cpus for plan in plans)),
        ("GPU", sum(plan.workers[0] * plan.gpus for plan in plans)),
    ):
        if needed > there.get(resource, 0.0):
            keys = ", ".join(f"data.stages.{plan.name}" for plan in plans)
            raise PlacementError(
                f"the least workers of {keys} need {needed:g} {resource} at once, and the cluster has "
                f"{there.get(resource, 0.0):g}: set fewer workers or less {resource.lower()}s"
            )


def _budget_actor(plan: StagePlan[Any], folder: Path, waiting: int) -> Any:
    """Return the actor that admits rows to a stage, None for a stage without a cap.

    It lives as long as this process, on the same node. At most `waiting` rows wait for it at once.
    """
    if plan.cap == CapConfig():
        return None
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with StageJournal(journal_folder(folder, plan), plan.name, plan.kind) as journal:
        dearest = journal.dearest
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(BudgetActor)
    # A call that waits holds one of the actor's places, and `settle` needs one to end the waiting.
    placed = actor.options(num_cpus=0, scheduling_strategy=here, max_concurrency=2 * waiting + 16)
    return placed.remote(plan.cap, used_before(folder, plan), dearest)
