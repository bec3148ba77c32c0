"""Outages of outside services: a run waits while everything fails from outside, and stops after a configured time.

Single failures are drawn again at once, at most `loop.max_attempts` times. Here whole steps, validations or lessons
have failed: nothing came of any of their samples. A run that continued would train on nothing, and one that ended would
lose the night to a restart of a judge.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic

from genevolve_ray.errors import OutageError, UserFault
from genevolve_ray.evolution.monitor import Monitor, NullMonitor
from genevolve_ray.records.trajectory import Group, Outcome, Termination, Trajectory

FIRST_WAIT = 1.0
"""Seconds before the first new try; they double with every further one."""
LONGEST_WAIT = 60.0
MISSING = 0.1
"""Share of an evaluation's samples that may be missing from it."""
FRUITLESS = 4
"""Further draws without a sample after which an evaluation with judged samples is accepted."""
_SHOWN = 300
"""Characters of a reason that a message keeps."""


class Patience:
    """Wait between the tries of work that failed as a whole from outside, within one limit per outage."""

    def __init__(
        self,
        limit: float,
        monitor: Monitor | None = None,
        now: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Begin without an outage.

        Args:
            limit: seconds from the first failure after which `wait` gives up.
            monitor: receives a note on each wait, and one when the outage is over.
            now: seconds of a monotonic clock.
            sleep: waits for some seconds.
        """
        self._limit, self._monitor, self._now, self._sleep = limit, monitor or NullMonitor(), now, sleep
        self._since: float | None = None
        self._pause = FIRST_WAIT

    async def wait(self, work: str, reason: str) -> None:
        """Wait until the next try of some work.

        Args:
            work: the work that failed, as the subject of a sentence.
            reason: what failed outside.

        Raises:
            OutageError: when the outage has lasted longer than the limit.
        """
        now = self._now()
        if self._since is None:
            self._since, self._pause = now, FIRST_WAIT
        left = self.left
        reason = " ".join(reason.split())[:_SHOWN]
        if left <= 0:
            raise OutageError(
                f"{work} failed from outside for {now - self._since:.0f} s (loop.outage_limit={self._limit:g}): "
                f"{reason}. Nothing is lost: the same command resumes the run"
            )
        pause = min(self._pause, left)
        self._monitor.note(
            f"{work} failed from outside, next try in {pause:.0f} s, the run stops in {left:.0f} s: {reason}"
        )
        self._pause = min(2 * self._pause, LONGEST_WAIT)
        await self._sleep(pause)

    @property
    def left(self) -> float:
        """Return the seconds that the current outage may still last; the limit where there is none."""
        return self._limit if self._since is None else self._since + self._limit - self._now()

    def over(self) -> None:
        """Record that the work succeeded."""
        if self._since is not None:
            self._monitor.note(f"the outage is over after {self._now() - self._since:.0f} s")
            self._since = None


def is_lost(groups: Sequence[Group]) -> bool:
    """Return whether a step with these groups has learned nothing from outside.

    Either no group has two scores to compare, or some samples failed from outside and not a single one was judged. What
    remains are then failures of the policy, which need no service: training on them alone would teach a judge's outage.
    """
    judged = any(t.outcome is Outcome.SCORED for g in groups for t in g.trajectories)
    return all(len(g.scores()) < 2 for g in groups) or (not judged and any(map(has_failed, groups)))


def has_failed(group: Group) -> bool:
    """Return whether a group lacks the score of some sample that may yet get one: whose prompt fits."""
    return len(group.scores()) + len(too_long(group.trajectories)) < max(2, group.samples)


def too_long(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Return the trajectories that ended because their prompt does not fit."""
    return [t for t in trajectories if t.termination is Termination.PROMPT_TOO_LONG]


def check_prompts_fit(work: str, trajectories: Sequence[Trajectory]) -> None:
    """Check that some work does not fail for its prompts alone, which no further try would change.

    Raises:
        UserFault: when every one of the trajectories has a prompt that is too long; `work` names them.
    """
    if trajectories and len(too_long(trajectories)) == len(trajectories):
        raise UserFault(
            f"{work}: no prompt fits: {main_reason(trajectories)}; raise max_prompt_tokens of the profile, or "
            "engine.max_model_len"
        )


def main_reason(trajectories: Iterable[Trajectory]) -> str:
    """Return the most frequent reason of failures from outside."""
    reasons = Counter(t.reason for t in trajectories if t.outcome is Outcome.INFRA_FAILURE)
    return next((reason for reason, _ in reasons.most_common(1)), "samples took longer than loop.sample_deadline")


class Remainder:
    """Track the samples of an evaluation that failed from outside, and decide how long they are drawn again.

    Without a single judged sample they are drawn again as long as the run has patience. Otherwise a few missing samples
    are accepted, and more of them only when several further draws gave none.
    """

    def __init__(self, count: int) -> None:
        """Begin an evaluation of `count` requests; `places` are those to draw next."""
        self.places = list(range(count))
        self._found: dict[int, Trajectory] = {}
        self._fruitless = 0

    def settles(self, drawn: Sequence[Trajectory], patience: float) -> bool:
        """Take the samples of `places`, and return whether the evaluation is complete.

        `patience` is how long the run may still wait, in seconds.
        """
        self._found |= dict(zip(self.places, drawn, strict=True))
        failed = [place for place in self.places if self._found[place].repeatable]
        self._fruitless = self._fruitless + 1 if len(failed) == len(self.places) else 0
        self.places = failed
        if failed and not any(t.outcome is Outcome.SCORED for t in self._found.values()):
            return False
        return len(failed) <= MISSING * len(self._found) or self._fruitless > FRUITLESS or patience <= 0

    @property
    def trajectories(self) -> list[Trajectory]:
        """Return the samples in the order of their requests."""
        return [self._found[place] for place in sorted(self._found)]
