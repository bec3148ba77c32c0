"""The image processor of a model that sees: the one that vLLM uses as well, so that both compute the same pixels."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from pathlib import Path
from typing import Any

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def check_torchvision(model_dir: str | Path) -> None:
    """Check that torchvision is installed, without importing it. Raises ValueError naming the model folder."""
    try:
        metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"the model in {model_dir} sees: it needs torchvision, which is not installed (run make setup)"
        ) from None


def check_image_processor(model_dir: str | Path) -> None:
    """Check the image processor of a model folder by its files, without importing torch.

    Raises:
        ValueError: when torchvision is not installed, the folder has no image processor, or its patches do not have the
            size that the vision tower reads; the message names the folder.
    """
    check_torchvision(model_dir)
    settings = next((read for name in PROCESSOR_FILES if (read := read_settings(Path(model_dir) / name))), None)
    if settings is None:
        raise ValueError(f"{model_dir} has no image processor ({' or '.join(PROCESSOR_FILES)})")
    settings = settings.get("image_processor", settings)
    tower = (read_settings(Path(model_dir) / "config.json") or {}).get("vision_config", {})
    for name, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if name in settings and theirs in tower and settings[name] != tower[theirs]:
            raise ValueError(
                f"the image processor in {model_dir} has {name}={settings[name]}, but config.json has "
                f"vision_config.{theirs}={tower[theirs]}"
            )


def read_settings(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None where there is no file. Raises ValueError naming the file."""
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(settings).__name__}")
    return settings


def load_image_processor(model_dir: str | Path) -> Any:
    """Return the image processor of a model folder. Raises ValueError as `check_image_processor`."""
    check_image_processor(model_dir)
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(model_dir, local_files_only=True)


def patch_grid(processor: Any, width: int, height: int) -> tuple[int, int, int]:
    """Return the grid (t, h, w) of patches into which the processor of a Qwen-VL model cuts a picture of these pixels.

    Raises ValueError for sides that differ by more than a factor of 200.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    size = processor.size
    height, width = smart_resize(
        height,
        width,
        factor=processor.patch_size * processor.merge_size,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )
    return 1, height // processor.patch_size, width // processor.patch_size
