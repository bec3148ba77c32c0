"""Collapse alarms: the known ways in which self-distillation dies, watched in the metrics of committed steps.

Each alarm compares a metric with a limit, for most of them relative to the median over the first steps of the same run.
It is raised when the metric was beyond its limit for some steps in a row, and cleared when it was within for as many. A
watch is a pure function of the rows of `metrics.jsonl`: a resumed run comes to the same state, and nothing is said twice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pydantic import Field, model_validator

from genevolve_ray.errors import RunError
from genevolve_ray.records.base import Config, Record

PREFIX = "alarm_"
"""An alarm's metric is `alarm_NAME`: 1 while it is raised, 0 otherwise."""
_PARITY_SHARE = 0.25
"""Share of `loop.parity_limit` below which parity raises no alarm: rounding alone moves it there."""

Row = Mapping[str, Any]


class AlarmName(StrEnum):
    """Name the alarms."""

    TOOL_USE = "tool_use"
    """Fewer tool calls a trajectory than at the start."""
    VALID = "valid"
    """A smaller share of valid programs than at the start."""
    ENTROPY = "entropy"
    """Less entropy of the policy's tokens than at the start."""
    TEACHER_GAP = "teacher_gap"
    """The policy and its teacher disagree more than at the start."""
    TURN_GAP = "turn_gap"
    """That disagreement grows with the turns of a trajectory."""
    EQUAL_GROUPS = "equal_groups"
    """Most groups have equal rewards."""
    HIT_RATE = "hit_rate"
    """Fewer requests recall experience than at the start."""
    PARITY = "parity"
    """Engine and learner disagree more than at the start."""


class AlarmsConfig(Config):
    """Configure the collapse alarms (docs/reliability.md); an alarm whose limit is null is off."""

    warmup: int = Field(default=5, ge=1)
    """First steps of a run, whose median is the start that later steps are compared with."""
    patience: int = Field(default=5, ge=1)
    """Steps in a row beyond a limit before an alarm is raised, and within it before it is cleared."""
    tool_use: float | None = Field(default=0.5, gt=0, lt=1)
    """Alarm below this share of the tool calls a trajectory of the start."""
    valid: float | None = Field(default=0.7, gt=0, lt=1)
    """Alarm below this share of the valid fraction of the start."""
    entropy: float | None = Field(default=0.25, gt=0, lt=1)
    """Alarm below this share of the entropy of the start."""
    teacher_gap: float | None = Field(default=3.0, gt=1)
    """Alarm above this multiple of the mean |log pi - log q| of the start."""
    turn_gap: float | None = Field(default=0.2, gt=0)
    """Alarm when that gap grows from turn to turn by this share of its mean; a growth that the start had is added."""
    equal_groups: float | None = Field(default=0.75, gt=0, lt=1)
    """Alarm above this share of groups whose attempts have equal rewards."""
    hit_rate: float | None = Field(default=0.25, gt=0, lt=1)
    """Alarm below this share of the hit rate of the start."""
    parity: float | None = Field(default=2.0, gt=1)
    """Alarm above this multiple of the parity of the start, from a quarter of `loop.parity_limit` on."""
    stop: tuple[AlarmName, ...] = ()
    """Alarms that end the run after the step is committed, with a checkpoint and exit code 4; it can be resumed."""

    @model_validator(mode="after")
    def _stops_are_on(self) -> AlarmsConfig:
        if off := [name.value for name in self.stop if self.limit(name) is None]:
            raise ValueError(f"alarms.stop names {', '.join(off)}, but alarms.{off[0]} is null: give it a limit")
        return self

    def limit(self, name: AlarmName) -> float | None:
        """Return the configured limit of an alarm, None where it is off."""
        found: float | None = getattr(self, name.value)
        return found


class Alarm(Record):
    """Tell in words that an alarm is raised; a step's manifest keeps those that it raised under `loop`."""

    name: AlarmName
    text: str


class AlarmStop(RunError):
    """End a run for an alarm that `alarms.stop` names. Its step is committed, and the same command resumes it."""

    exit_code = 4


