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
    found = (json_object(Path(model_dir) / name) for name in PROCESSOR_FILES)
    settings = next((read for read in found if read), None)
    if settings is None:
        raise ValueError(f"{model_dir} has no image processor ({' or '.join(PROCESSOR_FILES)})")
    # A file of a whole processor has that of pictures inside.
    settings = settings.get("image_processor") or settings
    tower = json_object(Path(model_dir) / "config.json").get("vision_config") or {}
    if not isinstance(settings, dict) or not isinstance(tower, dict):
        raise ValueError(f"image_processor or vision_config of the files in {model_dir} is not a JSON object")
    for name, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if name in settings and theirs in tower and settings[name] != tower[theirs]:
            raise ValueError(
                f"the image processor in {model_dir} has {name}={settings[name]}, but config.json has "
                f"vision_config.{theirs}={tower[theirs]}"
            )


def json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file, {} for a missing file. Raises ValueError naming one that holds no object."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(value).__name__}")
    return value


def load_image_processor(model_dir: str | Path) -> Any:
    """Return the image processor of a model folder.

    Raises:
        ValueError: as `check_image_processor`, and for a processor that does not cut pictures as Qwen-VL models do.
    """
    check_image_processor(model_dir)
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(model_dir, local_files_only=True)
    except Exception as error:  # Files of others: transformers raises any kind.
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"the image processor in {model_dir} cannot be loaded: {said}") from error
    sizes = [getattr(processor, name, None) for name in ("patch_size", "merge_size")]
    edges = getattr(processor, "size", None)
    sizes += [getattr(edges, name, None) for name in ("shortest_edge", "longest_edge")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"the image processor in {model_dir} ({type(processor).__name__}) is none of a Qwen-VL model: it needs "
            "patch_size, merge_size, and a size with shortest_edge and longest_edge"
        )
    return processor


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
