"""Pictures of a prompt: checked against their placeholder tokens, and in the form that each engine takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.engines.checks import read_model_config, sees
from genevolve_ray.engines.protocol import MediaMismatch, PromptImage
from genevolve_ray.models.image_tokens import ImageTokens, load_image_tokens
from genevolve_ray.records.pictures import ImageRefused, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


class PromptImages:
    """Check and open the pictures of prompts for one model; its image processor is loaded with the first picture.

    Args:
        model_dir: Model folder in Hugging Face layout.
    """

    def __init__(self, model_dir: str | Path) -> None:
        config = read_model_config(model_dir)
        self._model_dir, self._sees = Path(model_dir), sees(config)
        self._tokens = load_image_tokens(model_dir)

    @property
    def processor(self) -> Any:
        """The model's image processor. Raises ValueError for a model without one."""
        return self._seeing().processor

    def _seeing(self) -> ImageTokens:
        if not self._sees or self._tokens is None:
            raise MediaMismatch(f"the model in {self._model_dir} does not see")
        return self._tokens

    def opened(self, token_ids: Sequence[int], media: Sequence[PromptImage]) -> list[PillowImage]:
        """Return the pictures of a prompt in RGB, after all checks.

        Raises:
            MediaMismatch: as `Engine.generate`, naming the span.
        """
        if not media:
            return []
        if not self._sees or self._tokens is None:
            raise MediaMismatch(
                f"the prompt has {len(media)} pictures, but the model in {self._model_dir} does not see"
            )
        _check_places(token_ids, media, self._tokens.id)
        return [self._open(image) for image in media]

    def collapse(self, token_ids: Sequence[int], media: Sequence[PromptImage]) -> list[int]:
        """Return the prompt with one image token for each picture, which vLLM expands again."""
        short, position = [], 0
        for image in media:
            short += [*token_ids[position : image.span.start], token_ids[image.span.start]]
            position = image.span.end
        return [*short, *token_ids[position:]]

    def _open(self, image: PromptImage) -> PillowImage:
        start, end = image.span.start, image.span.end
        found = hashlib.sha256(image.data).hexdigest()
        if found != image.span.sha256:
            raise MediaMismatch(
                f"the image of tokens [{start}, {end}) is another: sha256 {found[:12]}, the span has "
                f"{image.span.sha256[:12]}"
            )
        try:
            picture = open_picture(image.data)
        except ImageRefused as error:
            raise MediaMismatch(f"the image of tokens [{start}, {end}) cannot be opened: {error}") from error
        try:
            grid = self._seeing().grid(picture.width, picture.height)
        except ValueError as error:
            raise MediaMismatch(f"the image of tokens [{start}, {end}) cannot be cut into patches: {error}") from error
        tokens = self._seeing().count(grid)
        if grid != image.span.grid or end - start != tokens:
            raise MediaMismatch(
                f"the image of tokens [{start}, {end}) has patch grid {grid} for {tokens} tokens, the span has "
                f"{image.span.grid}"
            )
        return picture


def _check_places(token_ids: Sequence[int], media: Sequence[PromptImage], image_token: int) -> None:
    position = 0
    for image in media:
        start, end = image.span.start, image.span.end
        if not position <= start < end <= len(token_ids):
            raise MediaMismatch(f"the image of tokens [{start}, {end}) is out of order, or outside the prompt")
        strange = next((i for i in range(start, end) if token_ids[i] != image_token), None)
        if strange is not None:
            raise MediaMismatch(f"the image of tokens [{start}, {end}) has another token at {strange}")
        position = end
    total, covered = list(token_ids).count(image_token), sum(i.span.end - i.span.start for i in media)
    if total != covered:
        raise MediaMismatch(f"the prompt has {total} image tokens, but the spans of its pictures cover {covered}")


def check_expanded(token_ids: Sequence[int], expanded: Sequence[int], media: Sequence[PromptImage]) -> None:
    """Check that an engine read exactly the prompt's tokens, after it expanded the pictures.

    Raises:
        MediaMismatch: naming the first position that differs, its span, and both lengths.
    """
    if list(token_ids) == list(expanded):
        return
    pairs = zip(token_ids, expanded, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(token_ids), len(expanded)))
    before = [image.span for image in media if image.span.start <= first]
    place = (
        f"after the start of the image of tokens [{before[-1].start}, {before[-1].end})"
        if before
        else "before any image"
    )
    raise MediaMismatch(
        f"the engine read {len(expanded)} tokens, the prompt has {len(token_ids)}; they differ from token {first} on, {place}"
    )
