"""Pictures for a policy that sees (Qwen-VL): from encoded images to what the vision tower reads.

Text-only observations are the default and need nothing of this. transformers' own Qwen-VL processor asks for a video
processor, which needs torchvision, which does not exist beside a CPU torch; the processor here has pictures alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoTokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from genevolve_ray.learning.batch import ImageInputs
from genevolve_ray.records.ledger import MediaSpan

PATCH_SIZE, MERGE_SIZE = 16, 2
"""Qwen3-VL's, for a folder that says nothing."""


class ImageQwen3VLProcessor(Qwen3VLProcessor):  # type: ignore[misc]
    """Qwen3-VL's processor without videos: transformers derives a processor's parts from these parameter names."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def load_image_processor(model_dir: str | Path) -> Any:
    """Return the image processor of a model folder, Qwen3-VL's usual one where the folder has none."""
    if (Path(model_dir) / "preprocessor_config.json").is_file():
        return Qwen2VLImageProcessorPil.from_pretrained(model_dir)
    return Qwen2VLImageProcessorPil(patch_size=PATCH_SIZE, merge_size=MERGE_SIZE)


def load_processor(model_dir: str | Path) -> ImageQwen3VLProcessor:
    """Return the processor (tokenizer and image processor) of a Qwen3-VL folder; never use AutoProcessor here."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return ImageQwen3VLProcessor(load_image_processor(model_dir), tokenizer, tokenizer.chat_template)


def image_inputs(pictures: Sequence[Image.Image], processor: Any) -> ImageInputs:
    """Return the pictures of one sequence, in the order of their placeholder tokens.

    Args:
        pictures: at least one.
        processor: what `load_image_processor` returned.
    """
    read = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
    return ImageInputs(read["pixel_values"], read["image_grid_thw"])


def placeholder_tokens(grid: Sequence[int], merge_size: int = MERGE_SIZE) -> int:
    """Return how many image tokens stand for a picture of `grid` (t, h, w) patches."""
    time, height, width = grid
    return time * height * width // merge_size**2


def media_inputs(media: Sequence[MediaSpan], read: Callable[[MediaSpan], bytes], processor: Any) -> ImageInputs | None:
    """Return what stands behind the media column of a token ledger, None for a trajectory without pictures.

    Args:
        media: the column, in order.
        read: returns the encoded bytes of a span's picture.
        processor: what `load_image_processor` returned.

    Raises:
        ValueError: when a picture has another patch grid than the engine saw, or than its placeholder tokens hold: the
            learner would train on another picture than the one that was looked at.
    """
    if not media:
        return None
    found = image_inputs([Image.open(io.BytesIO(read(span))) for span in media], processor)
    grids = found.grid_thw.tolist()
    for span, grid in zip(media, grids, strict=True):
        tokens = placeholder_tokens(grid, processor.merge_size)
        if tuple(grid) != span.grid or span.end - span.start != tokens:
            raise ValueError(
                f"the picture of tokens [{span.start}, {span.end}) has patch grid {tuple(grid)} for {tokens} tokens; "
                f"the ledger says {span.grid} (sha256 {span.sha256[:12]})"
            )
    return found
