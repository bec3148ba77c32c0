"""Common settings of judges over chat models that see pictures, and the opening of pictures for these models."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from genevolve_ray.engines.protocol import ChatImage
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture


class SeeingConfig(Config):
    """Configure the answers of a chat model that sees pictures, and the pictures."""

    max_tokens: int = Field(default=2048, ge=64)
    """Tokens of one answer; models that reason aloud need more."""
    repairs: int = Field(default=2, ge=0)
    """Retries after an unreadable answer; each sends the error to the model."""
    rationale_chars: int = Field(default=1000, ge=0)
    """Most characters that are kept of each rationale."""
    text_chars: int = Field(default=24_000, ge=100)
    """Most characters of the request, and of the prompt, that a model is shown."""
    image_side: int = Field(default=4096, ge=28, le=4096)
    """Pictures are scaled down to this many pixels on their longer side."""
    jpeg_quality: int = Field(default=92, ge=1, le=95)
    """JPEG quality of the pictures that a model is shown."""
    max_image_bytes: int = Field(default=64 << 20, ge=1024)
    """Encoded pictures that are larger are not opened."""

    @property
    def picture_limits(self) -> PictureLimits:
        """The limits within which pictures are opened, and the form in which they are shown."""
        return PictureLimits(
            long_side=self.image_side, output="JPEG", quality=self.jpeg_quality, max_bytes=self.max_image_bytes
        )


def shown_pictures(
    pictures: Mapping[str, bytes], limits: PictureLimits, judge: str, request_id: str
) -> list[ChatImage]:
    """Return encoded pictures, by their names in messages, as a model is shown them.

    Raises:
        InfraFailure: naming judge, picture and request, when a picture cannot be opened.
    """
    shown = []
    for name, data in pictures.items():
        try:
            picture = clean_picture(data, limits)
        except ImageRefused as error:
            raise InfraFailure(f"{judge} cannot read the {name} image of {request_id}: {error}") from error
        shown.append(ChatImage(picture.data, picture.media_type))
    return shown
