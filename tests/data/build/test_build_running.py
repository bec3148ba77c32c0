from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.data.build.journal import JournalFault, StageJournal
from genevolve_ray.data.build.rows import OUTAGE
from genevolve_ray.data.build.running import BuildCounts, journal_folder, run_in_process, used_before
from genevolve_ray.data.build.stage import (
    CapConfig,
    PictureUnusable,
    RowInterrupted,
    StageBudget,
    StageWorker,
)
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.remote.client import ServiceRefusal, UnusableAnswer
from tests.build_stages import NumberRow, calls_of, number_plans, number_rows

ROWS = 20
ALL_CALLS = sorted(f"{name}-{number}" for name in ("doubled", "tripled") for number in range(ROWS))


def carry(folder: Path, rows: int = ROWS, **settings: object) -> BuildCounts:
    return asyncio.run(run_in_process(number_rows(rows), number_plans(folder / "calls", **settings), folder))


def results(folder: Path, stage: str = "tripled") -> list[NumberRow]:
    plan = next(plan for plan in number_plans(folder / "calls") if plan.name == stage)
    with StageJournal(journal_folder(folder, plan), plan.name, plan.kind) as journal:
        return list(journal.rows())


def test_each_row_passes_all_stages(tmp_path: Path) -> None:
    progress = carry(tmp_path)

    assert progress.ended == ROWS
    assert [(row.doubled, row.tripled) for row in results(tmp_path)] == [(2 * n, 3 * n) for n in range(ROWS)]


def test_a_second_run_makes_no_call(tmp_path: Path) -> None:
    carry(tmp_path)
    first = results(tmp_path)
    carry(tmp_path)

    assert calls_of(tmp_path / "calls") == ALL_CALLS
    assert results(tmp_path) == first


def test_a_rejected_row_is_passed_on_without_further_calls(tmp_path: Path) -> None:
    progress = carry(tmp_path, odd=True)

    assert progress.rejected == {("doubled", "odd"): ROWS // 2}
    assert progress.ended == ROWS
    assert f"tripled-{1}" not in calls_of(tmp_path / "calls")


def test_a_row_whose_service_failed_is_made_again(tmp_path: Path) -> None:
    progress = carry(tmp_path, outages=frozenset({3}))
    assert progress.rejected == {("doubled", OUTAGE): 1}
    assert progress.outages == 1

    assert carry(tmp_path).outages == 0
    assert results(tmp_path)[3].tripled == 9
    assert calls_of(tmp_path / "calls") == sorted([*ALL_CALLS, "doubled-3"])


def test_the_usage_of_all_tries_adds_up(tmp_path: Path) -> None:
    carry(tmp_path, outages=frozenset({3}), cost=0.5)
    carry(tmp_path, cost=0.5)
    plan = number_plans(tmp_path / "calls")[0]

    with StageJournal(journal_folder(tmp_path, plan), plan.name, plan.kind) as journal:
        assert journal.usage == {"null": Usage(calls=ROWS + 1, money=0.5 * (ROWS + 1))}


def test_a_cap_in_calls_holds_the_other_rows_back(tmp_path: Path) -> None:
    progress = carry(tmp_path, cap=CapConfig(calls=7))

    assert progress.ended == 7
    assert progress.held == {"doubled": ROWS - 7}
    assert sum(name.startswith("doubled") for name in calls_of(tmp_path / "calls")) == 7


def test_a_cap_in_money_counts_earlier_runs(tmp_path: Path) -> None:
    assert carry(tmp_path, cost=1.0, cap=CapConfig(money=5.0)).ended == 5
    assert carry(tmp_path, cost=1.0, cap=CapConfig(money=8.0)).ended == 8
    assert len(calls_of(tmp_path / "calls")) == 2 * 8


def test_a_cap_in_seconds_starts_no_further_row(tmp_path: Path) -> None:
    progress = carry(tmp_path, cap=CapConfig(seconds=1e-9))

    assert progress.held == {"doubled": ROWS}


def test_a_truncated_line_is_made_again(tmp_path: Path) -> None:
    carry(tmp_path)
    first = results(tmp_path)
    plan = number_plans(tmp_path / "calls")[1]
    (segment,) = journal_folder(tmp_path, plan).iterdir()
    segment.write_bytes(segment.read_bytes()[:-5])
    carry(tmp_path)

    assert results(tmp_path) == first
    assert len(calls_of(tmp_path / "calls")) == len(ALL_CALLS) + 1


def test_a_line_of_another_form_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    line = '{"id": "x", "open": false, "kept": true, "usage": {"a": {"prise": 1}}, "row": {}}\n'
    (tmp_path / "other.jsonl").write_text(line)

    with pytest.raises(JournalFault, match=r"other\.jsonl: byte 0"):
        StageJournal(tmp_path, "doubled", NumberRow)


def test_a_row_of_another_kind_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"id": "x", "open": false, "kept": true, "usage": {}, "row": {}}\n')

    with StageJournal(tmp_path, "doubled", NumberRow) as journal, pytest.raises(JournalFault, match=r"other\.jsonl"):
        journal.get("x")


def test_what_never_reached_the_disk_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = number_rows(1)[0]
    with StageJournal(tmp_path, "doubled", NumberRow) as journal:
        journal.append(row, {})
    (segment,) = tmp_path.iterdir()
    segment.write_bytes(b"\0" * 40 + b"\n" + segment.read_bytes())

    with StageJournal(tmp_path, "doubled", NumberRow) as journal:
        assert list(journal.rows()) == [row]
    assert "byte 0 begins no line of a journal" in caplog.text


