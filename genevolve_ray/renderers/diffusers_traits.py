"""Properties of diffusers' pipeline classes: their form of reference pictures, and their support of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

References = Literal["list", "first", "none"]
Batches = Literal["each", "shared", "never"]


@dataclass(frozen=True)
class Traits:
    """Describe how a pipeline is called."""

    references: References
    """`list`: any number of pictures; `first`: one picture, the others are left out; `none`: it uses no picture."""
    batches: Batches
    """With references: `each` prompt of a batch has its own picture, all share theirs (`shared`), or one prompt at a time
    (`never`). Without references `each` and `shared` are the same."""
    needs_picture: bool = False
    """True if the pipeline refuses a call without a picture: it then receives a blank canvas."""


TEXT_ONLY = Traits("none", "each")
FROM_PICTURE = Traits("first", "each", needs_picture=True)
"""Image-to-image: the generator starts from the picture and cannot refer to it."""

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
    "StableDiffusionInstructPix2PixPipeline": Traits("first", "each", needs_picture=True),
    "StableDiffusionXLImg2ImgPipeline": FROM_PICTURE,
    "ZImageImg2ImgPipeline": FROM_PICTURE,
    "FluxKontextPipeline": Traits("first", "each"),
    "Flux2KleinPipeline": Traits("list", "shared"),
    "Flux2Pipeline": Traits("list", "shared"),
    "QwenImageEditPipeline": Traits("first", "never", needs_picture=True),
    "QwenImageEditPlusPipeline": Traits("list", "never", needs_picture=True),
}


def traits_of(pipeline: str, parameters: frozenset[str]) -> Traits:
    """Return the known properties of a class.

    For other classes they are derived from the parameters of `__call__`: one picture, never batched.
    """
    guess = Traits("first", "never", needs_picture=True) if "image" in parameters else Traits("none", "never")
    return TRAITS.get(pipeline, guess)
