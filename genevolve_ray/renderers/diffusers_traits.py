"""What is known of diffusers' pipeline classes: how they take reference pictures, and what they can batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

References = Literal["list", "first", "none"]
Batches = Literal["each", "shared", "never"]


@dataclass(frozen=True)
class Traits:
    """How a pipeline is called."""

    references: References
    """`list`: any number of pictures; `first`: one picture, the others are left out; `none`: it looks at no picture."""
    batches: Batches
    """With references: `each` prompt of a batch has its own picture, all share theirs (`shared`), or one prompt at a time
    (`never`). Without references `each` and `shared` are the same."""
    needs_picture: bool = False
    """Whether it refuses a call without a picture: then a blank canvas stands in."""


TEXT_ONLY = Traits("none", "each")
FROM_PICTURE = Traits("first", "each", needs_picture=True)
"""Image-to-image: the picture is where the generator starts, not something it may refer to."""

TRAITS = {
    "FluxPipeline": TEXT_ONLY,
    "Lumina2Pipeline": TEXT_ONLY,
    "QwenImagePipeline": TEXT_ONLY,
    "StableDiffusion3Pipeline": TEXT_ONLY,
    "StableDiffusionPipeline": TEXT_ONLY,
    "StableDiffusionXLPipeline": TEXT_ONLY,
    "ZImagePipeline": TEXT_ONLY,
    "FluxImg2ImgPipeline": FROM_PICTURE,
    "QwenImageImg2ImgPipeline": FROM_PICTURE,
    "StableDiffusion3Img2ImgPipeline": FROM_PICTURE,
    "StableDiffusionImg2ImgPipeline": FROM_PICTURE,
    "StableDiffusionXLImg2ImgPipeline": FROM_PICTURE,
    "ZImageImg2ImgPipeline": FROM_PICTURE,
    "FluxKontextPipeline": Traits("first", "each"),
    "Flux2KleinPipeline": Traits("list", "shared"),
    "Flux2Pipeline": Traits("list", "shared"),
    "QwenImageEditPipeline": Traits("first", "never", needs_picture=True),
    "QwenImageEditPlusPipeline": Traits("list", "never", needs_picture=True),
}


def traits_of(pipeline: str, parameters: frozenset[str]) -> Traits:
    """Return what is known of a class, else what the parameters of its `__call__` suggest: one picture, never batched."""
    guess = Traits("first", "never", needs_picture=True) if "image" in parameters else Traits("none", "never")
    return TRAITS.get(pipeline, guess)
