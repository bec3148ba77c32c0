"""The cold start with sight: its curriculum, and a folder that everything reads as any other Qwen3-VL folder."""

from __future__ import annotations

import asyncio
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from sight_worlds import seeing_chat

from genevolve_ray.atlas.coldstart import Curriculum, CurriculumConfig
from genevolve_ray.atlas.sight_start import PROFILE, SightStartConfig, train_sight_start
from genevolve_ray.config import load_config
from genevolve_ray.doctor.model_folder import check_architecture
from genevolve_ray.engines.ban import banned_token_ids
from genevolve_ray.engines.checks import vocabulary_size
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.learning.policy import load_policy, vision_tower
from genevolve_ray.models.image_processor import load_image_processor
from genevolve_ray.records.images import MemoryImages

SHIPPED = Path(str(resources.files("genevolve_ray.atlas") / "cold_start_sight"))
LESSONS = CurriculumConfig(seed=3, steps=1, batch_size=2, worlds=1, exercise_steps=2, exercises=2)
SMALL = SightStartConfig(hidden_size=32, layers=1, heads=1, intermediate_size=32, curriculum=LESSONS, tower_width=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sight") / "model"
    losses: list[float] = []
    train_sight_start(SMALL, made, lambda _, step: losses.append(step.loss))
    assert len(losses) == SMALL.steps == 3
    return made


def test_a_trained_folder_is_read_as_any_model_that_sees(folder: Path) -> None:
    check_architecture(folder, decoded=True)
    assert vision_tower(load_policy(folder)) is not None
    assert load_image_processor(folder).merge_size == 2
    chat = load_chat(folder)
    assert chat.grid(128, 128) == (1, 4, 4)
    tokens, places = chat.observation("a <image> b", ended=True, grids=[chat.grid(128, 128)])
    assert [end - start for start, end in places] == [4]
    assert chat.decode(tokens).count("<|image_pad|>") == 4


def test_no_control_token_of_a_picture_is_sampled(folder: Path) -> None:
    chat = load_chat(folder)
    banned = banned_token_ids(chat.tokenizer, vocabulary_size(folder), chat.end_of_turn_id)
    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    assert {chat.tokenizer.get_vocab()[token] for token in tokens} <= set(banned)


def test_a_lesson_follows_from_seed_and_index() -> None:
    def lesson(index: int) -> Any:
        return asyncio.run(Curriculum(LESSONS, seeing_chat(), PROFILE, MemoryImages()).trajectory(0, index)).ledger

    assert lesson(5) == lesson(5)
    assert lesson(6) != lesson(5)
    assert lesson(5).media


def test_the_shipped_checkpoint_was_made_by_the_recipe_in_the_code() -> None:
    provenance = json.loads((SHIPPED / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["recipe"] == SightStartConfig().model_dump(mode="json")


def test_the_shipped_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 8 << 20


def test_the_preset_starts_from_the_shipped_checkpoint_and_shows_pictures() -> None:
    config = load_config("atlas-sight")
    assert config.policy.model == "genevolve_ray.atlas:cold_start_sight"
    assert config.protocol.name == PROFILE and config.protocol.observations.images
    assert config.requests.config == config.tools.config == {"seed": 1, "sight": True}
    assert config.engine.vllm.max_images == config.protocol.most_images


@pytest.mark.parametrize("steps", [1, 20, 2300])
def test_a_recipe_of_n_steps_has_n_steps(steps: int) -> None:
    recipe = SightStartConfig().changed(steps=steps, seed=5)
    assert isinstance(recipe, SightStartConfig)
    assert recipe.steps == steps and recipe.curriculum.seed == 5
