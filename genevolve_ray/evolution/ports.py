"""Protocols between the loop and its parts; `inprocess` and `cluster` implement them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import Field, model_validator

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import RunError
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.records.base import Record
from genevolve_ray.records.components import AnyVerdict, OpenVerdict
from genevolve_ray.records.experience import Experience, Lesson, MovedToken
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, SampleKey, Trajectory

Parts = Sequence[Sequence[str]]
"""Parts of a batch in the order in which a learner adds them, each as the request ids of its groups."""


class RolloutTask(Record):
    """Describe one sample to draw: the request, the seeds, the sampling, and the generation of the renderer.

    `experience` is for evaluations that measure the value of guidance, and for guided re-draws, which are no training
    rollouts: these never carry any.
    """

    request: Request
    key: SampleKey
    seed: int
    render_seed: int
    sampling: SamplingParams
    split: str = "train"
    experience: Experience | None = None
    renderer: int = 0

    @property
    def alone(self) -> bool:
        """True for a sample that is judged by itself: of an evaluation, or a guided re-draw."""
        return self.split != "train"

    @model_validator(mode="after")
    def _students_see_no_experience(self) -> RolloutTask:
        if self.split == "train" and self.experience is not None:
            raise ValueError(f"training rollout {self.key} carries experience, which students must never see")
        return self


class ExperienceStep(Record):
    """Hold the experience of a step: a lesson for each request that recalled one, and metrics about it."""

    lessons: tuple[Lesson, ...] = ()
    faults: tuple[str, ...] = ()
    """Failures of summarizer or embedder, as text."""
    outage: str = ""
    """Why nothing could be learned: summarizer or embedder are down. The same step may be learned again then, and its
    bundles are remembered once."""
    metrics: dict[str, float] = Field(default_factory=dict)


class ExperiencePort(Protocol):
    """Keep the experience memory and everything around it, with one writer."""

    async def prepare(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> None:
        """Compare best and worst of some groups of a step early, for `learn`; nothing is remembered yet."""
        ...

    async def learn(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> ExperienceStep:
        """Compare best and worst of each group, remember what that taught, and recall a bundle for each request."""
        ...

    async def snapshot(self) -> bytes:
        """Return the whole memory as bytes."""
        ...

    async def changes(self) -> bytes:
        """Return what changed in the memory since the last call of `snapshot`, `changes` or `restore`, as bytes."""
        ...

    async def restore(self, snapshot: bytes) -> None:
        """Load the memory of a snapshot."""
        ...


class RolloutPort(Protocol):
    """Dispatch samples to one or many rollout workers."""

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play, render and judge one sample; the outcome is typed, never an exception of the outside world."""
        ...

    async def rest(self) -> None:
        """Let engines free their GPUs until the next update; no sample is in flight."""
        ...

    async def update(self, weights: PublishedWeights) -> float:
        """Load published weights into every engine and verify them by effect; returns the worst probe difference."""
        ...


class RenderPort(Protocol):
    """Render with pixels by reference."""

    identity: str

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        """Render a program. Raises InfraFailure after bounded retries."""
        ...


class JudgePort(Protocol):
    """Judge with pixels by reference; `components` may declare what it measures (`judges.protocol.Judge`)."""

    identity: str

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Judge a rendered program. Raises InfraFailure after bounded retries."""
        ...


class RenderedAttempt(Record):
    """Hold an attempt of a group that has a picture, for the judges of groups."""

    image: ImageRef
    program: Program
    references: tuple[ImageHit, ...] = ()


@runtime_checkable
class GroupJudgePort(Protocol):
    """Judge the attempts of a group together, with pixels by reference (`judges.protocol.GroupJudge`)."""

    identity: str

    async def judge_group(self, request: Request, attempts: Sequence[RenderedAttempt]) -> Sequence[OpenVerdict]:
        """Return a verdict on each attempt, in their order. Raises InfraFailure after bounded retries."""
        ...


class GradePort(Protocol):
    """Grade on the scale of another benchmark, with pixels by reference."""

    identity: str

    async def grade(self, prompt: Any, image: ImageRef) -> Any:
        """Grade a picture of a prompt. Raises InfraFailure after bounded retries."""
        ...


class LearnerLost(RunError):
    """Signal that a process of the learner died; the message names its rank.

    The loop brings another one to the last committed state.
    """


class LearnerPort(Protocol):
    """Define the learner for the loop. Any call may raise LearnerLost where it runs in processes of its own."""

    async def restart(self) -> None:
        """Start again in new processes from the initial state. Raises LearnerLost after too many restarts."""
        ...

    async def accumulate(self, groups: Sequence[Group], step: int) -> None:
        """Begin a step early: add the gradient of some of its groups, in which no lesson teaches anything.

        `step` then names the parts that were accumulated. Event loops are not blocked meanwhile.
        """
        ...

    async def step(
        self,
        groups: Sequence[Group],
        step: int,
        lessons: Sequence[Lesson] = (),
        parts: Parts = (),
        redraws: Sequence[Group] = (),
    ) -> dict[str, float]:
        """Take one optimization step on judged groups and return its metrics.

        A teacher that reads a request's lesson scores the request's trajectories as well.

        Args:
            groups: the whole batch.
            step: number of the step, from 1.
            lessons: lessons of its requests.
            parts: parts of the batch in the order in which they are added, before the rest. Those that `accumulate` has
                not added are added now; what it has added besides is dropped.
            redraws: guided re-draws of some of the groups.
        """
        ...

    async def teacher_disagreement(self) -> list[MovedToken]:
        """Return the tokens on which the teacher of the last step disagreed most, a few for each taught request."""
        ...

    async def publish(self, version: int) -> PublishedWeights:
        """Return the weights as a version, with a probe: fixed tokens and the learner's log-probs on them."""
        ...

    async def release(self, version: int) -> None:
        """Remove a version that every engine has replaced; a missing one is not an error."""
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
    """Provide requests; `index` counts from 0 and the same index always gives the same request."""

    def train(self, index: int) -> Request:
        """Return the training request number `index`."""
        ...

    def validation(self, count: int) -> list[Request]:
        """Return the first `count` validation requests."""
        ...

    def heldout(self, count: int) -> list[Request]:
        """Return the first `count` held-out (test) requests."""
        ...
