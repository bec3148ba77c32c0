"""The training of the image-text model, over a random text tower; the assembled folder in the ordinary judges."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.errors import UserFault
from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.likeness_judge import LikenessJudge, LikenessJudgeConfig
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small.alike import alike_scenes
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose
from genevolve_ray.small.training.image_text import (
    ImageTextTraining,
    assemble_image_text,
    contrast,
    train_image_text,
)
from genevolve_ray.small.training.shots import (
    POINTS,
    Shot,
    alike_shots,
    altered,
    drawn_group,
    drawn_lineup,
    drawn_scene,
)

SHORT = {"groups": 3, "plain_groups": 1, "batch": 2, "group_size": 2, "steps": 4, "warmup": 1, "save_every": 2}
PROGRAM = Program(gen_prompt="a cat", reference_images=())


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BertModel with the word pieces of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("embedder")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.\"'-"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=256, **size)).save_pretrained(folder)
    tokenizer = BertTokenizer({piece: i for i, piece in enumerate(vocabulary)}, model_max_length=256)
    tokenizer.save_pretrained(folder)
    return folder


def trained(library: PictureLibrary, embedder: Path, out: Path, **settings: Any) -> Path:
    return train_image_text(library, embedder, out, ImageTextTraining(**{**SHORT, **settings}))


def png(scene: SmallScene, library: PictureLibrary, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    compose(scene, library, seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def asking(prompt: str) -> Request:
    return Request(id="r", prompt=prompt, eval_type=EvalType.QUALITY)


def test_a_training_that_was_interrupted_ends_with_the_same_weights(
    library: PictureLibrary, embedder: Path, tmp_path: Path
) -> None:
    whole = trained(library, embedder, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("image-text") and done == 3:
            raise Interrupted

    again = tmp_path / "again"
    with pytest.raises(Interrupted):
        train_image_text(library, embedder, again, ImageTextTraining(**SHORT), progress=stop)
    told: list[tuple[int, int]] = []
    resumed = train_image_text(
        library,
        embedder,
        again,
        ImageTextTraining(**SHORT),
        progress=lambda what, done, total: told.append((done, total)),
    )
    assert resumed.read_bytes() == whole.read_bytes()
    assert told[-2:] == [(3, 4), (4, 4)]
    record = json.loads((again / "provenance.json").read_text())
    assert record["settings"]["steps"] == 4 and record["sha256"].keys() == {"weights.safetensors"}


def test_a_checkpoint_of_other_settings_is_refused(library: PictureLibrary, embedder: Path, tmp_path: Path) -> None:
    trained(library, embedder, tmp_path)
    with pytest.raises(UserFault, match=r"checkpoint.safetensors: a training with .* remove it to start anew"):
        trained(library, embedder, tmp_path, seed=1)


async def test_the_assembled_folder_is_an_ordinary_model_of_both_judges(
    library: PictureLibrary, embedder: Path, tmp_path: Path
) -> None:
    folder = assemble_image_text(trained(library, embedder, tmp_path / "run"), embedder, tmp_path / "folder")
    picture = png(SmallScene(subject="1F408", background="red"), library)
    wide = {"model": str(folder), "low": -1, "high": 1}
    alignment = AlignmentJudge(AlignmentJudgeConfig.model_validate(wide))
    likeness = LikenessJudge(LikenessJudgeConfig.model_validate(wide))
    fit = await alignment.judge(asking("a cat on a red background"), picture, b"", PROGRAM, [])
    same = await likeness.judge(asking(""), picture, picture, PROGRAM, [])
    assert -1 < fit.components["alignment"].value < 1 and fit.flags == ()
    assert same.components["likeness"].value == pytest.approx(1, abs=1e-4)


def test_weights_of_something_else_and_another_text_tower_are_refused(embedder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserFault, match=r"other.safetensors: not the weights of this image-text model \(1 of \d+"):
        assemble_image_text(tmp_path / "other.safetensors", embedder, tmp_path / "folder")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPTextModel(CLIPTextConfig(vocab_size=8, **size)).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserFault, match=r"clip holds a CLIPTextModel: the text tower must be a BertModel"):
        assemble_image_text(tmp_path / "other.safetensors", tmp_path / "clip", tmp_path / "folder")


def test_pairs_that_say_the_same_are_no_negatives() -> None:
    import torch

    one, other = torch.eye(4), torch.eye(4).roll(1, 0)
    alike = torch.zeros(4, 4, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = alike[3, 3] = True
    scale = torch.tensor(2.0)

    def without(rows: list[int]) -> torch.Tensor:
        """The mean loss of rows, of which the first does not see the second and the other way round."""
        logits = scale * one @ other.T
        losses = []
        for own in (logits, logits.T):
            for row in range(4):
                seen = [column for column in range(4) if not (row in rows and column in rows and row != column)]
                losses.append(torch.logsumexp(own[row, seen], 0) - own[row, row])
        return torch.stack(losses).mean()

    nothing = torch.zeros_like(alike)
    assert contrast(one, other, scale, alike).item() == pytest.approx(without([0, 1]).item())
    assert contrast(one, other, scale, nothing).item() == pytest.approx(without([]).item())


def test_pictures_that_can_pass_for_each_other_and_equal_texts_are_alike(library: PictureLibrary) -> None:
    cat = SmallScene(subject="1F408", background="ID")
    gray = cat.model_copy(update={"style": "black-and-white"})
    shots = {
        "Indonesia": Shot("a", cat),
        "Monaco": Shot("b", cat.model_copy(update={"background": "MC"})),
        "France": Shot("c", cat.model_copy(update={"background": "FR"})),
        "two": Shot("d", cat.model_copy(update={"background": "MC", "count": 2})),
        "letters": Shot("e", cat.model_copy(update={"background": "MC", "caption": "AB"})),
        "blue": Shot("f", cat.model_copy(update={"background": "blue"})),
        "purple": Shot("g", cat.model_copy(update={"background": "purple"})),
        "gray blue": Shot("h", gray.model_copy(update={"background": "blue"})),
        "gray purple": Shot("i", gray.model_copy(update={"background": "purple"})),
        "the flag": Shot("j", alone=library.flags["ID"].id),
        "its like": Shot("k", alone=library.flags["MC"].id),
        "China": Shot("l", alone=library.flags["CN"].id),
        "red": Shot("m", alone="red"),
        "a cat": Shot("n", alone="1F408"),
        "a dog": Shot("o", alone="1F415"),
        "said so": Shot("o", cat.model_copy(update={"background": "JP"})),
    }
    alike = alike_shots(list(shots.values()), library)
    names = list(shots)
    pairs = {(names[i], names[j]) for i in range(len(names)) for j in range(i) if alike[i, j]}
    assert alike.diagonal().all() and (alike == alike.T).all()
    assert pairs == {
        ("Monaco", "Indonesia"),
        ("gray purple", "gray blue"),
        ("its like", "the flag"),
        ("red", "China"),
        ("said so", "a dog"),
    }


def test_gray_things_on_gray_are_the_same_in_black_and_white(library: PictureLibrary) -> None:
    scene = SmallScene(subject="1F418", background="gray")
    other = scene.model_copy(update={"style": "black-and-white"})
    assert alike_scenes(scene, other, library)
    assert not alike_scenes(*(one.model_copy(update={"background": "red"}) for one in (scene, other)), library)


def test_a_lineup_shows_one_scene_with_different_subjects_of_a_group(library: PictureLibrary) -> None:
    for seed in range(8):
        scenes = [shot.scene for shot in drawn_lineup(random.Random(seed), library, 4)]
        assert len({scene.subject for scene in scenes if scene}) == 4
        assert len({library.subjects[scene.subject].group for scene in scenes if scene}) == 1
        assert len({scene.model_copy(update={"subject": "1F408"}) for scene in scenes if scene}) == 1


@pytest.mark.parametrize("point", POINTS)
def test_an_altered_scene_differs_in_its_point_alone(library: PictureLibrary, point: Any) -> None:
    rng = random.Random(0)
    for _ in range(20):
        scene = drawn_scene(rng, library)
        other = altered(scene, point, rng, library)
        differs = {name for name, value in scene.model_dump().items() if other.model_dump()[name] != value}
        assert differs == {point}
        assert point == "style" or not alike_scenes(scene, other, library)


def test_a_group_follows_from_its_seed_and_has_pictures_of_one_size(library: PictureLibrary) -> None:
    groups = [drawn_group(random.Random(seed), library, 4) for seed in range(12)]
    assert groups == [drawn_group(random.Random(seed), library, 4) for seed in range(12)]
    assert {len({shot.text for shot in group}) for group in groups} == {4}
    assert {shot.drawn(library, 0).size for group in groups for shot in group} == {(64, 64)}
    assert any(shot.alone for group in groups for shot in group)
