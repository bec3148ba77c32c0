"""The image processor of a model that sees: the one that vLLM uses as well, so that both compute the same pixels."""

from __future__ import annotations

import importlib.metadata as metadata
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def check_torchvision(model_dir: str | Path) -> None:
    """Check that torchvision is installed, without importing it. Raises ValueError naming the model folder."""
    try:
        metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"the model in {model_dir} sees: it needs torchvision, which is not installed (run make setup)"
        ) from None


def load_image_processor(model_dir: str | Path) -> Any:
    """Return the image processor of a model folder.

    Raises:
        ValueError: when torchvision is not installed, the folder has no image processor, or its patches do not have the
            size that the vision tower reads; the message names the folder.
    """
    check_torchvision(model_dir)
    folder = Path(model_dir)
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise ValueError(f"{folder} has no image processor ({' or '.join(PROCESSOR_FILES)})")

    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tower = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vision_config", {})
    for name, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if theirs in tower and getattr(processor, name) != tower[theirs]:
            raise ValueError(
                f"the image processor in {folder} has {name}={getattr(processor, name)}, but config.json has "
                f"vision_config.{theirs}={tower[theirs]}"
            )
    return processor


def open_picture(data: bytes) -> PillowImage:
    """Return an encoded picture as its processor reads it: turned as its EXIF entry says, RGB, without metadata.

    Engines and learner open pictures here alone. Otherwise one of them would apply an orientation that the other does
    not know. Raises OSError for data that is no picture.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    upright.info.clear()
    return upright


def patch_grid(processor: Any, picture: PillowImage) -> tuple[int, int, int]:
    """Return the grid (t, h, w) of patches into which the processor of a Qwen-VL model cuts a picture."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    size = processor.size
    height, width = smart_resize(
        picture.height,
        picture.width,
        factor=processor.patch_size * processor.merge_size,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )
    return 1, height // processor.patch_size, width // processor.patch_size
