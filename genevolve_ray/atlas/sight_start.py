"""The cold start with sight: a small Qwen3-VL learns to see and to act from nothing, its vision tower included.

First it names pictures and learns to copy, then it practises what a trajectory asks of it, then it follows the teacher.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.coldstart import ColdStartConfig, Curriculum, CurriculumConfig
from genevolve_ray.atlas.recipe_training import OnStep, train_recipe
from genevolve_ray.atlas.seeing_recipe import SeeingRecipe
from genevolve_ray.atlas.sight_exercises import SightExercise, practise, see
from genevolve_ray.atlas.teacher import TeacherConfig
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import picture_of_look
from genevolve_ray.learning.config import OptimizerName
from genevolve_ray.models.image_processor import load_image_processor
from genevolve_ray.models.image_tokens import load_image_tokens
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from genevolve_ray.learning.batch import PictureInput
    from genevolve_ray.learning.sft import SftExample

PROFILE = "atlas-sight"


class SightStartConfig(SeeingRecipe, ColdStartConfig):
    """Configure the whole recipe of the cold start with sight. The defaults made the shipped checkpoint."""

    seeing_fraction: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps of exercises, from the first, in which half of the exercises are names of pictures and the
    others show none: to see and to copy are learned apart."""
    seeing: int = Field(default=2, ge=0)
    """Exercises of names in every later batch, among the others."""
    curriculum: CurriculumConfig = CurriculumConfig(
        steps=1000, exercise_steps=700, batch_size=10, exercises=10, teacher=TeacherConfig(official=0.6)
    )
    lr: float = Field(default=3e-3, gt=0)


class _Pictures:
    """Prepare pictures for the tower, each once: the world has few looks."""

    def __init__(self, processor: Any, images: MemoryImages) -> None:
        self._images = images
        self._read = cache(lambda sha256: self._prepare(sha256, processor))
        self._files: dict[str, bytes] = {}

    def _prepare(self, sha256: str, processor: Any) -> PictureInput:
        from genevolve_ray.learning.vision import picture_input
        from genevolve_ray.records.pictures import open_picture

        return picture_input(open_picture(self._files[sha256]), processor, sha256)

    def of_exercise(self, exercise: SightExercise) -> SftExample:
        """Return an exercise with its pictures."""
        found = [picture_of_look(look)[0] for look in exercise.looks]
        shas = [hashlib.sha256(data).hexdigest() for data in found]
        self._files.update(zip(shas, found, strict=True))
        return self._example(exercise.tokens, exercise.mask, shas)

    def of_lesson(self, lesson: Trajectory) -> SftExample:
        """Return a trajectory with the pictures that the teacher saw."""
        shas = [span.sha256 for span in lesson.ledger.media]
        self._files.update((sha, self._images.get(lesson.shown(sha))) for sha in shas if sha not in self._files)
        return self._example(lesson.ledger.tokens, lesson.ledger.policy_mask, shas)

    def _example(self, tokens: list[int], mask: list[bool], shas: list[str]) -> SftExample:
        from genevolve_ray.learning.batch import ImageInputs
        from genevolve_ray.learning.sft import SftExample

        return SftExample(tokens, mask, ImageInputs(tuple(map(self._read, shas))) if shas else None)


def train_sight_start(
    config: SightStartConfig, folder: Path, on_step: OnStep | None = None, *, overwrite: bool = False
) -> None:
    """Train the cold start with sight from random weights and write it to `folder`, together with its provenance.

    It resumes where the folder holds the same training unfinished. Raises as `train_recipe`.
    """
    from genevolve_ray.learning.sft import SftConfig

    tokenizer = build_tokenizer(sight=True)
    model = config.new_model(tokenizer, config.curriculum.seed)
    with tempfile.TemporaryDirectory(prefix="genevolve-sight-") as beginning:
        config.write_shape(model, beginning)
        # Muon needs half of AdamW's steps here.
        settings = SftConfig(steps=config.steps, lr=config.lr, final_lr_fraction=0.02, optimizer=OptimizerName.MUON)
        batches = partial(_batches, config, tokenizer, Path(beginning))
        save = partial(config.save, model, tokenizer)
        train_recipe(config, model, settings, batches, save, folder, on_step, overwrite=overwrite)


def _batches(
    config: SightStartConfig, tokenizer: PreTrainedTokenizerFast, model_dir: Path, done: int
) -> Iterator[list[SftExample]]:
    """Yield the batch of every step after the first `done`."""
    lessons, images = config.curriculum, MemoryImages()
    pictures = _Pictures(load_image_processor(model_dir), images)
    tokens = (config.image_side // config.patch_size) ** 2 // 4
    rng = np.random.default_rng(derive_seed(lessons.seed, "exercises"))
    chat = ChatFormat(tokenizer, image_tokens=load_image_tokens(model_dir))
    taught = Curriculum(lessons, chat, PROFILE, images).batches(max(0, done - lessons.exercise_steps))
    whole, naming = lessons.batch_size + lessons.exercises, round(config.seeing_fraction * lessons.exercise_steps)
    for step in range(config.steps):
        alone, seen = step < lessons.exercise_steps, step >= naming
        count = whole if alone else lessons.exercises
        seeing = min(config.seeing, lessons.exercises) if seen else whole // 2
        # Exercises follow from those before them, so that all are drawn.
        drills = [see(rng, tokenizer, tokens) for _ in range(seeing)]
        drills += [practise(rng, tokenizer, tokens, seen=seen) for _ in range(count - seeing)]
        if step >= done:
            played = [] if alone else next(taught)
            yield [*map(pictures.of_lesson, played), *map(pictures.of_exercise, drills)]
