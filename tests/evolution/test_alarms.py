"""Collapse alarms on constructed histories: what raises each, what does not, and what a resumed run knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRollouts, Scene, evolve, make_config

from genevolve_ray.errors import as_ending
from genevolve_ray.evolution.alarms import Alarm, AlarmName, AlarmsConfig, AlarmStop, AlarmWatch, alarm_periods
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.trajectory import Outcome

HEALTHY = {
    "tool_calls_mean": 4.0,
    "valid_fraction": 0.95,
    "entropy": 0.06,
    "ved_gap_abs": 0.1,
    "ved_gap_turn_slope": -0.03,
    "zero_variance_fraction": 0.1,
    "experience_hit_rate": 0.7,
    "parity": 1e-6,
}
DYING = {
    AlarmName.TOOL_USE: {"tool_calls_mean": 1.9},
    AlarmName.VALID: {"valid_fraction": 0.66},
    AlarmName.ENTROPY: {"entropy": 0.0149},
    AlarmName.TEACHER_GAP: {"ved_gap_abs": 0.31},
    AlarmName.TURN_GAP: {"ved_gap_turn_slope": 0.021},
    AlarmName.EQUAL_GROUPS: {"zero_variance_fraction": 0.8},
    AlarmName.HIT_RATE: {"experience_hit_rate": 0.17},
    AlarmName.PARITY: {"parity": 2.6e-5},
}
"""A value of each alarm's metric that is just beyond its default limit."""
NEARLY = {
    AlarmName.TOOL_USE: {"tool_calls_mean": 2.1},
    AlarmName.VALID: {"valid_fraction": 0.67},
    AlarmName.ENTROPY: {"entropy": 0.0151},
    AlarmName.TEACHER_GAP: {"ved_gap_abs": 0.29},
    AlarmName.TURN_GAP: {"ved_gap_turn_slope": 0.019},
    AlarmName.EQUAL_GROUPS: {"zero_variance_fraction": 0.75},
    AlarmName.HIT_RATE: {"experience_hit_rate": 0.18},
    AlarmName.PARITY: {"parity": 2.4e-5},
}
Rows = list[dict[str, Any]]


def rows(*parts: tuple[int, dict[str, Any]]) -> Rows:
    """Rows of metrics: for each part so many steps with these values in place of healthy ones."""
    listed = [HEALTHY | changes for count, changes in parts for _ in range(count)]
    return [{"step": step, **row} for step, row in enumerate(listed, 1)]


def watched(history: Rows, watch: AlarmWatch | None = None) -> list[tuple[int, Alarm]]:
    """Return (step, alarm) of everything that is raised."""
    watch, found = watch or AlarmWatch(parity_limit=1e-4), []
    for row in history:
        watch, raised = watch.after(row["step"], row)
        found += [(row["step"], alarm) for alarm in raised]
    return found


@pytest.mark.parametrize("name", AlarmName)
def test_an_alarm_is_raised_after_its_patience_and_said_once(name: AlarmName) -> None:
    [(step, alarm)] = watched(rows((8, {}), (20, DYING[name])))
    assert (step, alarm.name) == (13, name)
    assert "for 5 steps (start: " in alarm.text
    assert "Try " in alarm.text or "Look for " in alarm.text


@pytest.mark.parametrize("name", AlarmName)
def test_a_value_within_the_limit_raises_nothing(name: AlarmName) -> None:
    assert watched(rows((8, {}), (30, NEARLY[name]))) == []


@pytest.mark.parametrize("name", AlarmName)
def test_four_steps_of_five_raise_nothing(name: AlarmName) -> None:
    assert watched(rows((8, {}), *[(4, DYING[name]), (1, {})] * 5)) == []


@pytest.mark.parametrize("name", AlarmName)
def test_an_alarm_that_is_off_says_nothing(name: AlarmName) -> None:
    watch = AlarmWatch(AlarmsConfig(**{name.value: None}), 1e-4)
    assert watched(rows((8, {}), (20, DYING[name])), watch) == []
    assert f"alarm_{name.value}" not in watch.metrics()


def test_noise_raises_nothing() -> None:
    """A factor between 0.4 and 1.6 at every step, as small batches have it."""
    source = random.Random(7)
    history = [
        {k: v if k == "step" else v * source.uniform(0.4, 1.6) for k, v in row.items()} for row in rows((200, {}))
    ]
    assert watched(history) == []


def test_the_first_steps_are_the_start_and_raise_nothing() -> None:
    assert watched(rows((40, DYING[AlarmName.ENTROPY]))) == []


def test_one_odd_step_does_not_move_the_start() -> None:
    history = rows((2, {}), (1, {"tool_calls_mean": 400.0}), (20, {}))
    assert watched(history) == []


