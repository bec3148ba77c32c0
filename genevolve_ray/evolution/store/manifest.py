"""Documents of a run store: only what one of them names has happened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.base import Config, Record

SCHEMA_VERSION = 1
DROPPED = "dropped"
"""Key of a step's `loop` with the paths of groups that were judged and dropped; absent where there are none."""
MetricValue = bool | int | float | str | None


class Document(Record):
    """Represent a JSON file of the store."""

    schema_version: int = SCHEMA_VERSION

    def encode(self) -> bytes:
        """Return the file's content."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, path: str) -> Self:
        """Read a file's content.

        Raises:
            StoreError: naming the file when it is truncated, corrupt or of another version.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise StoreError(f"{path} is corrupt: {where}: {first['msg']}") from error
        if document.schema_version != SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema version {document.schema_version}, this version reads {SCHEMA_VERSION}"
            )
        return document


class RunInfo(Document):
    """Record the origin of a run in `run.json`."""

    created: str
    package_version: str
    run_seed: int
    run_id: str = ""
    """Name of the run that no other folder has, for trackers; empty in runs of earlier versions."""


class StoredFile(Record):
    """Describe a file below its manifest's folder."""

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class GroupFile(StoredFile):
    """Describe one judged group on disk, by path relative to the run, and the policy version that sampled it."""

    request_id: str
    trajectories: int
    policy_version: int


class StepManifest(Document):
    """Commit one step in `steps/NNNNNN/manifest.json`, written in a single put.

    Attributes:
        step: counts from 1; the policy version after step n is n.
        policy_before: version that the step started from.
        policy_after: version that it produced.
        groups: the groups that were trained on, in the order in which the learner saw them.
        metrics: the step's row of `metrics.jsonl`; non-finite numbers become None.
        state_hash: the learner's state after the step.
        checkpoint: name of the checkpoint that was written with the step, if any.
        loop: the loop's own state, free-form (counters, cursors).
    """

    step: int = Field(ge=1)
    policy_before: int
    policy_after: int
    groups: tuple[GroupFile, ...]
    metrics: dict[str, MetricValue] = Field(default_factory=dict)
    state_hash: str = Field(min_length=1)
    checkpoint: str | None = None
    loop: dict[str, Any] = Field(default_factory=dict)
    created: str = ""

    @property
    def decided(self) -> set[str]:
        """Paths of the groups that the step was trained on or dropped; none of them is taken again."""
        return {*(group.path for group in self.groups), *self.loop.get(DROPPED, ())}

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, metrics: Mapping[str, MetricValue]) -> dict[str, MetricValue]:
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}

    @model_validator(mode="after")
    def _versions(self) -> StepManifest:
        if (self.policy_before, self.policy_after) != (self.step - 1, self.step):
            raise ValueError(
                f"step {self.step} must take policy version {self.step - 1} to {self.step}, "
                f"got {self.policy_before} to {self.policy_after}"
            )
        return self


class Checkpoint(Document):
    """Mark a complete folder in `checkpoints/NNNNNN.json`. Step 0 is the state before the first step.

    `state_hash` is the learner's state in it, `validation` the scores of that state, empty where it was not validated.
    """

    step: int = Field(ge=0)
    state_hash: str = Field(min_length=1)
    files: tuple[StoredFile, ...]
    validation: dict[str, Any] = Field(default_factory=dict)
    created: str = ""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return step_name(self.step)


class CheckpointConfig(Config):
    """Configure which checkpoints stay: the newest `keep_last`, and the `keep_best` with the highest `best_metric`."""

    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: int = Field(default=1, ge=0)
    """Checkpoints that are kept for their validation besides."""
    best_metric: str = "reward_mean"
    """Validation metric that decides which are best; higher is better."""


class ResumePlan(Record):
    """Describe the way back to the last committed state.

    Attributes:
        checkpoint_step: checkpoint to load; None means the policy that the run started from.
        steps_to_reapply: committed steps to apply again from their stored groups, in order.
        next_step: the first step to sample.
        state_hash: the hash of the learner's state after that; None before the first step.
    """

    checkpoint_step: int | None
    steps_to_reapply: tuple[int, ...]
    next_step: int
    state_hash: str | None


def step_name(step: int) -> str:
    """Return a step's folder name: six digits, so that names sort as numbers do."""
    return f"{step:06d}"


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
