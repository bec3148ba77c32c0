"""Results of MCP tools as observations: text and pictures, both from outside."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import mcp_types as types

from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, ImageObservation, Observation, TextObservation
from genevolve_ray.records.pictures import ImageRefused, clean_picture

_MOST_CHARS = 1 << 16
"""Characters of a text that are kept; what the policy reads of it is bounded by its profile."""
_MOST_PICTURES = 10


def has_pictures(result: types.CallToolResult) -> bool:
    """Return whether pictures of a result have to be decoded, which takes a thread of its own."""
    return any(_picture(block) is not None for block in result.content)


def observation_of(result: types.CallToolResult, server: str, images: ImageStore) -> Observation:
    """Return the observation of a result; its pictures are decoded, and their pixels go to the store.

    Raises OSError when the store cannot be written.
    """
    texts: list[str] = []
    hits: list[ImageHit] = []
    for block in result.content:
        if (data := _picture(block)) is None:
            texts.append(_text(block))
        elif len(hits) >= _MOST_PICTURES:
            texts.append(f"(picture not shown: more than {_MOST_PICTURES})")
        else:
            try:
                hits.append(_hit(data, server, images))
            except ImageRefused as error:
                texts.append(f"(picture not shown: {error})")
    if not result.content and result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(text for text in texts if text)[:_MOST_CHARS]
    if result.is_error:
        return TextObservation(text="", error=text or "the tool failed without a reason")
    return ImageObservation(text=text, hits=tuple(hits)) if hits else TextObservation(text=text)


def _picture(block: Any) -> str | None:
    """Return the base64 of a block that is a picture."""
    if isinstance(block, types.ImageContent):
        return block.data
    inside = getattr(block, "resource", None)
    if isinstance(inside, types.BlobResourceContents) and (inside.mime_type or "").startswith("image/"):
        return inside.blob
    return None


def _text(block: Any) -> str:
    if isinstance(block, types.TextContent):
        return block.text
    if isinstance(block, types.ResourceLink):
        return f"{block.name}: {block.uri}"
    inside = getattr(block, "resource", None)
    return inside.text if isinstance(inside, types.TextResourceContents) else f"({block.type} not shown)"


def _hit(data: str, server: str, images: ImageStore) -> ImageHit:
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageRefused("its data is not base64") from error
    made = clean_picture(raw)
    ref = images.put(made.data, width=made.width, height=made.height, media_type=made.media_type)
    return ImageHit(title=f"picture of {server}", url=f"mcp:{server}/{ref.sha256[:16]}", image=ref)