def test_a_healthy_step_in_between_does_not_clear_an_alarm_and_patience_does() -> None:
    watch = AlarmWatch(parity_limit=1e-4)
    dying = DYING[AlarmName.ENTROPY]
    history = rows((8, {}), (5, dying), (1, {}), (1, dying), (5, {}), (5, dying))
    seen = []
    for row in history:
        watch, raised = watch.after(row["step"], row)
        seen.append((row["step"], watch.metrics()["alarm_entropy"], len(raised)))
    assert [step for step, _, raised in seen if raised] == [13, 25]
    assert [step for step, active, _ in seen if active] == [*range(13, 20), 25]


def test_a_step_without_the_metric_says_nothing() -> None:
    without = {"ved_gap_abs": None, "ved_gap_turn_slope": float("nan"), "experience_hit_rate": None}
    dying = DYING[AlarmName.TEACHER_GAP]
    history = rows((8, {}), (3, dying), (4, without), (2, dying))
    assert [(step, alarm.name) for step, alarm in watched(history)] == [(17, AlarmName.TEACHER_GAP)]


def test_a_rounding_error_of_parity_raises_nothing_however_often_it_doubles() -> None:
    history = rows((8, {"parity": 0.0}), (30, {"parity": 2.4e-5}))
    assert watched(history) == []


@pytest.mark.parametrize("cut", range(1, 28))
def test_a_resumed_run_comes_to_the_same_alarms(cut: int) -> None:
    history = rows((8, {}), (7, DYING[AlarmName.VALID]), (7, {}), (6, DYING[AlarmName.VALID]))
    whole = AlarmWatch(parity_limit=1e-4).after_all(history)
    resumed = AlarmWatch(parity_limit=1e-4).after_all(history[:cut])
    assert resumed.after_all(history[cut:]) == whole
    later = watched(history[cut:], resumed)
    assert later == [found for found in watched(history) if found[0] > cut]


def test_a_stop_needs_an_alarm_that_is_on() -> None:
    with pytest.raises(ValueError, match=r"alarms.stop names entropy, but alarms.entropy is null"):
        AlarmsConfig(entropy=None, stop=(AlarmName.ENTROPY,))


def test_periods_are_read_from_the_rows() -> None:
    marks = [0, 1, 1, 0, 1]
    history: Rows = [{"step": step, "alarm_valid": float(mark)} for step, mark in enumerate(marks, 1)]
    assert alarm_periods(history) == [("valid", 2, 3), ("valid", 5, None)]
    assert alarm_periods([{"step": 1, "reward_mean": 0.5}]) == []


# --- in the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def fails_from(step: int) -> Callable[[RolloutTask], Outcome]:
    return lambda task: Outcome.POLICY_FAILURE if task.key.step >= step and task.key.sample else Outcome.SCORED


ALARMS = {"warmup": 2, "patience": 2}
RAISED = {"alarm_valid": [0, 0, 0, 1, 1, 1]}


async def test_a_run_stores_its_alarms_and_says_them(scene: Scene) -> None:
    config = make_config(steps=6, alarms=ALARMS)
    evolution = scene.begin(config, FakeRollouts(fails_from(3)))
    await evolve(evolution)
    store = evolution.store
    assert {"alarm_valid": [row["alarm_valid"] for row in store.metrics()]} == RAISED
    told = {m.step: [alarm["name"] for alarm in m.loop["alarms"]] for m in store.manifests()}
    assert told == {1: [], 2: [], 3: [], 4: ["valid"], 5: [], 6: []}
    [note] = [note for note in evolution.monitor.notes if "alarm" in note]  # type: ignore[attr-defined]
    assert note.startswith("step 4, alarm valid: the share of valid programs is 0.5, below the limit of 0.7")


async def test_an_alarm_that_stops_leaves_a_checkpoint_and_the_run_resumes(scene: Scene) -> None:
    config = make_config(steps=6, alarms=ALARMS | {"stop": ["valid"]})
    first = scene.begin(config, FakeRollouts(fails_from(3)))
    with pytest.raises(AlarmStop, match=r"stopped after step 4.*by alarms.stop=valid") as caught:
        await evolve(first)
    ending = as_ending(caught.value)
    assert ending is not None and ending[1] == 4
    assert (first.store.last_step, [c.step for c in first.store.checkpoints()]) == (4, [4])
    resumed = scene.begin(config, FakeRollouts(fails_from(3)), FakeLearner())
    await evolve(resumed)
    assert {"alarm_valid": [row["alarm_valid"] for row in resumed.store.metrics()]} == RAISED
    assert [m.step for m in resumed.store.manifests() if m.loop["alarms"]] == [4]
    assert "alarm valid is raised since step 4" in resumed.monitor.notes  # type: ignore[attr-defined]


async def test_the_last_step_ends_the_run_whatever_is_raised(scene: Scene) -> None:
    config = make_config(steps=4, alarms=ALARMS | {"stop": ["valid"]})
    evolution = scene.begin(config, FakeRollouts(fails_from(3)))
    await evolve(evolution)
    assert evolution.store.last_step == 4


async def test_a_stored_step_has_the_truths_of_its_requests(scene: Scene) -> None:
    evolution = scene.begin(make_config(steps=1))
    await evolve(evolution)
    assert set(evolution.store.manifest(1).loop["truths"]) == {"train-0", "train-1"}