def test_odd_texts_and_ids_survive(tmp_path: Path) -> None:
    row = NumberRow(id='a/b", "row": \u2028\n', number=1).reject("doubled", "odd", "half a pair \ud83d", "x\u2028y")
    with StageJournal(tmp_path, "doubled", NumberRow) as journal:
        journal.append(row, {})

    with StageJournal(tmp_path, "doubled", NumberRow) as journal:
        assert journal.get(row.id) == row


def test_a_journal_shows_what_another_process_appended(tmp_path: Path) -> None:
    row = number_rows(1)[0].model_copy(update={"doubled": 5})
    with StageJournal(tmp_path, "doubled", NumberRow) as reader, StageJournal(tmp_path, "doubled", NumberRow) as writer:
        assert reader.get(row.id) is None
        writer.append(row, {})
        assert reader.get(row.id) == row


KILLED = """
import asyncio, os, sys
from pathlib import Path
from genevolve_ray.data.build.running import run_in_process
from tests.build_stages import number_plans, number_rows
folder, after = Path(sys.argv[1]), int(sys.argv[2])
def watch(progress):
    if progress.ended == after:
        os.kill(os.getpid(), 9)
asyncio.run(run_in_process(number_rows(20), number_plans(folder / "calls"), folder, watch))
"""


@pytest.mark.parametrize("after", [1, 7, 19])
def test_a_killed_run_repeats_no_finished_call(tmp_path: Path, after: int) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(after)], env=env, check=False)
    assert died.returncode == -signal.SIGKILL
    finished = len(results(tmp_path))
    carry(tmp_path)

    assert finished >= after
    assert [row.tripled for row in results(tmp_path)] == [3 * n for n in range(ROWS)]
    repeated = len(calls_of(tmp_path / "calls")) - len(ALL_CALLS)
    assert 0 <= repeated <= 16, "only calls in flight at the end may be repeated"


async def test_a_row_of_a_dead_worker_takes_its_reservation_over() -> None:
    budget = StageBudget(CapConfig(calls=2), Usage())
    assert await budget.admit("first")
    await budget.settle("first", Usage(calls=1))

    assert await budget.admit("second")
    assert await budget.admit("second"), "another worker does the row again"
    await budget.settle("second", Usage(calls=1))
    assert not await budget.admit("third")


class Failing:
    """Fail on some numbers as it is told to, and keep what was done before a failure."""

    def __init__(self, failures: dict[int, InfraFailure]) -> None:
        self.failures, self.began = failures, list[int]()

    async def do(self, row: NumberRow) -> NumberRow:
        if not row.doubled:
            self.began.append(row.number)
            row = row.model_copy(update={"doubled": 2 * row.number})
        if row.number in self.failures:
            raise RowInterrupted(row, self.failures[row.number])
        return row


def worker(folder: Path, stage: Failing) -> StageWorker[NumberRow]:
    plan = number_plans(folder / "calls")[0]
    journal = StageJournal(journal_folder(folder, plan), plan.name, plan.kind)
    return StageWorker(plan, stage, journal, StageBudget(CapConfig(), Usage()))


async def test_what_was_done_before_a_failure_is_not_done_again(tmp_path: Path) -> None:
    row = number_rows(8)[7]
    failing = Failing({7: InfraFailure("the grader is down")})
    for _ in range(2):
        done = await worker(tmp_path, failing).carry(row)
        assert done is not None and done.rejected is not None and done.rejected.reason == OUTAGE
    failing.failures.clear()
    done = await worker(tmp_path, failing).carry(row)

    assert done is not None and done.rejected is None and done.doubled == 14
    assert failing.began == [7]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ServiceRefusal("no", 400), "refused"),
        (ServiceRefusal("wrong key", 401), OUTAGE),
        (UnusableAnswer("no grades"), "unusable_answer"),
        (PictureUnusable("no picture"), "unusable_picture"),
        (InfraFailure("down"), OUTAGE),
    ],
)
async def test_a_failure_that_would_come_again_rejects_the_row_where_others_were_served(
    tmp_path: Path, failure: InfraFailure, reason: str
) -> None:
    one, other = number_rows(9)[7:]
    failing = Failing({7: failure})
    before = await worker(tmp_path, failing).carry(one)
    await worker(tmp_path, failing).carry(other)
    after = await worker(tmp_path, failing).carry(one)

    assert before is not None and before.rejected is not None and before.rejected.reason == OUTAGE
    assert after is not None and after.rejected is not None and after.rejected.reason == reason


async def test_the_usage_of_a_row_that_is_cut_off_is_kept(tmp_path: Path) -> None:
    class Endless:
        async def do(self, row: NumberRow) -> NumberRow:
            record_usage("null", Usage(calls=1, money=2.0))
            begun.set()
            await asyncio.Event().wait()
            return row

    begun = asyncio.Event()
    endless: Any = Endless()
    working = asyncio.create_task(worker(tmp_path, endless).carry(number_rows(1)[0]))
    await begun.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    plan = number_plans(tmp_path / "calls")[0]

    assert used_before(tmp_path, plan) == Usage(calls=1, money=2.0)


async def test_a_resumed_cap_reserves_the_dearest_row_so_far(tmp_path: Path) -> None:
    budget = StageBudget(CapConfig(money=10.0), Usage(money=9.0), Usage(money=2.0))

    assert not await budget.admit("next")
