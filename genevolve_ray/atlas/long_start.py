"""The cold start of `atlas-long`: it copies, knows now from once, and words each structure in any of its ways."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from genevolve_ray.atlas.coldstart import ColdStartConfig, CurriculumConfig, cold_start_batches
from genevolve_ray.atlas.recipe_training import OnStep, train_recipe
from genevolve_ray.atlas.teacher import TeacherConfig
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.learning.config import OptimizerName


class LongStartConfig(ColdStartConfig):
    """Configure the whole recipe of the cold start of `atlas-long`. The defaults made the shipped checkpoint."""

    curriculum: CurriculumConfig = CurriculumConfig(
        steps=1500,
        exercise_steps=500,
        teacher=TeacherConfig(skill_recall=0.8, search=0.97, official=0.9, current=0.97),
        stated_share_later=0.4,
    )
    lr: float = 3e-3


def train_long_start(
    config: LongStartConfig, folder: Path, on_step: OnStep | None = None, *, overwrite: bool = False
) -> None:
    """Train the cold start from random weights and write it to `folder`, together with its provenance.

    It resumes where the folder holds the same training unfinished. Raises as `train_recipe`.
    """
    from genevolve_ray.learning.new_policy import look_back
    from genevolve_ray.learning.policy import save_policy
    from genevolve_ray.learning.sft import SftConfig

    tokenizer = build_tokenizer(styled=True)
    model = config.new_model(tokenizer, config.curriculum.seed)
    look_back(model)

    def save(target: Path) -> None:
        save_policy(model, tokenizer, target)

    # Copying is learned fastest by Muon from heads that look back (docs/log.md, data builds).
    settings = SftConfig(steps=config.steps, lr=config.lr, final_lr_fraction=0.02, optimizer=OptimizerName.MUON)
    batches = partial(cold_start_batches, config.curriculum, tokenizer, styled=True)
    train_recipe(config, model, settings, batches, save, folder, on_step, overwrite=overwrite)
