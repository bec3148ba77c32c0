"""Common part of renderers behind HTTP.

It prepares references for sending, re-encodes untrusted pictures, and builds an identity without hosts.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.decoding import SMALL_BYTES, clean_apart, clean_small
from genevolve_ray.records.pictures import ImageRefused, PictureLimits
from genevolve_ray.records.usage import Usage
from genevolve_ray.remote.answers import reported_count
from genevolve_ray.remote.client import Answer, Remote, Unusable
from genevolve_ray.remote.config import RemoteConfig

_SHOWN = 300


class HttpRendererConfig(RemoteConfig):
    """Configure the common settings of renderers behind HTTP."""

    timeout_s: float = Field(default=600, gt=0)
    """Seconds one try may take; generators are slow. `cluster.renderer.timeout` should leave room for all tries."""
    model: str = Field(min_length=1)
    """Name of the generator; it enters the identity."""
    reference_side: int = Field(default=2048, ge=64)
    """References are scaled down to this many pixels on their longer side before they are sent."""
    picture: PictureLimits = PictureLimits(min_side=16)
    """Accepted answers; an image is always encoded again, as PNG."""

    @field_validator("picture")
    @classmethod
    def _png(cls, value: PictureLimits) -> PictureLimits:
        if value.output != "PNG":
            raise ValueError(f"picture.output must be PNG, the format of all renderers, got {value.output!r}")
        return value


class HttpRenderer(Remote, ABC):
    """Provide the base of generators behind HTTP.

    `identity` names the class, the model and, as a digest, the settings that alter pictures: the same on equal servers.
    """

    kind: ClassVar[str]
    unseen: ClassVar[frozenset[str]] = frozenset()
    """Settings of the class that do not affect pictures."""
    config: HttpRendererConfig

    def __init__(self, config: HttpRendererConfig) -> None:
        """Keep the config; nothing is called yet."""
        super().__init__(config, "renderer")
        own = config.model_dump_json(exclude={*RemoteConfig.model_fields, *self.unseen})
        self.identity = f"{self.kind}/1:{config.model}:{hashlib.sha256(own.encode()).hexdigest()[:8]}"

    @property
    def takes_references(self) -> bool:
        """True if reference pictures reach the generator."""
        return True

    @abstractmethod
    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG that this process encoded itself.

        Raises:
            ServiceRefusal: for a request, or its content, that the service permanently rejects.
            InfraFailure: when every try failed, or a reference is not a picture.
        """

    @abstractmethod
    def find(self, answer: dict[str, Any]) -> str:
        """Return the base64 text of the picture in an answer. Raises Unusable or ServiceRefusal."""

    def tokens(self, answer: dict[str, Any]) -> Usage | None:
        """Return the tokens that an answer reports, None where it reports none."""
        return None

    async def read(self, answer: Answer) -> bytes:
        """Return the picture of an answer, encoded again; large ones are processed outside the event loop."""
        small = len(answer.data) <= SMALL_BYTES
        content = answer.object() if small else await asyncio.to_thread(answer.object)
        self.spend_tokens(content)
        text, limit = self.find(content), self.config.picture.max_bytes
        return await self.taken(decoded(text, limit) if small else await asyncio.to_thread(decoded, text, limit))

    async def taken(self, data: bytes) -> bytes:
        """Return a picture encoded again, and count it. Raises Unusable."""
        try:
            picture = await cleaned(data, self.config.picture)
        except ImageRefused as error:
            raise Unusable(f"picture refused: {error}") from error
        self.spend(Usage(images=1))
        return picture

    def spend_tokens(self, content: dict[str, Any]) -> None:
        """Add the tokens of an answer to the meter, whether it is usable or not."""
        if (tokens := self.tokens(content)) is not None:
            self.spend(tokens)

    async def prepared(self, references: Sequence[bytes], output: Literal["PNG", "JPEG"]) -> list[bytes]:
        """Return the references as they are sent. Raises InfraFailure naming an invalid one."""
        limits, done = PictureLimits(output=output, long_side=self.config.reference_side), []
        for ordinal, data in enumerate(references, 1):
            try:
                done.append(await cleaned(data, limits))
            except ImageRefused as error:
                raise InfraFailure(f"reference {ordinal} of {len(references)} cannot be sent: {error}") from error
        return done


async def cleaned(data: bytes, limits: PictureLimits) -> bytes:
    """Return the result of `clean_picture` on untrusted bytes; a large picture does not block the event loop."""
    small = clean_small(data, limits)
    picture = small if small is not None else await asyncio.to_thread(clean_apart, data, limits)
    return picture.data


def encoded(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def decoded(text: str, max_bytes: int) -> bytes:
    """Return the bytes of base64 with or without the head of a data URL. Raises Unusable for anything else."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise Unusable("image is a data URL without base64")
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise Unusable(f"image is longer than {max_bytes} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable(f"image is not base64: {error}") from error


def shown(text: Any) -> str:
    """Return a service's own error text as one short line."""
    return " ".join(str(text)[:_SHOWN].split())


def count(value: Any) -> int:
    """Return a number of tokens as a service reports it, 0 for anything else."""
    return reported_count(value) or 0
