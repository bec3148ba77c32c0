"""Threads of trackers: every committed step once, in order, and no failure or delay reaches the run."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic

import pytest
from tracker_fakes import ROW, Fed, RememberingTracker

from genevolve_ray.evolution.trackers.background import _may_pass


def record(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "trackers" / "memory.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_tracker_gets_each_step_with_its_alerts_and_pictures_and_the_summary(tmp_path: Path) -> None:
    fed = Fed(tmp_path, RememberingTracker())
    fed.play(0, [1, 2], {"steps": 2})
    assert fed.tracker.calls == [
        ("begin", 0),
        ("write", 1, {"reward_mean": 0.1, "committed_step": 1.0}),
        ("write", 2, {"reward_mean": 0.2, "committed_step": 2.0}),
        ("alert", 2, "entropy", "it falls"),
        ("pictures", 2, [ROW]),
        ("finish", 0, {"steps": 2}),
    ]
    assert fed.notes == []


def test_the_id_is_stored_in_the_run_without_secrets(tmp_path: Path) -> None:
    Fed(tmp_path, RememberingTracker()).play(0, [1])
    assert record(tmp_path) == {
        "schema_version": 1,
        "id": "own-demo-1a",
        "address": "https://***@tracker/1",
        "target": "here",
        "last_step": 1,
    }


def test_a_resumed_run_goes_on_after_the_last_step_that_the_tracker_has(tmp_path: Path) -> None:
    Fed(tmp_path, RememberingTracker(last_step=None)).play(0, [1, 2])
    resumed = Fed(tmp_path, RememberingTracker(last_step=None))
    resumed.play(2, [3])
    assert resumed.tracker.written == [3]


def test_what_the_tracker_itself_has_decides_before_the_record_of_the_run(tmp_path: Path) -> None:
    Fed(tmp_path, RememberingTracker()).play(0, [1, 2, 3])
    resumed = Fed(tmp_path, RememberingTracker(last_step=1))
    resumed.play(3, [])
    assert resumed.tracker.written == [2, 3]


def test_a_step_that_is_committed_again_after_a_crash_is_not_written_twice(tmp_path: Path) -> None:
    Fed(tmp_path, RememberingTracker(last_step=None)).play(0, [1, 2, 3])
    resumed = Fed(tmp_path, RememberingTracker(last_step=None))
    resumed.play(1, [2, 3, 4])
    assert resumed.tracker.written == [4]
    [note] = resumed.notes
    assert "has steps up to 3 from before the run was resumed after step 1" in note


def test_a_tracker_that_is_added_later_gets_the_whole_run_without_old_pictures(tmp_path: Path) -> None:
    fed = Fed(tmp_path, RememberingTracker())
    fed.play(3, [4])
    assert fed.tracker.written == [1, 2, 3, 4]
    assert [call[1] for call in fed.tracker.calls if call[0] == "pictures"] == [4]


def test_another_target_starts_from_the_first_step(tmp_path: Path) -> None:
    Fed(tmp_path, RememberingTracker(last_step=None)).play(0, [1, 2])
    moved = Fed(tmp_path, RememberingTracker(last_step=None, target="elsewhere"))
    moved.play(2, [])
    assert moved.tracker.written == [1, 2]


def test_a_failure_is_noted_once_without_secrets_and_counted(tmp_path: Path) -> None:
    tracker = RememberingTracker()
    tracker.fails = lambda call, step: call == "write" and step in (1, 2)
    fed = Fed(tmp_path, tracker)
    fed.thread.begin(0)
    for step in (1, 2, 3):
        fed.thread.committed(step)
    fed.reach(3)
    fed.end()
    assert tracker.written == [3]
    first, last = fed.notes
    assert first.startswith("tracker memory failed at step 1: write of step 1: no route")
    assert "sk-1234567890abcdef" not in first
    assert last == "tracker memory: 2 of 3 steps were not written, 2 calls failed"


@pytest.mark.parametrize(
    ("call", "error"), [("begin", ValueError), ("write", ConnectionError), ("write", TimeoutError)]
)
def test_a_tracker_that_is_down_for_long_loses_no_step(tmp_path: Path, call: str, error: type[Exception]) -> None:
    tracker, failed = RememberingTracker(), []
    tracker.error = error

    def down(name: str, step: int) -> bool:
        failed.append(name)
        return name == call and failed.count(name) <= 6

    tracker.fails = down
    fed = Fed(tmp_path, tracker, tries=2)
    fed.thread.begin(0)
    for step in (1, 2):
        fed.thread.committed(step)
    fed.reach(2)
    fed.end()
    assert (tracker.written, fed.thread.lost, fed.thread.failures) == ([1, 2], 0, 6)


def test_a_connection_that_failed_is_known_below_the_error_of_the_library() -> None:
    class Wrapped(Exception):
        pass

    def wrapped(error: Exception) -> Exception:
        try:
            try:
                raise error
            except type(error):
                raise Wrapped("the request failed")  # noqa: B904
        except Wrapped as outer:
            return outer

    assert _may_pass(wrapped(ConnectionResetError()))
    assert not _may_pass(wrapped(ValueError())) and not _may_pass(FileNotFoundError())


def test_a_tracker_that_is_down_to_the_end_does_not_hold_up_the_end(tmp_path: Path) -> None:
    tracker = RememberingTracker()
    tracker.error, tracker.fails = ConnectionError, lambda call, step: call == "begin"
    fed = Fed(tmp_path, tracker)
    fed.thread.begin(0)
    fed.thread.committed(1)
    fed.end()
    assert "1 of 1 steps were not written" in fed.notes[-1] and "not closed in time" not in fed.notes[-1]


def test_a_step_that_was_given_up_is_not_recorded_as_written(tmp_path: Path) -> None:
    tracker = RememberingTracker(last_step=None)
    tracker.fails = lambda call, step: call == "write" and step == 2
    fed = Fed(tmp_path, tracker)
    fed.thread.begin(0)
    for step in (1, 2):
        fed.thread.committed(step)
    fed.reach(2)
    fed.end()
    assert (fed.thread.lost, record(tmp_path)["last_step"]) == (1, 1)


def test_alerts_of_steps_from_before_the_start_are_not_sent(tmp_path: Path) -> None:
    fed = Fed(tmp_path, RememberingTracker())
    fed.play(2, [])
    assert fed.tracker.written == [1, 2]
    assert not [call for call in fed.tracker.calls if call[0] in ("alert", "pictures")]


def test_failing_pictures_and_alerts_cost_no_step(tmp_path: Path) -> None:
    tracker = RememberingTracker()
    tracker.fails = lambda call, step: call in ("pictures", "alert")
    fed = Fed(tmp_path, tracker)
    fed.play(0, [1, 2, 3])
    assert tracker.written == [1, 2, 3]
    assert fed.notes[-1] == "tracker memory: 0 of 3 steps were not written, 2 calls failed"


def test_a_tracker_that_blocks_delays_neither_steps_nor_the_end(tmp_path: Path) -> None:
    tracker = RememberingTracker()
    tracker.gate.clear()
    fed = Fed(tmp_path, tracker)
    fed.thread.begin(0)
    began = monotonic()
    for step in range(1, 1001):
        fed.thread.committed(step)
    fed.end(seconds=0.05)
    assert monotonic() - began < 5
    assert fed.notes == [
        "tracker memory: 1000 of 1000 steps were not written, 0 calls failed, and it was not closed in time"
    ]
    assert tracker.calls == [("abandon", 0)]
    tracker.fails = lambda call, step: True
    tracker.gate.set()
    fed.thread._thread.join(30)


def test_steps_that_a_tracker_missed_are_written_at_the_next_start(tmp_path: Path) -> None:
    down = RememberingTracker(last_step=None)
    down.fails = lambda call, step: step >= 2
    first = Fed(tmp_path, down, tries=5)
    first.play(0, [1, 2, 3])
    assert record(tmp_path)["last_step"] == 1
    again = Fed(tmp_path, RememberingTracker(last_step=None))
    again.play(3, [])
    assert again.tracker.written == [2, 3]


def test_an_interrupted_run_ends_its_trackers_without_a_summary(tmp_path: Path) -> None:
    fed = Fed(tmp_path, RememberingTracker())
    fed.play(0, [1])
    assert fed.tracker.calls[-1] == ("finish", 0, None)
