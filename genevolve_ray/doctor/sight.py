"""Checks of what a policy sees: a model with vision, its template, the tokens of its pictures, the engine's limit."""

from __future__ import annotations

import math
from pathlib import Path

from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.engines.checks import read_model_config, sees
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.models.image_tokens import MAX_ASPECT, ImageTokens, load_image_tokens, within_aspect
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.texts import IMAGE_MARK
from genevolve_ray.tools.showing import Observations

FRAME = 2
"""Tokens around the image tokens of a picture: the start and the end of vision."""
_STEP = 4
"""Pixels between the widths that are tried."""


def check_sight(folder: Path, profile: ProtocolProfile, engine: EngineConfig) -> None:
    """Check that a policy can see what its profile shows it; nothing where that is text alone.

    Raises:
        FileNotFoundError, ValueError: naming what is missing: vision, an image processor, a template that shows
            pictures, room in the engine.
    """
    if not profile.observations.images:
        return
    shown = f"profile {profile.name!r} shows pictures (observations.images)"
    if not sees(read_model_config(folder)) or (tokens := load_image_tokens(folder)) is None:
        raise ValueError(f"{shown}, but the model in {folder} does not see")
    try:
        grid = tokens.grid(64, 64)
    except ValueError as error:
        raise ValueError(f"{shown}, but {error}") from error
    from genevolve_ray.agent.chat import ChatFormat, load_tokenizer

    try:
        form = ChatFormat(load_tokenizer(folder), image_tokens=tokens)
        form.observation(f"a\n  {IMAGE_MARK}\nb\n  {IMAGE_MARK}", ended=True, grids=[grid, grid])
    except Exception as error:  # Files of others: tokenizers raises plain exceptions.
        raise ValueError(f"{shown}, but in {folder} {' '.join(str(error).split())[:300]}") from error
    most = profile.most_images
    if engine.kind == "vllm" and engine.vllm.max_images < most:
        raise ValueError(f"{shown}, up to {most} in an episode, but engine.vllm.max_images={engine.vllm.max_images}")


def most_tokens(images: ImageTokens, observations: Observations) -> int:
    """Return the most image tokens of a picture of any shape within the limits of a profile."""
    # No picture is opened that has more pixels, and none is shown that is thinner.
    pixels = min(observations.max_pixels or PictureLimits().max_pixels, PictureLimits().max_pixels)
    side, most = min(observations.max_side, math.isqrt(MAX_ASPECT * pixels)), 0
    for width in range(_STEP, side + 1, _STEP):
        height = max(1, min(side, pixels // width))
        if within_aspect(width, height):
            most = max(most, images.count(images.grid(width, height)))
    return most
