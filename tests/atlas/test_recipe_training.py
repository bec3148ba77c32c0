"""A cold start that ends early resumes to the same weights; a folder with another one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.atlas import recipe_training
from genevolve_ray.atlas.base_model import BaseModelConfig, train_base_model
from genevolve_ray.atlas.coldstart import ColdStartConfig, CurriculumConfig, train_cold_start
from genevolve_ray.atlas.judge_model import JudgeModelConfig, train_judge_model
from genevolve_ray.atlas.recipe_training import RecipeConfig
from genevolve_ray.atlas.sight_start import SightStartConfig, train_sight_start
from genevolve_ray.data.sft_folder import OccupiedFolder

LESSONS = CurriculumConfig(seed=3, steps=3, batch_size=2, worlds=1, exercise_steps=2, exercises=2)
SIZES: dict[str, Any] = {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 32}
KINDS: dict[str, tuple[Any, RecipeConfig]] = {
    "atlas": (train_cold_start, ColdStartConfig(**SIZES, curriculum=LESSONS)),
    "atlas-sight": (train_sight_start, SightStartConfig(**SIZES, curriculum=LESSONS, tower_width=32)),
    "atlas-judge": (
        train_judge_model,
        JudgeModelConfig(
            **SIZES | {"heads": 2}, tower_width=32, tower_layers=1, training_steps=5, requests=1, attempts=2, worlds=1
        ),
    ),
    "atlas-base": (train_base_model, BaseModelConfig(**SIZES, exercise_steps=5, batch_size=2)),
}


class Stopped(Exception):
    """Ends a training in the middle."""


def stopping(after: int) -> Any:
    def stop(_: Any, step: Any) -> None:
        if step.step + 1 == after:
            raise Stopped

    return stop


@pytest.mark.parametrize(
    ("kind", "stops"), [("atlas", (2, 5)), ("atlas-sight", (5,)), ("atlas-judge", (5,)), ("atlas-base", (3, 5))]
)
def test_a_cold_start_that_ended_early_goes_on_to_the_same_weights(
    kind: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps: of a cold start two of exercises and three of lessons; the base model has exercises alone."""
    monkeypatch.setattr(recipe_training, "CHECKPOINT_EVERY", 1)
    train, recipe = KINDS[kind]
    train(recipe, tmp_path / "whole")
    for last in stops:
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "parts", stopping(last))
    with pytest.raises(OccupiedFolder, match=r"holds another training: lr was 0\.003, now 0\.1; --overwrite"):
        train(recipe.model_copy(update={"lr": 0.1}), tmp_path / "parts")
    steps: list[int] = []
    train(recipe, tmp_path / "parts", lambda _, step: steps.append(step.step))
    assert steps == [4]
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir()) and "provenance.json" in names
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    made = [json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("whole", "parts")]
    assert {**made[0], "seconds": 0} == {**made[1], "seconds": 0}


def test_a_finished_cold_start_is_replaced_on_demand(tmp_path: Path) -> None:
    train, recipe = KINDS["atlas"]
    lone = recipe.changed(steps=1)
    train(lone, tmp_path)
    with pytest.raises(OccupiedFolder, match=r"holds a finished training \(provenance\.json\)"):
        train(lone, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    train(lone.changed(seed=4), tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").read_bytes() != before
