"""Pictures for a policy with vision (Qwen-VL): from encoded images to the input of the vision tower.

Text-only observations are the default and need nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL.Image import Image as PillowImage

from genevolve_ray.learning.batch import ImageInputs, PictureInput
from genevolve_ray.records.ledger import MediaSpan
from genevolve_ray.records.pictures import open_picture


def image_inputs(pictures: Sequence[PillowImage], processor: Any) -> ImageInputs:
    """Return the pictures of one sequence, in the order of their placeholder tokens.

    Args:
        pictures: at least one, in RGB (`records.pictures.open_picture`).
        processor: the result of `models.image_processor.load_image_processor`.
    """
    return ImageInputs(tuple(picture_input(picture, processor) for picture in pictures))


def picture_input(picture: PillowImage, processor: Any, sha256: str = "") -> PictureInput:
    """Return one picture as the vision tower reads it; `sha256` as in `PictureInput`."""
    read = processor(images=[picture], return_tensors="pt")
    time, height, width = read["image_grid_thw"][0].tolist()
    return PictureInput(read["pixel_values"], (time, height, width), sha256)


def placeholder_tokens(grid: Sequence[int], merge_size: int) -> int:
    """Return the number of image tokens for a picture of `grid` (t, h, w) patches."""
    time, height, width = grid
    return time * height * width // merge_size**2


def media_inputs(media: Sequence[MediaSpan], read: Callable[[MediaSpan], bytes], processor: Any) -> ImageInputs | None:
    """Return the images of a token ledger's media column, None for a trajectory without pictures.

    Args:
        media: the column, in order.
        read: returns the encoded bytes of a span's picture.
        processor: the result of `models.image_processor.load_image_processor`.

    Raises:
        ValueError: when the patch grid of a picture differs from the engine's grid or from its number of placeholder
            tokens. The learner would then train on another picture than the engine used.
    """
    if not media:
        return None
    found = ImageInputs(tuple(picture_input(open_picture(read(span)), processor, span.sha256) for span in media))
    for span, picture in zip(media, found.pictures, strict=True):
        tokens = placeholder_tokens(picture.grid, processor.merge_size)
        if picture.grid != span.grid or span.end - span.start != tokens:
            raise ValueError(
                f"the image of tokens [{span.start}, {span.end}) has patch grid {picture.grid} for {tokens} tokens; "
                f"the ledger has {span.grid} (sha256 {span.sha256[:12]})"
            )
    return found
