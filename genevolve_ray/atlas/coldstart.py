"""The cold start: a small Qwen3 learns the protocol from the imperfect teacher, with and without experience to read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
from pydantic import Field

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import ReadPicture, TokenSession
from genevolve_ray.agent.profile import PROFILES, ProtocolProfile
from genevolve_ray.atlas.exercises import exercise
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.recipe_training import OnStep, RecipeConfig, train_recipe
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import Decisions, Teacher, TeacherConfig, TeacherEngine, as_experience, decide
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.engines.protocol import Engine, SamplingParams
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory
from genevolve_ray.tools.protocol import Tool
from genevolve_ray.tools.running import running_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from genevolve_ray.learning.sft import SftExample

STATED = TeacherConfig(skill_recall=0.7, needless_skill=0.12, search=0.85, official=0.6, current=0.65, slip=0.0)
"""Decisions that experience states and the teacher obeys. They vary, so that only reading reveals them."""


class CurriculumConfig(Config):
    """Configure the training data of the cold start.

    The first `stated_fraction` of the steps show only trajectories whose decisions are in the context and are obeyed.
    Decisions that nothing explains are noise that delays learning to copy. The other steps mix these trajectories with
    the imperfect teacher's trajectories without experience.
    """

    seed: int = Field(default=17, ge=0)
    steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=12, ge=1)
    worlds: int = Field(default=64, ge=1)
    exercise_steps: int = Field(default=300, ge=0)
    """Steps of nothing but exercises (see `exercises`), before the lessons."""
    exercises: int = Field(default=6, ge=0)
    """Exercises in every batch of lessons after that, besides `batch_size` trajectories."""
    stated_fraction: float = Field(default=0.75, ge=0, le=1)
    stated_share_later: float = Field(default=0.3, ge=0, le=1)
    teacher: TeacherConfig = TeacherConfig()


class Curriculum:
    """Produce a reproducible stream of teacher trajectories: an index always gives the same trajectory."""

    def __init__(
        self,
        config: CurriculumConfig,
        chat: ChatFormat,
        profile: str = "atlas",
        images: MemoryImages | None = None,
        *,
        styled: bool = False,
    ) -> None:
        """Prepare worlds lazily; `chat` is the atlas tokenizer's format.

        With `images`, worlds are of the kind with sight, and their pictures are drawn there. `styled` worlds have
        requests in a style, and the teacher decides on wordings too.
        """
        self._config, self._chat, self._images, self._styled = config, chat, images, styled
        self._profile = PROFILES[profile]
        self._place = lru_cache(maxsize=config.worlds)(self._build)

    def _build(self, number: int) -> tuple[World, dict[str, Tool]]:
        seed, images = derive_seed(self._config.seed, "cold-start", number), self._images
        world = build_world(seed, Partition.TRAIN, images, sight=images is not None, styled=self._styled)
        tools = world_tools(world)
        return world, tools if images is None else running_tools(tools, self._profile.observations, images)

    def batches(self, done: int = 0) -> Iterator[list[Trajectory]]:
        """Yield one batch of trajectories per step, those of the first `done` steps left out.

        A few batches are drawn together and sorted by length, so that batches hold little padding. Then the order of
        the batches is shuffled again.
        """
        size, window = self._config.batch_size, 4
        for first in range(done - done % window, self._config.steps, window):
            steps = range(first, min(first + window, self._config.steps))
            pool = asyncio.run(self._draw(steps))
            pool.sort(key=lambda t: len(t.ledger))
            order = np.random.default_rng(derive_seed(self._config.seed, "order", first)).permutation(len(steps))
            yield from (pool[i * size : (i + 1) * size] for i in order[max(0, done - first) :])

    async def _draw(self, steps: range) -> list[Trajectory]:
        size = self._config.batch_size
        return [await self.trajectory(step, step * size + i) for step in steps for i in range(size)]

    async def trajectory(self, step: int, index: int) -> Trajectory:
        """Play the teacher's trajectory number `index` as it belongs to a step of the curriculum."""
        config = self._config
        rng = np.random.default_rng(derive_seed(config.seed, "lesson", index))
        world, tools = self._place(int(rng.integers(config.worlds)))
        request = make_request(world, int(rng.integers(1 << 30)))
        truth = Truth.model_validate(request.meta["truth"])
        stated = step < config.stated_fraction * config.steps or rng.random() < config.stated_share_later
        decisions = decide(truth, rng, STATED if stated else config.teacher, wordings=self._styled)
        read = None if self._images is None else self._images.get
        return await play(request, truth, decisions, tools, self._chat, guided=stated, profile=self._profile, read=read)


