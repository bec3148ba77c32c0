"""Stored trajectories that show pictures: the learner sees the files that the policy saw, or refuses to train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_pictures import noise_file
from seeing_scene import Counting, Scene
from zoo import build

from genevolve_ray.engines.protocol import WeightUpdateError
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.evolution.learner import training_sequences
from genevolve_ray.evolution.pictures import StoredPictureMismatch, TrajectoryPictures
from genevolve_ray.learning.advantage import AdvantageConfig
from genevolve_ray.records.experience import Experience, Lesson
from genevolve_ray.records.images import ImageDamaged, MemoryImages


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2.5-vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def images() -> Counting:
    return Counting()


@pytest.fixture
def scene(folder: Path, images: Counting) -> Scene:
    return Scene(folder, images)


def pictures_of(scene: Scene) -> TrajectoryPictures:
    return TrajectoryPictures(scene.chat.image_tokens, scene.images)


def test_each_file_is_read_once_a_step_and_shared_by_the_rollouts(scene: Scene, images: Counting) -> None:
    sequences = training_sequences([scene.group()], AdvantageConfig(), pictures=pictures_of(scene))
    first, second, third, text = (s.images.pictures if s.images else () for s in sequences)
    assert (len(first), len(third), len(text)) == (2, 1, 0)
    assert first[0] is second[0] and first[1] is second[1] is third[0]
    assert sorted(images.read) == sorted([scene.wide.sha256, scene.tall.sha256])
    assert [p.sha256 for p in first] == [scene.wide.sha256, scene.tall.sha256]


def refused(scene: Scene, said: str, **change: Any) -> None:
    trajectory = scene.trajectory(2, [scene.wide, scene.tall])
    first, second = trajectory.ledger.media
    trajectory.ledger.media = [first.model_copy(update=change), second]
    with pytest.raises(StoredPictureMismatch, match=rf"trajectory 1/r/2/0: .*{said}"):
        pictures_of(scene)(trajectory)


def test_another_picture_is_refused(scene: Scene, images: Counting) -> None:
    images._data[scene.wide.sha256] = noise_file(9, (96, 64))
    refused(scene, r"the image of tokens \[\d+, \d+\) is another: sha256")


def test_another_grid_is_refused(scene: Scene) -> None:
    time, height, width = scene.chat.grid(96, 64)
    refused(scene, rf"has patch grid \(1, {height}, {width}\) for .* the span has", grid=(time, width, height))


def test_another_place_is_refused(scene: Scene) -> None:
    span = scene.trajectory(2, [scene.wide, scene.tall]).ledger.media[0]
    refused(scene, f"has another token at {span.start - 1}", start=span.start - 1)
    refused(scene, "but the spans of its pictures cover", end=span.end - 1)


def test_a_file_that_is_gone_is_named(scene: Scene, images: Counting) -> None:
    trajectory = scene.trajectory(0, [scene.wide])
    del images._data[scene.wide.sha256]
    with pytest.raises(ImageDamaged, match=f"picture {scene.wide.sha256} is missing from the store"):
        pictures_of(scene)(trajectory)
    trajectory.images = {}
    with pytest.raises(StoredPictureMismatch, match="has no picture .* among those that it was shown"):
        pictures_of(scene)(trajectory)


def test_a_policy_that_does_not_see_refuses_trajectories_with_pictures(scene: Scene) -> None:
    with pytest.raises(StoredPictureMismatch, match="trajectory 1/r/0/0 shows pictures, but the policy does not see"):
        TrajectoryPictures(None, scene.images)(scene.trajectory(0, [scene.wide]))


EXPERIENCE = Experience(guidance={"search_strategy": ("Look at the beak first.",)})


def test_the_teacher_sees_the_same_pictures_later_by_the_length_of_the_guide(scene: Scene, tmp_path: Path) -> None:
    trajectory = scene.trajectory(0, [scene.wide, scene.tall])
    images = pictures_of(scene)(trajectory)
    context = scene.patch.context(trajectory, EXPERIENCE, images)
    assert context is not None and images is not None and context.images is images
    tokens, place = trajectory.ledger.tokens, len(scene.patch._before)
    guide = len(context.tokens) - len(tokens)
    assert guide > 0
    model = vars(scene.learner(tmp_path))["_learner"].model

    def positions(tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(tokens)])
        kinds = (ids == model.config.image_token_id).int()
        grids = images.grid_thw
        found: torch.Tensor = model.base_model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids)[0]
        return found[:, 0]

    own, taught = positions(tokens), positions(context.tokens)
    assert torch.equal(taught[:, place + guide :], own[:, place:] + guide)
    assert torch.equal(taught[:, :place], own[:, :place])


@pytest.mark.parametrize(
    "lora", [None, {"rank": 4, "projector": True, "publish": "merged"}], ids=["whole", "projectors"]
)
async def test_what_an_engine_samples_with_pictures_is_what_the_learner_scores(
    scene: Scene, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    learner = scene.learner(tmp_path, lr=1e-2, lora=lora)
    engine = TransformersEngine(scene.folder, banned=scene.banned)
    tokens = scene.chat.image_tokens
    assert tokens is not None
    try:
        for version in (1, 2, 3):
            metrics = await learner.step([await scene.played(engine)], version)
            assert metrics["parity_images"] < 1e-5 and metrics["parity"] < 1e-5
            weights = await learner.publish(version)
            probe = weights.probe
            [image] = probe.media
            shown = probe.token_ids[image.span.start : image.span.end]
            assert shown == (tokens.id,) * tokens.count(image.span.grid) and probe.token_ids.count(tokens.id) == len(
                shown
            )
            assert await engine.update(await weights.folder(), version, probe) < 1e-5
        other = noise_file(9, (96, 64))
        sha256 = MemoryImages().put(other, width=96, height=64).sha256
        span = image.span.model_copy(update={"sha256": sha256})
        wrong = probe.model_copy(update={"media": (image.model_copy(update={"data": other, "span": span}),)})
        with pytest.raises(WeightUpdateError, match="is off by"):
            await engine.update(await weights.folder(), 4, wrong)
    finally:
        await engine.close()


async def test_lessons_teach_with_pictures(scene: Scene, images: Counting, tmp_path: Path) -> None:
    lesson = Lesson(request_id="r", bundle=1, experience=EXPERIENCE, similarity=1.0, own=False)
    learner = scene.learner(tmp_path, ved={"coefficient": 0.5})
    metrics = await learner.step([scene.group()], 1, [lesson])
    assert metrics["taught_sequences"] == 4 and metrics["teacher_contexts_too_long"] == 0
    assert images.read.count(scene.wide.sha256) == 1
