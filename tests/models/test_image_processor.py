"""The image processor of a model folder, and what makes it unusable."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.models.image_processor import load_image_processor
from genevolve_ray.models.image_tokens import load_image_tokens

SETTINGS = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, "merge_size": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "config.json", {"vision_config": {"patch_size": 16, "spatial_merge_size": 2}})
    write(tmp_path / "preprocessor_config.json", SETTINGS)
    return tmp_path


def write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content))


def test_it_is_the_one_that_the_whole_processor_has(folder: Path) -> None:
    """vLLM takes its image processor from AutoProcessor; another class may scale a picture to other pixels."""
    from transformers import Qwen2VLImageProcessor

    assert type(load_image_processor(folder)) is Qwen2VLImageProcessor


def test_a_folder_without_one_is_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=rf"{folder} has no image processor \(preprocessor_config\.json or"):
        load_image_processor(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 14}, "patch_size=14, but config.json has vision_config.patch_size=16"),
        ({"merge_size": 4}, "merge_size=4, but config.json has vision_config.spatial_merge_size=2"),
    ],
)
def test_patches_of_another_size_than_the_towers_are_refused(folder: Path, change: dict[str, int], said: str) -> None:
    write(folder / "preprocessor_config.json", SETTINGS | change)
    with pytest.raises(ValueError, match=said):
        load_image_processor(folder)


def test_without_torchvision_the_line_names_model_and_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(
        ValueError, match=f"{folder} sees: it needs torchvision, which is not installed .run make setup"
    ):
        load_image_processor(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", r"preprocessor_config\.json must hold a JSON object, got list"),
        ("null", r"preprocessor_config\.json must hold a JSON object, got NoneType"),
        ("{", r"preprocessor_config\.json is not valid JSON"),
        ("[" * 100_000, r"preprocessor_config\.json is not valid JSON"),
        ('{"image_processor": [1]}', "is not a JSON object"),
        ('{"image_processor_type": "Unknown"}', "cannot be loaded: Unrecognized image processor"),
        ('{"image_processor_type": "CLIPImageProcessor"}', r"\(CLIPImageProcessor\) is none of a Qwen-VL model"),
        (json.dumps(SETTINGS | {"size": {"height": 64, "width": 64}}), "it needs .* shortest_edge and longest_edge"),
        (json.dumps(SETTINGS | {"size": "large"}), "cannot be loaded"),
    ],
)
def test_a_file_that_is_no_processor_of_these_models_is_named(folder: Path, text: str, said: str) -> None:
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=said) as fault:
        load_image_processor(folder)
    assert str(folder) in str(fault.value)


@pytest.mark.parametrize("token", ["x", [3], -1, True, 1.5])
def test_an_image_token_that_is_no_id_is_named(folder: Path, token: object) -> None:
    write(folder / "config.json", {"vision_config": {}, "image_token_id": token})
    with pytest.raises(ValueError, match=r"config\.json has image_token_id=.*, which is no token id"):
        load_image_tokens(folder)


@pytest.mark.parametrize("config", [{}, {"vision_config": None, "image_token_id": 3}, {"vision_config": {}}])
def test_a_configuration_without_vision_has_no_image_tokens(folder: Path, config: dict[str, Any]) -> None:
    write(folder / "config.json", config)
    assert load_image_tokens(folder) is None
