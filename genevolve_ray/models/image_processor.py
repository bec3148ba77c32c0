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
