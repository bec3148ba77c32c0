"""The image processor of a model folder, and what makes it unusable."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.models.image_processor import load_image_processor

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
