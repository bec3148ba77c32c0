"""Pictures for a policy with vision (Qwen-VL): from the files of a token ledger to the input of the vision tower.

Text-only observations are the default and need nothing of this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from genevolve_ray.learning.batch import ImageInputs, PictureInput
from genevolve_ray.models.image_tokens import ImageTokens
from genevolve_ray.records.ledger import MediaMismatch, MediaSpan
from genevolve_ray.records.pictures import ImageRefused, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


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


def check_places(token_ids: Sequence[int], media: Sequence[MediaSpan], image_token: int) -> None:
    """Check that the spans of pictures are exactly the image tokens of a sequence, in order.

    Raises:
        MediaMismatch: naming the span that is not.
    """
    position = 0
    for span in media:
        if not position <= span.start < span.end <= len(token_ids):
            raise MediaMismatch(
                f"the image of tokens [{span.start}, {span.end}) is out of order, or outside the tokens"
            )
        strange = next((i for i in range(span.start, span.end) if token_ids[i] != image_token), None)
        if strange is not None:
            raise MediaMismatch(f"the image of tokens [{span.start}, {span.end}) has another token at {strange}")
        position = span.end
    total, covered = list(token_ids).count(image_token), sum(span.end - span.start for span in media)
    if total != covered:
        raise MediaMismatch(f"there are {total} image tokens, but the spans of its pictures cover {covered}")


def open_shown(span: MediaSpan, data: bytes, tokens: ImageTokens) -> PillowImage:
    """Return the picture of a span in RGB, after its file, its grid and its number of tokens were checked.

    Raises:
        MediaMismatch: naming the span, for another file, one that cannot be opened, and another grid.
    """
    where = f"the image of tokens [{span.start}, {span.end})"
    if (found := hashlib.sha256(data).hexdigest()) != span.sha256:
        raise MediaMismatch(f"{where} is another: sha256 {found[:12]}, the span has {span.sha256[:12]}")
    try:
        picture = open_picture(data)
    except ImageRefused as error:
        raise MediaMismatch(f"{where} cannot be opened: {error}") from error
    try:
        grid = tokens.grid(picture.width, picture.height)
    except ValueError as error:
        raise MediaMismatch(f"{where} cannot be cut into patches: {error}") from error
    check_grid(span, grid, tokens)
    return picture


def check_grid(span: MediaSpan, grid: tuple[int, int, int], tokens: ImageTokens) -> None:
    """Check the grid of a picture, and its number of tokens. Raises MediaMismatch naming the span."""
    count = tokens.count(grid)
    if grid != span.grid or span.end - span.start != count:
        raise MediaMismatch(
            f"the image of tokens [{span.start}, {span.end}) has patch grid {grid} for {count} tokens, the span has "
            f"{span.grid}"
        )


class LedgerPictures:
    """Read the pictures of ledgers, each file once, however many sequences show it.

    Sequences with the same picture share its patches, so use one reader for each step.
    """

    def __init__(self, tokens: ImageTokens) -> None:
        """Start without pictures; `tokens` are the image tokens of the policy."""
        self._tokens = tokens
        self._known: dict[str, PictureInput] = {}

    def inputs(
        self, token_ids: Sequence[int], media: Sequence[MediaSpan], read: Callable[[str], bytes]
    ) -> ImageInputs | None:
        """Return the pictures of a sequence, None for one without.

        Args:
            token_ids: the sequence.
            media: the media column of its ledger.
            read: returns the file of a hash.

        Raises:
            MediaMismatch: when the spans are not the image tokens of the sequence, or when a picture does not have the
                hash or the grid of its span: the learner would train on another context than the engine sampled from.
        """
        if not media:
            return None
        check_places(token_ids, media, self._tokens.id)
        return ImageInputs(tuple(self._picture(span, read) for span in media))

    def _picture(self, span: MediaSpan, read: Callable[[str], bytes]) -> PictureInput:
        known = self._known.get(span.sha256)
        if known is None:
            opened = open_shown(span, read(span.sha256), self._tokens)
            known = self._known[span.sha256] = picture_input(opened, self._tokens.processor, span.sha256)
        check_grid(span, known.grid, self._tokens)
        return known
