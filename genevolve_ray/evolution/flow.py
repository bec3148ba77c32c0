"""Accounting of samples: the admission rule of DESIGN section 5 and its invariant.

A lease is one request's group of K samples, numbered in the order of the request source: lease i is request i. Leases
begin in that order, also those that begin again after a restart.
"""

from __future__ import annotations

from pydantic import Field

from genevolve_ray.errors import RunError
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.trajectory import Group, Outcome, Termination, Trajectory


class FlowConfig(Config):
    """Configure admission."""

    batch: int = Field(ge=1)
    """Requests of a step."""
    group_size: int = Field(ge=1)
    max_staleness: int = Field(ge=0)
    steps: int = Field(ge=1)
    """Steps of the whole run: requests that no step will consume are not leased."""
    spare: int = Field(default=0, ge=0)
    """Groups that may be set aside at once while others are leased in their place."""


class DynamicSamplingConfig(Config):
    """Configure dynamic sampling (DAPO, arXiv 2503.14476): a group without variance gives way to a further request.

    A step takes the first groups with variance in the order of their leases. Where the bound leaves it short of them, the
    earliest groups without variance complete the batch, so that every step has `requests_per_step` groups.
    """

    rounds: int = Field(default=0, ge=0)
    """Further requests that a step may draw, as a multiple of `requests_per_step`; 0 takes every group as it comes."""
    spread: float = Field(default=0.0, ge=0)
    """Largest difference of rewards within a group that counts as no variance. Advantages divide by the standard
    deviation, so with continuous rewards nearly equal attempts have large advantages."""

    def drops(self, group: Group) -> bool:
        """Return whether a group has no variance.

        A sample whose prompt does not fit never gets a reward: a group is judged by its others, and has no variance where
        these are fewer than two. A group that lacks another reward failed from outside, and is not judged.
        """
        rewards = [t.compared for t in group.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]
        long = sum(t.termination is Termination.PROMPT_TOO_LONG for t in group.trajectories)
        if not self.rounds or len(rewards) + long < group.samples:
            return False
        return max(rewards) - min(rewards) <= self.spread if len(rewards) > 1 else long > 0


class FlowState(Record):
    """Record a flow at the end of a step, as its manifest stores it; counts are samples since the run began."""

    next_lease: int = 0
    open: tuple[int, ...] = ()
    """Leases that are neither consumed nor discarded, in order."""
    taken: int = 0
    """Groups that steps have taken."""
    consumed: int = 0
    discarded: int = 0
    dropped: int = 0
    """Samples of judged groups that dynamic sampling dropped; in runs of earlier versions they are `discarded`."""
    skipped: int = 0
    """Leases that were closed before any of their samples was played; their samples count nowhere."""


class FlowError(RunError):
    """Signal that samples were lost or duplicated, which is an internal error."""


