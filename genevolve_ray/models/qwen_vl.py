"""Qwen3-VL's processor for pictures alone.

The processor of transformers requires a video processor. That needs torchvision, which does not exist for a CPU build
of torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PATCH_SIZE, MERGE_SIZE = 16, 2
"""Defaults of Qwen3-VL, for a folder without these settings."""


class ImageQwen3VLProcessor(Qwen3VLProcessor):
    """Process text and images for Qwen3-VL, without videos.

    transformers derives a processor's parts from these parameter names.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]


def load_image_processor(model_dir: str | Path) -> Any:
    """Return the image processor of a model folder, Qwen3-VL's default one where the folder has none."""
    if (Path(model_dir) / "preprocessor_config.json").is_file():
        return Qwen2VLImageProcessorPil.from_pretrained(model_dir)
    return Qwen2VLImageProcessorPil(patch_size=PATCH_SIZE, merge_size=MERGE_SIZE)


def load_processor(model_dir: str | Path) -> ImageQwen3VLProcessor:
    """Return the processor (tokenizer and image processor) of a Qwen3-VL folder; do not use AutoProcessor here."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    return ImageQwen3VLProcessor(load_image_processor(model_dir), tokenizer, tokenizer.chat_template)
