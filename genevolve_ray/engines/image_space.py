"""Likeness of two pictures in the image space of a model: CLIP, SigLIP, DINOv2 or their kin, in this process.

Shape legend: B pairs of a batch, d dimensions of the image space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoImageProcessor

from genevolve_ray.engines.image_text import cosines
from genevolve_ray.engines.picture_batches import BatchItem, PictureBatches, plain_picture

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


@dataclass(eq=False)
class _Pictures(BatchItem[float]):
    picture: PillowImage
    truth: PillowImage


class ImageSpaceModel(PictureBatches[_Pictures, float]):
    """Embed pictures with any model that transformers loads with AutoModel and that gives one vector for a picture.

    That is the vector of `get_image_features` of a dual encoder, as its contrastive training compares it, else the
    `pooler_output` of a model that sees alone.
    """

    def __init__(self, model: str, *, key: str, device: str, dtype: str, batch_size: int) -> None:
        """Load the model, and try it on a plain picture.

        Args:
            model: a folder in Hugging Face layout, or a hub id.
            key: the setting that names the model, for messages.
            device: of torch.
            dtype: of the weights, by its name in torch.
            batch_size: most pairs that are computed at once.

        Raises:
            ValueError: naming the folder when it holds no usable image processor, or no model that embeds whole pictures.
        """
        super().__init__(
            model,
            key=key,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            processor=AutoImageProcessor,
            thread_name="image-space",
        )
        self._features = getattr(self._model, "get_image_features", None)
        if self._features is None and getattr(self._model, "main_input_name", "") != "pixel_values":
            raise ValueError(f"{key}={model!r} is a {type(self._model).__name__}, which has no tower for pictures")
        self._probe(_Pictures(plain_picture(), plain_picture()))

    async def compare(self, picture: PillowImage, truth: PillowImage) -> float:
        """Return the cosine of two pictures in RGB, from -1 to 1, computed together with other pairs that wait.

        Raises:
            InfraFailure: when the model cannot read one of them, gives no finite number, or lacks memory.
        """
        return await self._computed(_Pictures(picture, truth))

    @torch.inference_mode()
    def _compare(self, items: list[_Pictures]) -> list[float]:
        pictures = [pair.picture for pair in items] + [pair.truth for pair in items]
        inputs = self._placed(self._processor(images=pictures, return_tensors="pt"))
        found = (self._features or self._model)(**inputs)
        # Older releases of transformers returned the vectors themselves.
        vectors: Any = found if isinstance(found, torch.Tensor) else getattr(found, "pooler_output", None)
        # Some models have one vector for each patch or token.
        whole = isinstance(vectors, torch.Tensor) and vectors.shape[:1] == (len(pictures),) and vectors.ndim > 1
        if not whole or vectors[0].numel() != vectors.shape[1]:
            shape = list(getattr(vectors, "shape", ()))
            raise ValueError(
                f"it gives no vector for a whole picture (pooler_output), but {type(vectors).__name__} {shape}"
            )
        one_B_d, other_B_d = vectors.flatten(1).chunk(2)
        return cosines(one_B_d, other_B_d)
