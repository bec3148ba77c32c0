"""Entries of the index of a run: trajectories and groups with their addresses, and the filters that select them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Generic, TypeVar

from genevolve_ray.errors import UserFault
from genevolve_ray.records.trajectory import Outcome

TRAINING = "train"
"""Name of the set of all training groups; the other sets are the named trajectories of the run, as `heldout-final`."""
REDRAWS = "redraws"
"""Name of the set of guided re-draws: attempts with a guide in their prompt, apart from the group's own."""
PAGE_SIZE, LARGEST_PAGE = 24, 200
_ADDRESS = re.compile(r"[a-z0-9][a-z0-9-]{0,119}")
_LONGEST_TEXT = 200
_STEP = re.compile(r"[0-9]{1,9}")
"""Numbers of steps; SQLite refuses integers of more than 64 bits."""
T = TypeVar("T")


class FilterFault(UserFault, ValueError):
    """Report a filter that cannot be used; the message names the key and the value."""


class EntryOrder(StrEnum):
    """Name the orders in which entries are listed."""

    NEWEST = "newest"
    """Latest step first."""
    OLDEST = "oldest"
    """First step first."""
    BEST = "best"
    """Highest reward first; entries without a reward are last."""
    WORST = "worst"
    """Lowest reward first; entries without a reward are last."""


@dataclass(frozen=True)
class TrajectoryEntry:
    """Describe a trajectory by what a list of many shows; `RunIndex.load` returns all of it.

    Attributes:
        address: its name in addresses of pages, the same whenever a run is indexed.
        group: address of its group.
        set: `train`, `redraws`, or the name of a set of trajectories.
        step: step for which it was sampled; 0 outside of training.
        request_id: id of the request.
        sample: number of the sample in its group.
        attempt: number of the attempt at this sample; failures from outside are drawn again.
        prompt: the first characters of the request.
        outcome: outcome of the trajectory.
        reward: what the learner sees, None where there is none.
        tools: tools that were called, in the order of the first call.
        versions: oldest and newest version of the policy that sampled its tokens; empty without tokens.
        picture: SHA-256 of the picture that was rendered, "" where there is none.
        reason: why it failed, "" where it did not.
        engine: the engine that sampled it.
        turns: number of turns.
        seconds: seconds that it took, summed over its parts.
        trained: step that trained on it, None where no step has; for a guided re-draw the step that it was drawn in.
    """

    address: str
    group: str
    set: str
    step: int
    request_id: str
    sample: int
    attempt: int
    prompt: str
    outcome: Outcome
    reward: float | None
    tools: tuple[str, ...]
    versions: tuple[int, ...]
    picture: str
    reason: str
    engine: str
    turns: int
    seconds: float
    trained: int | None


@dataclass(frozen=True)
class GroupEntry:
    """Describe the trajectories of one request in one step or set.

    `best`, `worst` and `mean` are rewards, None where no trajectory has one. `members` are in the order of samples, all
    of them, also those that a filter leaves out.
    """

    address: str
    set: str
    step: int
    request_id: str
    prompt: str
    best: float | None
    worst: float | None
    mean: float | None
    members: tuple[TrajectoryEntry, ...]

    @property
    def spread(self) -> float | None:
        """Best minus worst reward."""
        return None if self.best is None or self.worst is None else self.best - self.worst


@dataclass(frozen=True)
class EntryPage(Generic[T]):
    """Hold one page of a list: its entries, their number on all pages, and the place of this one (from 1)."""

    items: tuple[T, ...]
    total: int
    number: int
    size: int

    @property
    def count(self) -> int:
        """Number of pages, at least 1."""
        return max(1, math.ceil(self.total / self.size))


@dataclass(frozen=True)
class EntryFilter:
    """Select trajectories; an empty field selects all.

    Attributes:
        set: `train`, `redraws` or the name of a set.
        step: step for which it was sampled.
        request: id of the request, whole.
        outcome: outcome of the trajectory.
        low: least reward.
        high: greatest reward.
        tool: a tool that was called.
        text: words that all occur in the request, the turns of the policy, the program, or the reason of a failure; the last
            letters of a word may be missing.
    """

    set: str = ""
    step: int | None = None
    request: str = ""
    outcome: Outcome | None = None
    low: float | None = None
    high: float | None = None
    tool: str = ""
    text: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> EntryFilter:
        """Read a filter from a query; unknown keys are ignored, empty values select all.

        Raises:
            FilterFault: naming a value that is too long or of the wrong kind.
        """
        readers: dict[str, Callable[[str], Any]] = {"step": _step, "outcome": Outcome, "low": _finite, "high": _finite}
        found: dict[str, Any] = {}
        for field in fields(cls):
            if not (value := query.get(field.name, "").strip()):
                continue
            try:
                if len(value) > _LONGEST_TEXT:
                    raise ValueError("too long")
                found[field.name] = readers.get(field.name, str)(value)
            except ValueError as error:
                raise FilterFault(f"{field.name}={value[:40]!r} cannot be used as a filter") from error
        return cls(**found)

    def query(self) -> dict[str, str]:
        """Return the filter as a query, without its empty fields; `of` reads it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in values.items() if v not in (None, "")}


def _step(text: str) -> int:
    if _STEP.fullmatch(text) is None:
        raise ValueError(text)
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def group_address(of_set: str, step: int, request_id: str) -> str:
    """Return the address of a group: readable at its start, and unique by a hash of set, step and request."""
    key = hashlib.sha256(json.dumps([of_set, step, request_id]).encode()).hexdigest()[:16]
    name = re.sub(r"[^a-z0-9]+", "-", of_set.lower()).strip("-")[:40] or "set"
    place = {TRAINING: f"step-{step}", REDRAWS: f"{REDRAWS}-{step}"}.get(of_set, name)
    return f"{place}-{key}"


def trajectory_address(group: str, sample: int, attempt: int) -> str:
    """Return the address of a trajectory of a group."""
    return f"{group}-{sample}-{attempt}"


def is_address(text: str) -> bool:
    """Return whether a text can be an address of this module; it says nothing about whether there is such an entry."""
    return _ADDRESS.fullmatch(text) is not None
