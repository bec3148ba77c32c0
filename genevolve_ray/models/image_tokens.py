"""Image tokens of a model that sees: how many a picture occupies, and where they stand among the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from genevolve_ray.models.image_processor import json_object, load_image_processor, patch_grid

Grid = tuple[int, int, int]
"""Patches of a picture by time, height and width."""
Place = tuple[int, int]
"""Tokens [start, end) of a picture."""
MAX_ASPECT = 200
"""Largest ratio of the sides of a picture that image processors of Qwen-VL models accept."""


class ImageTokens:
    """Hold what a model's files state about its image tokens; the image processor is loaded with the first picture.

    Attributes:
        id: the token that a picture repeats.
    """

    def __init__(self, model_dir: str | Path, token_id: int) -> None:
        """Keep the folder; `token_id` is `image_token_id` of its config.json."""
        self.id = token_id
        self._model_dir = model_dir
        self._loaded: Any = None
        self.grid = lru_cache(maxsize=1024)(self._grid)

    @property
    def processor(self) -> Any:
        """The model's image processor. Raises ValueError as `load_image_processor`."""
        if self._loaded is None:
            self._loaded = load_image_processor(self._model_dir)
        return self._loaded

    def _grid(self, width: int, height: int) -> Grid:
        """Return the patches of a picture of so many pixels. Raises ValueError for sides beyond `MAX_ASPECT`."""
        return patch_grid(self.processor, width, height)

    def count(self, grid: Grid) -> int:
        """Return the number of image tokens of a picture."""
        time, height, width = grid
        return int(time * height * width // self.processor.merge_size**2)

    def expand(self, tokens: Sequence[int], grids: Sequence[Grid]) -> tuple[list[int], list[Place]]:
        """Return the tokens with each single image token repeated for its picture, and the places of the pictures.

        Raises:
            ValueError: when the tokens do not hold one image token for each picture.
        """
        if (found := list(tokens).count(self.id)) != len(grids):
            raise ValueError(f"the chat template shows {found} image tokens for {len(grids)} pictures")
        expanded: list[int] = []
        places: list[Place] = []
        for token in tokens:
            if token != self.id:
                expanded.append(token)
                continue
            start = len(expanded)
            expanded += [token] * self.count(grids[len(places)])
            places.append((start, len(expanded)))
        return expanded, places


def load_image_tokens(model_dir: str | Path) -> ImageTokens | None:
    """Return the image tokens of a model folder by its config.json, None for a model without vision.

    Raises:
        ValueError: naming the file, when it holds no JSON object, or when its image token is no token id.
    """
    file = Path(model_dir) / "config.json"
    config = json_object(file)
    token = config.get("image_token_id")
    if config.get("vision_config") is None or token is None:
        return None
    if not isinstance(token, int) or isinstance(token, bool) or token < 0:
        raise ValueError(f"{file} has image_token_id={token!r}, which is no token id")
    return ImageTokens(model_dir, token)


def within_aspect(width: int, height: int) -> bool:
    """Return whether image processors accept the sides of a picture."""
    return max(width, height) <= MAX_ASPECT * min(width, height)