@dataclass(frozen=True)
class _Rule:
    """Describe an alarm: what it measures, its limit by the start, and the words."""

    measured: str
    value: Callable[[Row], float | None]
    bound: Callable[[float, float], float]
    """Returns the limit from the configured value and the start."""
    above: bool
    words: str

    def beyond(self, value: float, limit: float) -> bool:
        """Return whether a value is beyond a limit."""
        return value > limit if self.above else value < limit


def _metric(name: str) -> Callable[[Row], float | None]:
    return lambda row: _number(row.get(name))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _turn_growth(row: Row) -> float | None:
    """Return by which share of its mean the teacher's gap grows from turn to turn."""
    slope, mean = _number(row.get("ved_gap_turn_slope")), _number(row.get("ved_gap_abs"))
    return slope / mean if slope is not None and mean else None


_RULES: Mapping[AlarmName, _Rule] = {
    AlarmName.TOOL_USE: _Rule(
        "tool calls a trajectory",
        _metric("tool_calls_mean"),
        lambda share, start: share * start,
        above=False,
        words="The policy stops using its tools and draws from memory. Rewards often follow only later, and attempts without "
        "search teach none. Try a lower reward.call_cost, a lower learner.ved.coefficient, or a learner.kl.coefficient above 0",
    ),
    AlarmName.VALID: _Rule(
        "the share of valid programs",
        _metric("valid_fraction"),
        lambda share, start: share * start,
        above=False,
        words="More and more attempts end without a program that can be drawn, so that the policy forgets its format. Try a "
        "lower learner.lr, a learner.kl.coefficient above 0, or the checkpoint before the fall as policy.model of a new run",
    ),
    AlarmName.ENTROPY: _Rule(
        "the entropy of a token in nats",
        _metric("entropy"),
        lambda share, start: share * start,
        above=False,
        words="The policy becomes deterministic: the attempts of a group become one, and nothing is left to compare. Try a "
        "higher sampling.temperature, a lower learner.lr or learner.ved.coefficient, or a higher learner.grpo.clip_high",
    ),
    AlarmName.TEACHER_GAP: _Rule(
        "the mean |log pi - log q| of policy and teacher in nats",
        _metric("ved_gap_abs"),
        lambda multiple, start: multiple * start,
        above=True,
        words="The teacher that reads experience and the policy drift apart, and the distillation pulls ever harder. Try a "
        "lower learner.ved.coefficient or learner.ved.gap_clip, and look at what the recalled experience says",
    ),
    AlarmName.TURN_GAP: _Rule(
        "the growth of the teacher's gap a turn, as a share of its mean",
        _turn_growth,
        lambda growth, start: max(0.0, start) + growth,
        above=True,
        words="Policy and teacher disagree more with every turn: late turns follow from early ones that the teacher would not "
        "have taken, so its scores of them are noise. Try a lower learner.ved.coefficient, or fewer turns in the profile",
    ),
    AlarmName.EQUAL_GROUPS: _Rule(
        "the share of groups with equal rewards",
        _metric("zero_variance_fraction"),
        lambda share, start: share,
        above=True,
        words="These groups have no advantage to learn from and no best and worst to compare, so most of a step is paid for "
        "nothing. Try harder or more varied requests, a larger loop.group_size, or a judge with finer grades",
    ),
    AlarmName.HIT_RATE: _Rule(
        "the share of requests that recall experience",
        _metric("experience_hit_rate"),
        lambda share, start: share * start,
        above=False,
        words="The distillation has hardly any request left to teach. Either attempts no longer differ by experience.min_gap "
        "(experience_pairs falls), or new requests are unlike remembered ones. Try a lower experience.memory.threshold",
    ),
    AlarmName.PARITY: _Rule(
        "the parity of engine and learner in nats",
        _metric("parity"),
        lambda multiple, start: multiple * start,
        above=True,
        words="The learner weighs tokens by log-probs that the engine does not have, and the run stops at loop.parity_limit. "
        "Look for a change of versions, dtype or quantization on the engine's side, and for stale weights",
    ),
}


@dataclass(frozen=True)
class _State:
    """Hold what one alarm has seen so far."""

    start: tuple[float, ...] = ()
    beyond: int = 0
    within: int = 0
    since: int = 0
    """The step that raised it, 0 while it is not raised."""


