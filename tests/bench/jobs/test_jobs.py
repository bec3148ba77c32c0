"""Budget, runner, lanes and settings of a job, without any service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from genevolve_ray.bench.jobs.job import JobState, RowEnd, Stop, StopReason, run_job
from genevolve_ray.bench.jobs.pipeline import Pipeline
from genevolve_ray.bench.jobs.progress import JobLog, job_line
from genevolve_ray.bench.jobs.settings_file import claim_folder, job_path
from genevolve_ray.records.budget import Admission, Budget
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.usage import Usage, record_usage


def row(number: int, **more: Any) -> ResultRow:
    return ResultRow.read({"id": f"r{number}", "prompt": "a heron", **more})


class Nobody:
    def update(self, state: JobState) -> None:
        pass


async def run(rows: list[ResultRow], work: Any, *, in_flight: int = 4, budget: Budget | None = None, stop: Any = None):
    return await run_job(
        rows,
        work,
        JobState(total=len(rows)),
        in_flight=in_flight,
        budget=budget or Budget(None),
        stop=stop or Stop(),
        watch=Nobody(),
    )


@given(
    costs=st.lists(st.floats(0.01, 1), min_size=1, max_size=30),
    cap=st.floats(0, 10),
    in_flight=st.integers(1, 8),
    known=st.booleans(),
)
def test_a_row_starts_only_below_the_cap_and_known_costs_never_pass_it(
    costs: list[float], cap: float, in_flight: int, known: bool
) -> None:
    budget = Budget(cap, row_cost=max(costs) if known else 0.0)
    waiting, running, spent, dearest = list(costs), [], 0.0, 0.0
    while True:
        while waiting and len(running) < in_flight and budget.admit() is Admission.START:
            running.append(waiting.pop())
            # Whatever is in flight is counted at the most that a row has cost.
            assert spent + len(running) * dearest <= cap + 1e-9
        if not running:
            break
        cost = running.pop(0)
        spent, dearest = spent + cost, max(dearest, cost)
        budget.settle(cost)
    assert budget.spent == pytest.approx(spent)
    if known:
        assert spent <= cap + 1e-9
        assert not waiting or spent + max(costs) > cap - 1e-9


def test_without_a_known_cost_rows_go_one_at_a_time() -> None:
    budget = Budget(10)
    assert [budget.admit(), budget.admit()] == [Admission.START, Admission.WAIT]
    budget.settle(2)
    assert [budget.admit() for _ in range(5)] == [Admission.START] * 4 + [Admission.WAIT]


async def test_rows_are_worked_on_side_by_side_within_the_bound() -> None:
    inside, most = 0, 0

    async def work(_: ResultRow) -> RowEnd:
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        await asyncio.sleep(0)
        inside -= 1
        return RowEnd.DONE

    state = await run([row(n) for n in range(20)], work, in_flight=3)
    assert (most, state.ends[RowEnd.DONE], state.left, state.stopped) == (3, 20, 0, None)


async def test_asked_to_stop_it_finishes_what_is_in_flight() -> None:
    stop, seen = Stop(), []

    async def work(r: ResultRow) -> RowEnd:
        seen.append(r.id)
        if len(seen) == 2:
            stop.ask(StopReason.INTERRUPT)
        await asyncio.sleep(0)
        return RowEnd.DONE

    state = await run([row(n) for n in range(9)], work, in_flight=2, stop=stop)
    assert (seen, state.stopped, state.left) == (["r0", "r1"], StopReason.INTERRUPT, 7)


async def test_an_error_of_ours_cancels_the_others_and_is_raised() -> None:
    cancelled = []

    async def work(r: ResultRow) -> RowEnd:
        if r.id == "r1":
            raise KeyError("ours")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(r.id)
            raise
        return RowEnd.DONE

    with pytest.raises(KeyError, match="ours"):
        await run([row(n) for n in range(3)], work, in_flight=3)
    assert sorted(cancelled) == ["r0", "r2"]


async def test_the_state_adds_up_what_rows_used() -> None:
    async def work(_: ResultRow) -> RowEnd:
        record_usage("judge", Usage(calls=2, failed_calls=1, money=0.5, prompt_tokens=10))
        return RowEnd.FAILED

    state = await run([row(0), row(1)], work)
    assert state.usage == {"judge": Usage(calls=4, failed_calls=2, money=1.0, prompt_tokens=20)}
    line = job_line(state)
    assert "0/2 done, 2 failed" in line and "4 calls, 2 of them failed" in line and "cost 1" in line


class Doubling:
    """A stage of the tests: fails as often as it is told, and counts its calls."""

    kind = ResultRow

    def __init__(self, name: str, failing: int = 0) -> None:
        self.name, self.results, self.failing, self.calls = name, f"{name}.json", failing, 0

    async def do(self, r: ResultRow) -> tuple[dict[str, Any], RowEnd]:
        self.calls += 1
        record_usage(self.name, Usage(calls=1, money=0.25))
        failed = self.calls <= self.failing
        values = {**r.values, self.name: None if failed else f"{self.name} of {r.values.get('one', 'input')}"}
        return values, RowEnd.FAILED if failed else RowEnd.DONE

    def intact(self, kept: Mapping[str, Any]) -> bool:
        return kept[self.name] is not None


async def test_a_lane_keeps_what_is_done_and_only_the_rest_is_done_again(tmp_path: Path) -> None:
    rows = [row(0)]
    one, two = Doubling("one"), Doubling("two", failing=1)
    with Pipeline([(one, tmp_path), (two, tmp_path)]) as pipeline:
        assert await pipeline.work(rows[0]) is RowEnd.FAILED
        assert pipeline.pending(rows) == rows
    with Pipeline([(one, tmp_path), (two, tmp_path)]) as pipeline:
        assert await pipeline.work(rows[0]) is RowEnd.DONE
        assert pipeline.pending(rows) == []
        (made,) = pipeline.outputs(rows)
        assert pipeline.spent(rows) == [0.75]
    assert (one.calls, two.calls) == (1, 2)
    assert made.values["two"] == "two of one of input"
    # Every try counts, the one that failed as well.
    assert made.provenance["usage"]["two"] == {"two": {"calls": 2, "money": 0.5}}


async def test_a_changed_input_is_worked_on_again_in_every_lane(tmp_path: Path) -> None:
    one, two = Doubling("one"), Doubling("two")
    with Pipeline([(one, tmp_path), (two, tmp_path)]) as pipeline:
        await pipeline.work(row(0))
        assert pipeline.pending([row(0)]) == []
        assert pipeline.pending([row(0, question="a stork")]) != []
        await pipeline.work(row(0, question="a stork"))
    assert (one.calls, two.calls) == (2, 2)


def test_a_folder_keeps_to_its_settings(tmp_path: Path) -> None:
    claim_folder(tmp_path, "judge", {"judge": "a/1", "tools": {"top_k": 5}})
    claim_folder(tmp_path, "judge", {"tools": {"top_k": 5}, "judge": "a/1"})
    with pytest.raises(DataError, match=r"judge was 'a/1', is 'b/1'; tools.top_k was 5, is 4"):
        claim_folder(tmp_path, "judge", {"judge": "b/1", "tools": {"top_k": 4}})
    job_path(tmp_path, "judge").write_text("{")
    with pytest.raises(DataError, match="is corrupt"):
        claim_folder(tmp_path, "judge", {})


def test_the_line_is_printed_at_the_end_where_there_is_no_terminal() -> None:
    console = Console(file=None, record=True, width=40, force_terminal=False)
    state = JobState(total=3, kept=1)
    with JobLog("judge", console) as log:
        log.update(state)
        state.ended = state.started + 65
        state.ends[RowEnd.DONE] = 2
        log.update(state)
    assert console.export_text() == "judge: 3/3 done, 0.03 rows/s, 0 calls, 1:05\n"


def test_settings_of_a_job_hold_no_secret_and_another_secret_is_no_other_job(tmp_path: Path) -> None:
    claim_folder(tmp_path, "judge", {"judge": {"api_key": "in-plain-text", "model": "m"}})
    assert "in-plain-text" not in job_path(tmp_path, "judge").read_text()
    claim_folder(tmp_path, "judge", {"judge": {"api_key": "another-one", "model": "m"}})
    claim_folder(tmp_path, "judge", {"judge": {"api_key": "${MY_KEY}", "model": "m"}})
    with pytest.raises(DataError, match=r"judge\.model was 'm', is 'n'"):
        claim_folder(tmp_path, "judge", {"judge": {"api_key": "in-plain-text", "model": "n"}})