class Flow:
    """Count every sample: leased = consumed + discarded + dropped + buffered + running, at all times.

    A lease is running until its group is judged, buffered until a step takes it, then consumed; or it is discarded,
    dropped by dynamic sampling, or skipped before it is played.
    """

    def __init__(self, config: FlowConfig, state: FlowState | None = None) -> None:
        """Begin, or resume from a state: leases that were open then begin again, or are buffered by `hold`."""
        state = state or FlowState()
        self.config = config
        self.next_lease, self.taken = state.next_lease, state.taken
        self.consumed, self.discarded = state.consumed, state.discarded
        self.dropped, self.skipped = state.dropped, state.skipped
        self.idle: list[int] = list(state.open)
        """Leases that are open but neither running nor buffered."""
        self.running: dict[int, int] = {}
        self.buffered: dict[int, int] = {}
        """Samples of each lease that runs or is buffered."""
        self.aside: set[int] = set()
        """Buffered leases that a step takes only where it is short of others."""

    @property
    def leased(self) -> int:
        """Samples leased so far; samples of idle leases count once these begin again."""
        return (self.next_lease - self.skipped - len(self.idle)) * self.config.group_size

    def room(self, version: int) -> int:
        """Return the number of groups that may begin while the learner is at `version`.

        Leases begin only while taken + buffered + running < (version + max_staleness + 1) * batch, in groups. A group
        that lost samples counts in full. Otherwise every lost sample would let rollouts run further ahead permanently.
        Of the groups that are set aside, `spare` do not count.
        """
        c = self.config
        steps = min(version + c.max_staleness + 1, c.steps)
        counted = len(self.buffered) - min(len(self.aside), c.spare)
        return max(0, steps * c.batch - self.taken - counted - len(self.running))

    def lease(self) -> int:
        """Begin the next lease: one that a restart left open, else a new one."""
        if self.idle:
            number = self.idle.pop(0)
        else:
            number, self.next_lease = self.next_lease, self.next_lease + 1
        self.running[number] = self.config.group_size
        return number

    def drop(self, number: int) -> None:
        """Discard one sample of a running lease, because it is too late."""
        self.running[number] -= 1
        self.discarded += 1

    def hold(self, number: int, samples: int) -> None:
        """Buffer a judged lease. Raises FlowError when its group holds another number of samples than it should."""
        if samples != self.running[number]:
            raise FlowError(f"lease {number} has {self.running[number]} samples, but its group accounts for {samples}")
        self.buffered[number] = self.running.pop(number)

    def set_aside(self, number: int) -> None:
        """Make room for another lease in place of a buffered one, which stays until a step takes or discards it."""
        self.aside.add(number)

    def found(self, number: int, samples: int) -> bool:
        """Add a group that was judged before a restart; return False when its lease is closed.

        Leases that began after the state was written are known only by such groups; the leases between them are idle.
        """
        if number >= self.next_lease:
            self.idle += range(self.next_lease, number + 1)
            self.next_lease = number + 1
        if number not in self.idle:
            return False
        self.idle.remove(number)
        self.buffered[number] = samples
        self.discarded += self.config.group_size - samples
        return True

    def again(self, number: int) -> None:
        """Begin a buffered lease anew, since its samples failed from outside: it becomes idle with all its samples."""
        self.discarded -= self.config.group_size - self.buffered.pop(number)
        self.aside.discard(number)
        self.idle = sorted([*self.idle, number])

    def discard(self, number: int) -> None:
        """Discard a running or buffered lease."""
        self.discarded += (self.running if number in self.running else self.buffered).pop(number)
        self.aside.discard(number)

    def drop_group(self, number: int) -> None:
        """Close a buffered lease whose group dynamic sampling drops."""
        self.dropped += self.buffered.pop(number)
        self.aside.discard(number)

    def skip(self, number: int) -> None:
        """Close a lease of which nothing was played."""
        del self.running[number]
        self.skipped += 1

    def consume(self, number: int) -> None:
        """Consume a buffered lease in a step."""
        self.taken += 1
        self.consumed += self.buffered.pop(number)
        self.aside.discard(number)

    def check(self) -> None:
        """Assert the invariant. Raises FlowError with all the counts."""
        counts = self.counts()
        if 2 * counts["leased"] != sum(counts.values()):
            raise FlowError(f"samples do not add up: {counts}")

    def counts(self) -> dict[str, int]:
        """Return the samples leased, consumed, discarded, buffered and running; dropped ones with dynamic sampling."""
        return {
            "leased": self.leased,
            "consumed": self.consumed,
            "discarded": self.discarded,
            **({"dropped": self.dropped} if self.config.spare or self.dropped else {}),
            "buffered": sum(self.buffered.values()),
            "running": sum(self.running.values()),
        }

    def state(self) -> FlowState:
        """Return the state that a restart needs. It does not count the samples of open leases."""
        lost = sum(self.config.group_size - n for held in (self.running, self.buffered) for n in held.values())
        return FlowState(
            next_lease=self.next_lease,
            open=tuple(sorted([*self.idle, *self.running, *self.buffered])),
            taken=self.taken,
            consumed=self.consumed,
            # A lease that begins again has all its samples; `found` counts those that its group lacks.
            discarded=self.discarded - lost,
            dropped=self.dropped,
            skipped=self.skipped,
        )


def oldest_version(*trajectories: Trajectory) -> int | None:
    """Return the oldest policy version behind a token that would be trained on, None when there is no such token.

    A sample that waits for the judgment of its group would be.
    """
    kept = (t.ledger.oldest_version for t in trajectories if t.outcome is not Outcome.INFRA_FAILURE)
    return min((version for version in kept if version is not None), default=None)