@dataclass(frozen=True)
class AlarmWatch:
    """Watch the metrics of steps; immutable, so that a step that is repeated before its commit counts once."""

    config: AlarmsConfig = field(default_factory=AlarmsConfig)
    parity_limit: float = math.inf
    states: Mapping[AlarmName, _State] = field(default_factory=dict)

    def after(self, step: int, row: Row) -> tuple[AlarmWatch, tuple[Alarm, ...]]:
        """Return the watch after a step with its metrics, and the alarms that this step raises."""
        states, raised = dict(self.states), []
        for name, rule in self._rules():
            value = rule.value(row)
            if value is None:  # A step without the metric says nothing, such as one that taught nothing.
                continue
            before = states.get(name, _State())
            if len(before.start) < self.config.warmup:
                states[name] = replace(before, start=(*before.start, value))
                continue
            limit = self._limit(name, rule, before)
            state = self._moved(before, step, beyond=rule.beyond(value, limit))
            states[name] = state
            if state.since and not before.since:
                raised.append(Alarm(name=name, text=self._text(rule, before, value, limit)))
        return replace(self, states=states), tuple(raised)

    def after_all(self, rows: Iterable[Row]) -> AlarmWatch:
        """Return the watch after stored rows, each with its `step`."""
        watch = self
        for row in rows:
            watch, _ = watch.after(int(row["step"]), row)
        return watch

    def active(self) -> dict[AlarmName, int]:
        """Return the alarms that are raised, with the steps that raised them."""
        return {name: state.since for name, state in self.states.items() if state.since}

    def metrics(self) -> dict[str, float]:
        """Return `alarm_NAME` for every alarm that is on: 1 while it is raised, else 0."""
        active = self.active()
        return {f"{PREFIX}{name.value}": float(name in active) for name, _ in self._rules()}

    def stopping(self, raised: Sequence[Alarm]) -> list[Alarm]:
        """Return those of newly raised alarms that end the run."""
        return [alarm for alarm in raised if alarm.name in self.config.stop]

    def _rules(self) -> list[tuple[AlarmName, _Rule]]:
        return [(name, rule) for name, rule in _RULES.items() if self.config.limit(name) is not None]

    def _limit(self, name: AlarmName, rule: _Rule, state: _State) -> float:
        configured = self.config.limit(name)
        assert configured is not None
        limit = rule.bound(configured, statistics.median(state.start))
        return max(limit, _PARITY_SHARE * self.parity_limit) if name is AlarmName.PARITY else limit

    def _moved(self, state: _State, step: int, *, beyond: bool) -> _State:
        """Return the state after one more step beyond the limit, or within it."""
        counted = replace(state, beyond=(state.beyond + 1) * beyond, within=(state.within + 1) * (not beyond))
        if not state.since and counted.beyond >= self.config.patience:
            return replace(counted, since=step)
        if state.since and counted.within >= self.config.patience:
            return replace(counted, since=0)
        return counted

    def _text(self, rule: _Rule, state: _State, value: float, limit: float) -> str:
        side, steps = "above" if rule.above else "below", self.config.patience
        return (
            f"{rule.measured} is {value:.3g}, {side} the limit of {limit:.3g} for {steps} step{'s' * (steps > 1)} (start: "
            f"{statistics.median(state.start):.3g}). {rule.words}"
        )


def alarm_periods(rows: Sequence[Row]) -> list[tuple[str, int, int | None]]:
    """Return (name, first step, last step) of the times in which alarms were raised, from the rows of metrics.

    The last step is None for an alarm that is still raised after the last row.
    """
    found: list[tuple[str, int, int | None]] = []
    for key in sorted({key for row in rows for key in row if key.startswith(PREFIX)}):
        since, last = None, 0
        for row in rows:
            if row.get(key):
                since, last = since or int(row["step"]), int(row["step"])
            elif since:
                found.append((key.removeprefix(PREFIX), since, last))
                since = None
        if since:
            found.append((key.removeprefix(PREFIX), since, None))
    return sorted(found, key=lambda period: (period[1], period[0]))
