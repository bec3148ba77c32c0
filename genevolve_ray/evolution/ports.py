"""The protocols the loop is written against; `inprocess` and `cluster` implement them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field, model_validator

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import GenevolveError
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.records.base import Record
from genevolve_ray.records.experience import Experience, Lesson, MovedToken
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, SampleKey, Trajectory
from genevolve_ray.records.verdict import Verdict


class RolloutTask(Record):
    """One sample to draw: which request, with which seeds, how to sample, and with which generation of the renderer.

    `experience` is for evaluations that ask what guidance is worth; a training rollout never carries any.
    """

    request: Request
    key: SampleKey
    seed: int
    render_seed: int
    sampling: SamplingParams
    split: str = "train"
    experience: Experience | None = None
    renderer: int = 0

    @model_validator(mode="after")
    def _students_see_no_experience(self) -> RolloutTask:
        if self.split == "train" and self.experience is not None:
            raise ValueError(f"training rollout {self.key} carries experience, which students must never see")
        return self


class ExperienceStep(Record):
    """What the experience of a step came to: a lesson for each request that recalled one, and numbers about it."""

    lessons: tuple[Lesson, ...] = ()
    faults: tuple[str, ...] = ()
    """What summariser or embedder gave up on, in words."""
    metrics: dict[str, float] = Field(default_factory=dict)


class ExperiencePort(Protocol):
    """The experience memory and everything around it, one writer."""

    async def learn(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> ExperienceStep:
        """Compare best and worst of each group, remember what that taught, and recall a bundle for each request."""
        ...

    async def snapshot(self) -> bytes:
        """Return the memory as bytes."""
        ...

    async def restore(self, snapshot: bytes) -> None:
        """Become the memory of a snapshot."""
        ...


class RolloutPort(Protocol):
    """One or many rollout workers behind one door."""

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play, render and judge one sample; the outcome is typed, never an exception of the outside world."""
        ...

    async def update(self, weights: PublishedWeights) -> float:
        """Load published weights into every engine and verify them by effect; returns the worst probe difference."""
        ...


class RenderPort(Protocol):
    """A renderer that reads and writes pixels by reference."""

    identity: str

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        """Render a program. Raises InfraFailure after bounded retries."""
        ...


class JudgePort(Protocol):
    """A judge that reads pixels by reference."""

    identity: str

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Judge a rendered program. Raises InfraFailure after bounded retries."""
        ...


class GradePort(Protocol):
    """A judge of another benchmark's own scale, that reads pixels by reference."""

    identity: str

    async def grade(self, prompt: Any, image: ImageRef) -> Any:
        """Grade a picture of a prompt. Raises InfraFailure after bounded retries."""
        ...


class LearnerLost(GenevolveError, RuntimeError):
    """A process of the learner died; the message names its rank. The loop brings another to the last committed state."""


class LearnerPort(Protocol):
    """The learner group as the loop sees it. Any call may raise LearnerLost where it runs in processes of its own."""

    async def restart(self) -> None:
        """Begin anew in new processes, as at the very start. Raises LearnerLost when that was done too often."""
        ...

    async def step(self, groups: Sequence[Group], step: int, lessons: Sequence[Lesson] = ()) -> dict[str, float]:
        """Take one optimisation step on judged groups and return its metrics.

        A teacher that reads a request's lesson scores the request's trajectories as well.
        """
        ...

    async def teacher_disagreement(self) -> list[MovedToken]:
        """Return the tokens on which the teacher of the last step disagreed most, a few for each taught request."""
        ...

    async def publish(self, version: int) -> PublishedWeights:
        """Return the weights as a version, with a probe: fixed tokens and the learner's log-probs on them."""
        ...

    async def release(self, version: int) -> None:
        """Forget a version that every engine has replaced; one that is not there is no error."""
        ...

    async def save(self, folder: str) -> None:
        """Write a checkpoint: model in HF layout, optimizer, RNG."""
        ...

    async def load(self, folder: str) -> None:
        """Restore a checkpoint that `save` wrote."""
        ...

    async def state_hash(self) -> str:
        """Return a hash over weights, optimizer and RNG."""
        ...


class RequestSource(Protocol):
    """Where requests come from; `index` counts from 0 and the same index is always the same request."""

    def train(self, index: int) -> Request:
        """Return the index-th training request."""
        ...

    def validation(self, count: int) -> list[Request]:
        """Return the first `count` validation requests."""
        ...

    def heldout(self, count: int) -> list[Request]:
        """Return the first `count` held-out (test) requests."""
        ...
