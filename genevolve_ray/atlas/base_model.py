"""A base model of the atlas: a small Qwen3 that can copy and look up, and knows no trajectory, no tool and no skill.

A team fine-tunes a pretrained model on its rows. This model takes that place where there is none to download.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field

from genevolve_ray.atlas.exercises import exercise
from genevolve_ray.atlas.recipe_training import OnStep, RecipeConfig, train_recipe
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.learning.config import OptimizerName
from genevolve_ray.records.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from genevolve_ray.learning.sft import SftExample


class BaseModelConfig(RecipeConfig):
    """Configure the whole recipe of the base model: model, exercises, optimization."""

    seed: int = Field(default=17, ge=0)
    exercise_steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=18, ge=1)
    """Exercises of one step."""
    length: int = Field(default=192, ge=1)
    """Least tokens of an exercise."""

    @property
    def steps(self) -> int:
        """Number of optimization steps."""
        return self.exercise_steps

    def changed(self, *, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe with another number of steps, or another seed."""
        given = {"exercise_steps": steps, "seed": seed}
        return type(self).model_validate(self.model_dump() | {k: v for k, v in given.items() if v is not None})


def train_base_model(
    config: BaseModelConfig, folder: Path, on_step: OnStep | None = None, *, overwrite: bool = False
) -> None:
    """Train the base model from random weights and write it to `folder` in HF layout, together with its provenance.

    It resumes where the folder holds the same training unfinished. Raises as `train_recipe`.
    """
    from genevolve_ray.learning.policy import save_policy
    from genevolve_ray.learning.sft import SftConfig

    tokenizer = build_tokenizer()
    model = new_base_model(config, tokenizer)

    def save(target: Path) -> None:
        save_policy(model, tokenizer, target)

    settings = SftConfig(steps=config.steps, lr=config.lr, final_lr_fraction=0.02, optimizer=OptimizerName.MUON)
    batches = partial(base_batches, config, tokenizer)
    train_recipe(config, model, settings, batches, save, folder, on_step, overwrite=overwrite)


def new_base_model(config: BaseModelConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return the model of the recipe before its first step: random weights, and first heads that look back."""
    from genevolve_ray.learning.new_policy import look_back

    model = config.new_model(tokenizer, config.seed)
    look_back(model)
    return model


def base_batches(
    config: BaseModelConfig, tokenizer: PreTrainedTokenizerFast, done: int = 0
) -> Iterator[list[SftExample]]:
    """Yield the exercises of every step after the first `done`."""
    from genevolve_ray.learning.sft import SftExample

    for step in range(done, config.steps):
        rng = np.random.default_rng(derive_seed(config.seed, "base", step))
        yield [SftExample(*exercise(rng, tokenizer, config.length)) for _ in range(config.batch_size)]