class ColdStartConfig(RecipeConfig):
    """Configure the whole recipe of the cold start: model, curriculum, optimization.

    The defaults made the shipped checkpoint.
    """

    curriculum: CurriculumConfig = CurriculumConfig()

    @property
    def steps(self) -> int:
        """Number of optimization steps in total: exercises alone, then lessons."""
        return self.curriculum.exercise_steps + self.curriculum.steps

    def changed(self, *, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe with another number of steps in total, or another seed.

        Exercises keep their share of the steps; at least one step is a lesson.
        """
        lessons = self.curriculum.model_dump()
        if steps is not None:
            exercises = min(steps - 1, round(steps * self.curriculum.exercise_steps / self.steps))
            lessons |= {"exercise_steps": exercises, "steps": steps - exercises}
        if seed is not None:
            lessons["seed"] = seed
        return type(self).model_validate(self.model_dump() | {"curriculum": lessons})


def train_cold_start(
    config: ColdStartConfig, folder: Path, on_step: OnStep | None = None, *, overwrite: bool = False
) -> None:
    """Train the cold start from random weights and write it to `folder` in HF layout, together with its provenance.

    It resumes where the folder holds the same training unfinished. Raises as `train_recipe`.
    """
    from genevolve_ray.learning.policy import save_policy
    from genevolve_ray.learning.sft import SftConfig

    tokenizer = build_tokenizer()
    model = config.new_model(tokenizer, config.curriculum.seed)

    def save(target: Path) -> None:
        save_policy(model, tokenizer, target)

    settings = SftConfig(steps=config.steps, lr=config.lr, final_lr_fraction=0.02)
    batches = partial(cold_start_batches, config.curriculum, tokenizer)
    train_recipe(config, model, settings, batches, save, folder, on_step, overwrite=overwrite)


def cold_start_batches(
    lessons: CurriculumConfig, tokenizer: PreTrainedTokenizerFast, done: int = 0, *, styled: bool = False
) -> Iterator[list[SftExample]]:
    """Yield the batch of every step after the first `done`: exercises alone, then lessons with some exercises."""
    from genevolve_ray.learning.sft import SftExample

    curriculum = Curriculum(lessons, ChatFormat(tokenizer), styled=styled)
    taught = curriculum.batches(max(0, done - lessons.exercise_steps))
    rng = np.random.default_rng(derive_seed(lessons.seed, "exercises"))
    for step in range(lessons.exercise_steps + lessons.steps):
        alone = step < lessons.exercise_steps
        # Exercises follow from those before them, so that all are drawn.
        count = lessons.exercises + (lessons.batch_size if alone else 0)
        drills = [SftExample(*exercise(rng, tokenizer, styled=styled)) for _ in range(count)]
        if step >= done:
            played = [] if alone else next(taught)
            yield [SftExample(t.ledger.tokens, t.ledger.policy_mask) for t in played] + drills


async def play(
    request: Request,
    truth: Truth,
    decisions: Decisions,
    tools: dict[str, Tool],
    chat: ChatFormat,
    *,
    guided: bool,
    profile: ProtocolProfile = PROFILES["atlas"],
    read: ReadPicture | None = None,
) -> Trajectory:
    """Let the teacher play one request through the real episode loop; `guided` puts its decisions into the context.

    `read` returns the files of pictures, where the profile shows some.

    Raises:
        RuntimeError: when the teacher breaks the protocol, because the policy would learn to break it.
    """
    trajectory = await run_episode(
        request,
        key=SampleKey(step=0, request_id=request.id, sample=0),
        # An episode only generates.
        session=TokenSession(
            cast(Engine, TeacherEngine(Teacher(truth, decisions), chat)), chat, SamplingParams(), read
        ),
        tools=tools,
        profile=profile,
        seed=0,
        experience=as_experience(decisions) if guided else None,
    )
    if trajectory.outcome is not Outcome.PENDING:
        raise RuntimeError(f"the teacher failed on {request.prompt!r}: {trajectory.reason}")
    return trajectory
