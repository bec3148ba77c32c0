"""Pictures of stored trajectories for the learner, and the one of its probe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.engines.protocol import MediaMismatch, PromptImage
from genevolve_ray.errors import RunError
from genevolve_ray.learning.vision import LedgerPictures
from genevolve_ray.models.image_tokens import ImageTokens
from genevolve_ray.records.images import ImageDamaged, ImageStore, reference
from genevolve_ray.records.ledger import MediaSpan
from genevolve_ray.records.texts import IMAGE_MARK
from genevolve_ray.records.trajectory import Trajectory

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import ImageInputs

_WIDTH, _HEIGHT = 96, 64
"""Pixels of the probe's picture; unequal, so that exchanged sides would be noticed."""


class StoredPictureMismatch(MediaMismatch, RunError):
    """Signal that a stored trajectory shows another picture than its tokens stand for; names trajectory and span.

    The learner would train on another context than the policy sampled from.
    """


class TrajectoryPictures:
    """Read the pictures of one step's trajectories from the store of the run, each file once."""

    def __init__(self, tokens: ImageTokens | None, images: ImageStore) -> None:
        """Start a step.

        Args:
            tokens: the image tokens of the policy, None for one that does not see.
            images: the store that holds the files that the policy saw.
        """
        self._images = images
        self._reader = LedgerPictures(tokens) if tokens is not None else None

    def __call__(self, trajectory: Trajectory) -> ImageInputs | None:
        """Return the pictures of a trajectory, None for one without.

        Raises:
            StoredPictureMismatch: for a picture that is not the one that its tokens stand for, and for a policy that
                does not see.
            ImageDamaged: when the file is missing or damaged.
        """
        ledger = trajectory.ledger
        if not ledger.media:
            return None
        if self._reader is None:
            raise StoredPictureMismatch(f"trajectory {trajectory.key} shows pictures, but the policy does not see")

        def read(sha256: str) -> bytes:
            try:
                return self._images.get(trajectory.shown(sha256))
            except KeyError as error:
                raise StoredPictureMismatch(str(error.args[0])) from error
            except ImageDamaged:
                raise
            except FileNotFoundError as error:
                raise ImageDamaged(f"picture {sha256} is missing from the store of the run") from error

        try:
            return self._reader.inputs(ledger.tokens, ledger.media, read)
        except StoredPictureMismatch:
            raise
        except MediaMismatch as error:
            raise StoredPictureMismatch(f"trajectory {trajectory.key}: {error}") from error


@dataclass(frozen=True)
class ProbeContext:
    """Hold the sequence that verifies weight updates, and its pictures as engines and learner take them."""

    tokens: tuple[int, ...]
    media: tuple[PromptImage, ...] = ()
    images: ImageInputs | None = None


def seeing_probe(tokens: Sequence[int], chat: ChatFormat, rng: np.random.Generator) -> ProbeContext:
    """Return a probe with a small picture, as an observation shows it, in the middle of `tokens`.

    An engine whose picture has other pixels, another place or other positions then disagrees with the learner at every
    update.

    Args:
        tokens: ids without image tokens.
        chat: the template of a policy that sees.
        rng: decides the pixels.
    """
    from PIL import Image

    assert chat.image_tokens is not None, "the policy does not see"
    pixels = rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data, grid = buffer.getvalue(), chat.grid(_WIDTH, _HEIGHT)
    middle = len(tokens) // 2
    shown, [(start, end)] = chat.observation(IMAGE_MARK, ended=False, grids=[grid])
    sha256 = reference(data, width=_WIDTH, height=_HEIGHT).sha256
    span = MediaSpan(start=middle + start, end=middle + end, sha256=sha256, grid=grid)
    context = (*tokens[:middle], *shown, *tokens[middle:])
    images = LedgerPictures(chat.image_tokens).inputs(context, [span], lambda _: data)
    return ProbeContext(context, (PromptImage(span=span, data=data),), images)
