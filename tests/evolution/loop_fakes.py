"""Ports of the loop without engines, models or pictures: everything they return follows from their arguments."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.ports import ExperiencePort, Parts, RolloutTask
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights, WeightFolders
from genevolve_ray.records.experience import Lesson, MovedToken
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Termination, Trajectory
from genevolve_ray.records.verdict import Reward

PLUGIN = {"type": "nowhere:Nothing"}
TRUTH = ImageRef(sha256="ab" * 32, width=8, height=8)
PROBE = Probe(token_ids=(1, 2), logprobs=(-0.5,))


def make_config(**changes: Any) -> EvolutionConfig:
    """A run of three steps of 2 x 2; `changes` are keys of `loop`, or of the whole where they are no such keys."""
    loop = {"steps": 3, "requests_per_step": 2, "group_size": 2, "validate_every": 0, "checkpoint_every": 100}
    rest = {
        k: changes.pop(k)
        for k in ("deterministic", "engine", "seed", "checkpoints", "learner", "profile", "experience", "alarms")
        if k in changes
    }
    return EvolutionConfig.model_validate(
        {
            "policy": {"model": "none"},
            "sampling": {"temperature": 1.0, "top_p": 1.0},
            "loop": loop | changes,
            **dict.fromkeys(("requests", "tools", "renderer", "judge"), PLUGIN),
            **rest,
        }
    )


def make_trajectory(
    key: SampleKey, outcome: Outcome = Outcome.SCORED, score: float = 0.5, version: int = 0
) -> Trajectory:
    """A judged attempt of three context and two policy tokens."""
    ledger = TokenLedger()
    ledger.append_context([1, 2, 3], SpanKind.PROMPT)
    ledger.append_policy([4, 5], [-0.25, -0.5], [version] * 2, SpanKind.ANSWER)
    return Trajectory(
        key,
        f"draw {key.request_id}",
        ledger,
        Provenance(profile="release", engine="fake"),
        outcome=outcome,
        termination=Termination.ANSWER if outcome is Outcome.SCORED else Termination.ERROR,
        reason="" if outcome is Outcome.SCORED else f"{outcome.value} of {key}",
        reward=Reward(total=score, image=score, text=score) if outcome is Outcome.SCORED else None,
    )


def a_request(name: str) -> Request:
    """Return a request with a ground-truth image, which no part of these tests reads."""
    return Request(id=name, prompt="draw", eval_type=EvalType.QUALITY, truth_image=TRUTH)


class FakeRequests:
    """Numbered requests."""

    def train(self, index: int) -> Request:
        return a_request(f"train-{index}")

    def validation(self, count: int) -> list[Request]:
        return [a_request(f"validation-{i}") for i in range(count)]

    def heldout(self, count: int) -> list[Request]:
        return [a_request(f"heldout-{i}") for i in range(count)]


class FakeRollouts:
    """Scores follow from the task's seed; `outcome` decides what becomes of an attempt."""

    def __init__(self, outcome: Callable[[RolloutTask], Outcome] = lambda task: Outcome.SCORED) -> None:
        self.outcome, self.version = outcome, 0
        self.tasks: list[RolloutTask] = []
        self.updates: list[int] = []
        self.calls: list[str] = []
        self.before: Callable[[RolloutTask], Any] | None = None

    async def rollout(self, task: RolloutTask) -> Trajectory:
        self.tasks.append(task)
        self.calls.append("rollout")
        await asyncio.sleep(0)
        if self.before is not None:
            await self.before(task)
        return make_trajectory(task.key, self.outcome(task), task.seed % 1000 / 1000, self.version)

    async def rest(self) -> None:
        self.calls.append("rest")

    async def update(self, weights: PublishedWeights) -> float:
        self.calls.append("update")
        assert Path(await weights.folder(), "weights").is_file()
        assert weights.probe is PROBE
        self.updates.append(weights.version)
        self.version = weights.version
        return 1e-7


class FakeLearner:
    """Its state is a digest of every batch that it has seen, in order; `noise` makes it differ from its like."""

    folders: WeightFolders
    """A `Scene` sets it."""

    def __init__(self, noise: str = "") -> None:
        self.state, self.noise, self.parity = "start", noise, 1e-6
        self.steps: list[int] = []
        self.seen: list[list[Group]] = []
        self.lessons: list[list[Lesson]] = []
        self.restarts = 0
        self.early: list[tuple[int, list[str]]] = []
        """Parts that were accumulated before their step: its number and their requests."""
        self.parts: list[Parts] = []

    async def accumulate(self, groups: Sequence[Group], step: int) -> None:
        self.early.append((step, [g.request_id for g in groups]))

    async def restart(self) -> None:
        self.state = "start"
        self.restarts += 1

    async def step(
        self,
        groups: Sequence[Group],
        step: int,
        lessons: Sequence[Lesson] = (),
        parts: Parts = (),
        redraws: Sequence[Group] = (),
    ) -> dict[str, float]:
        self.parts.append(parts)
        self.steps.append(step)
        self.seen.append(list(groups))
        self.lessons.append(list(lessons))
        taught = [lesson.model_dump(mode="json") for lesson in lessons]
        scores = [[g.request_id, g.scores()] for g in groups]
        batch = json.dumps([self.state, self.noise, scores, taught, *([p] for p in parts)])
        self.state = hashlib.sha256(batch.encode()).hexdigest()
        return {"parity": self.parity, "loss": 0.25}

    async def teacher_disagreement(self) -> list[MovedToken]:
        return [MovedToken(trajectory="1/r/0/0", position=3, gap=-0.5)]

    async def publish(self, version: int) -> PublishedWeights:
        folder = self.folders.create(version)
        Path(folder, "weights").write_text(self.state)
        return PublishedWeights(version, PROBE, FolderPayload(folder))

    async def release(self, version: int) -> None:
        self.folders.release(version)

    async def save(self, folder: str) -> None:
        Path(folder, "state").write_text(self.state)

    async def load(self, folder: str) -> None:
        self.state = Path(folder, "state").read_text()

    async def state_hash(self) -> str:
        return self.state


class Recorder:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.trajectories: list[Trajectory] = []
        self.steps: list[tuple[int, Mapping[str, float] | None]] = []
        self.notes: list[str] = []

    def phase(self, name: str, done: int, total: int) -> None:
        self.phases.append((name, total))

    def trajectory(self, trajectory: Trajectory) -> None:
        self.trajectories.append(trajectory)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        self.steps.append((step, validation))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Scene:
    """One run folder and the loops that are begun on it, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: RunStore | None = None

    def begin(
        self,
        config: EvolutionConfig,
        rollouts: FakeRollouts | None = None,
        learner: FakeLearner | None = None,
        experience: ExperiencePort | None = None,
    ) -> Evolution:
        """A loop as a fresh process would begin it: the last one's store is closed, everything else is new."""
        self.close()
        self.store = RunStore.open(str(self.folder / "run"), config, run_seed=config.seed, keep=config.checkpoints)
        learner = learner or FakeLearner()
        learner.folders = WeightFolders(self.folder / "weights")
        return Evolution(
            config,
            FakeRequests(),
            rollouts or FakeRollouts(),
            learner,
            self.store,
            Recorder(),
            experience,
        )

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


async def evolve(evolution: Evolution) -> None:
    """Start and run to the end."""
    await evolution.run(await evolution.start())
