"""The status file of a run: what it says, that it never fails a run, and that runs and stores do without it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from loop_fakes import make_trajectory
from rich.console import Console
from store_helpers import CONFIG, take_step

from genevolve_ray.evolution import status as status_module
from genevolve_ray.evolution.alarms import AlarmStop
from genevolve_ray.evolution.status import NOTES, STATUS_FILE, RunPhase, RunStatus, StatusFile, read_status
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import SampleKey
from genevolve_ray.viewer.progress import PlainProgress
from genevolve_ray.viewer.recorded import RecordedProgress


def status_in(folder: Path) -> RunStatus:
    found = read_status((folder / STATUS_FILE).read_bytes())
    assert found is not None
    return found


def recorded(folder: Path) -> RecordedProgress:
    return RecordedProgress(PlainProgress(Console(quiet=True)), folder)


def test_the_file_says_what_the_run_does(tmp_path: Path) -> None:
    with recorded(tmp_path) as progress:
        progress.start(8, {}, 2)
        progress.phase("rollouts", 0, 4)
        progress.trajectory(make_trajectory(SampleKey(step=3, request_id="r", sample=0)))
        progress.note("the judge was slow")
        progress.close()
    status = status_in(tmp_path)
    assert (status.step, status.steps, status.phase, status.done, status.total) == (2, 8, "rollouts", 1, 4)
    assert status.outcomes == {"scored": 1}
    assert [note.text for note in status.notes] == ["the judge was slow"]


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (None, RunPhase.FINISHED, ""),
        (asyncio.CancelledError(), RunPhase.STOPPED, ""),
        (KeyboardInterrupt(), RunPhase.STOPPED, ""),
        (AlarmStop("entropy"), RunPhase.ALARM, "entropy"),
        (ValueError("broken"), RunPhase.FAILED, "ValueError: broken"),
    ],
)
def test_the_file_says_how_the_run_ended(
    tmp_path: Path, error: BaseException | None, state: RunPhase, told: str
) -> None:
    progress = recorded(tmp_path)
    progress.__enter__()
    progress.start(8, {})
    progress.phase("learning", 0, 4)
    progress.__exit__(type(error) if error else None, error, None)
    status = status_in(tmp_path)
    assert (status.state, status.error, status.phase) == (state, told, "")


def test_a_file_that_cannot_be_written_is_one_note(tmp_path: Path) -> None:
    told: list[str] = []
    status = StatusFile(tmp_path / "gone", told.append, seconds=0.0)
    status.start()
    for _ in range(3):
        status.change(step=1)
    status.close()
    (note,) = told
    assert "cannot write" in note
    assert str(tmp_path / "gone" / STATUS_FILE) in note


def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, gate = [], threading.Event()
    monkeypatch.setattr(status_module, "_CLOSE", 0.01)
    status = StatusFile(tmp_path, told.append)
    monkeypatch.setattr(status, "_write", lambda: gate.wait(30))
    status.start()
    status.close()
    status.close()
    gate.set()
    (note,) = told
    assert "was not written within 0.01 s" in note


def test_only_the_newest_notes_stay(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, print)
    status.start()
    for number in range(NOTES + 5):
        status.note(str(number))
    status.close()
    assert [note.text for note in status_in(tmp_path).notes] == [str(n) for n in range(5, NOTES + 5)]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"unknown": 1}', b'{"step": "x"}', b"\xff"])
def test_a_file_that_is_none_is_no_status(data: bytes) -> None:
    assert read_status(data) is None


def test_a_run_is_resumed_beside_any_status_file(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        take_step(store, 1)
        metrics = store.metrics()
    (tmp_path / "run" / STATUS_FILE).write_bytes(b"half a fi")
    (tmp_path / "run" / ".tmp-status.json").write_bytes(b"left")
    with RunStore.open(str(tmp_path / "run"), CONFIG, create=False) as store:
        assert store.metrics() == metrics
        take_step(store, 2)
    assert RunStore.read(str(tmp_path / "run")).last_step == 2
    assert not (tmp_path / "run" / ".tmp-status.json").exists()
