"""Pictures of a prompt: checked against their placeholder tokens, and in the form that each engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.engines.checks import read_model_config, sees
from genevolve_ray.engines.protocol import MediaMismatch, PromptImage
from genevolve_ray.learning.vision import check_places, open_shown
from genevolve_ray.models.image_tokens import load_image_tokens

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
        if not self._sees or self._tokens is None:
            raise MediaMismatch(f"the model in {self._model_dir} does not see")
        return self._tokens.processor

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
        check_places(token_ids, [image.span for image in media], self._tokens.id)
        return [open_shown(image.span, image.data, self._tokens) for image in media]

    def collapse(self, token_ids: Sequence[int], media: Sequence[PromptImage]) -> list[int]:
        """Return the prompt with one image token for each picture, which vLLM expands again."""
        short, position = [], 0
        for image in media:
            short += [*token_ids[position : image.span.start], token_ids[image.span.start]]
            position = image.span.end
        return [*short, *token_ids[position:]]


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
