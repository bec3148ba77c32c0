"""The image-text weights that ship: on easy pairs, the ordinary judges put the right picture first."""

from __future__ import annotations

import io
import json
import random
from hashlib import sha256
from importlib import resources
from pathlib import Path

import pytest

from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.likeness_judge import LikenessJudge, LikenessJudgeConfig
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose
from genevolve_ray.small.training.image_text import assemble_image_text
from genevolve_ray.small.training.shots import altered, drawn_scene, plain_words

PROGRAM = Program(gen_prompt="a cat", reference_images=())
PAIRS = 20


@pytest.fixture(scope="module")
def shipped() -> Path:
    folder = Path(str(resources.files("genevolve_ray.small") / "prebuilt" / "image_text"))
    if not (folder / "weights.safetensors").is_file():
        pytest.skip("this source tree has no image-text weights")
    return folder


@pytest.fixture(scope="module")
def model(shipped: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(assemble_image_text(shipped / "weights.safetensors", minilm, tmp_path_factory.mktemp("image_text")))


@pytest.fixture(scope="module")
def scenes(library: PictureLibrary) -> list[tuple[SmallScene, SmallScene]]:
    """Scenes of no training group, each with one that has another background."""
    rng, found = random.Random("easy pairs"), []
    for _ in range(PAIRS):
        scene = drawn_scene(rng, library).model_copy(update={"style": "color"})
        found.append((scene, altered(scene, "background", rng, library)))
    return found


def png(scene: SmallScene, library: PictureLibrary, seed: int) -> bytes:
    buffer = io.BytesIO()
    compose(scene, library, seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_weights_are_those_of_their_provenance_and_small(shipped: Path) -> None:
    data = (shipped / "weights.safetensors").read_bytes()
    record = json.loads((shipped / "provenance.json").read_text())
    assert record["sha256"]["weights.safetensors"] == sha256(data).hexdigest()
    assert len(data) <= 1.5 * 2**20


async def test_likeness_prefers_the_background_of_the_truth(
    model: str, scenes: list[tuple[SmallScene, SmallScene]], library: PictureLibrary
) -> None:
    judge = LikenessJudge(LikenessJudgeConfig(model=model, low=-1, high=1))
    right = 0
    for scene, other in scenes:
        request = Request(id="r", prompt="", eval_type=EvalType.QUALITY)
        truth, pictures = png(scene, library, 0), [png(each, library, 1) for each in (scene, other)]
        same, wrong = [
            (await judge.judge(request, one, truth, PROGRAM, [])).components["likeness"].value for one in pictures
        ]
        right += same > wrong
    assert right >= PAIRS - 1


async def test_alignment_prefers_the_picture_of_its_text(
    model: str, scenes: list[tuple[SmallScene, SmallScene]], library: PictureLibrary
) -> None:
    judge = AlignmentJudge(AlignmentJudgeConfig(model=model, text="meta.truth_caption", low=-1, high=1))
    right = 0
    for number, (scene, _) in enumerate(scenes):
        meta = {"truth_caption": plain_words(scene)}
        request = Request(id="r", prompt="", eval_type=EvalType.QUALITY, meta=meta)
        pictures = [png(each, library, 1) for each in (scene, scenes[number - 1][0])]
        same, wrong = [
            (await judge.judge(request, one, b"", PROGRAM, [])).components["alignment"].value for one in pictures
        ]
        right += same > wrong
    assert right >= PAIRS - 2
