"""Sequences that show pictures of random patches, for a policy that sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from genevolve_ray.learning.batch import ImageInputs, PictureInput, TrainSequence

GRIDS = ((1, 4, 4), (1, 6, 4), (1, 4, 8))
TEXT = 56
"""Ids below this one stand for text in every tiny model."""


def picture(config: Any, number: int) -> PictureInput:
    """Return the picture of a number for a model's configuration; three of them in a row differ in size."""
    vision, grid = config.vision_config, GRIDS[number % len(GRIDS)]
    size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    random = torch.Generator().manual_seed(number)
    patches = torch.rand(grid[1] * grid[2], size, generator=random) * 2 - 1
    return PictureInput(patches, grid, f"picture {number}")


def image_tokens(config: Any, picture: PictureInput) -> int:
    """Return the number of image tokens of a picture."""
    time, height, width = picture.grid
    return time * height * width // int(config.vision_config.spatial_merge_size) ** 2


def looking(config: Any, sequence: TrainSequence, pictures: Sequence[PictureInput]) -> TrainSequence:
    """Return a sequence that shows pictures after its first token, to itself and to its teacher."""
    shown: list[int] = []
    for one in pictures:
        pads = [config.image_token_id] * image_tokens(config, one)
        shown += [config.vision_start_token_id, *pads, config.vision_end_token_id]
    images = ImageInputs(tuple(pictures)) if pictures else None
    n, teacher = len(shown), sequence.teacher

    def put(column: Sequence[Any], extra: Sequence[Any], place: int = 1) -> list[Any]:
        return [*column[:place], *extra, *column[place:]]

    def text(tokens: Sequence[int]) -> list[int]:
        return [1 + token % (TEXT - 1) for token in tokens]

    if teacher is not None:
        place = len(teacher.tokens) - len(sequence.tokens) + 1
        tokens, mask = put(text(teacher.tokens), shown, place), put(teacher.policy_mask, [False] * n, place)
        teacher = replace(teacher, tokens=tokens, policy_mask=mask, images=images)
    return replace(
        sequence,
        tokens=put(text(sequence.tokens), shown),
        policy_mask=put(sequence.policy_mask, [False] * n),
        logprobs=put(sequence.logprobs, [0.0] * n),
        images=images,
        teacher=teacher,
    )
