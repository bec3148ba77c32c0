"""Likeness of pictures and texts by a dual encoder, such as CLIP or SigLIP, in this process.

Shape legend: B pairs of a batch, d dimensions of the common space.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor

from genevolve_ray.engines.picture_batches import BatchItem, PictureBatches, plain_picture

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_CHARS_OF_A_TOKEN = 64
"""Characters that a token has at most, by far: a longer text is cut before it is tokenized."""


@dataclass(frozen=True)
class Likeness:
    """Hold how like a picture and a text are.

    Attributes:
        cosine: of the angle between their embeddings, from -1 to 1.
        probability: that they belong together, by the sigmoid that the model was trained with; None for a model that was
            trained otherwise (CLIP).
        cut: whether the text was longer than the model reads.
    """

    cosine: float
    probability: float | None
    cut: bool


@dataclass(eq=False)
class _Pair(BatchItem[Likeness]):
    text: str
    picture: PillowImage


class ImageTextModel(PictureBatches[_Pair, Likeness]):
    """Embed pictures and texts with any model that transformers loads with AutoModel and that has both towers."""

    def __init__(self, model: str, *, key: str, device: str, dtype: str, batch_size: int) -> None:
        """Load the model, and try it on a plain picture.

        Args:
            model: a folder in Hugging Face layout, or a hub id.
            key: the setting that names the model, for messages.
            device: of torch.
            dtype: of the weights, by its name in torch.
            batch_size: most pairs that are computed at once.

        Raises:
            ValueError: naming the folder when it holds no usable model, processor or tokenizer.
        """
        super().__init__(
            model,
            key=key,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            processor=AutoProcessor,
            thread_name="image-text",
        )
        if not (hasattr(self._model, "get_image_features") and hasattr(self._model, "get_text_features")):
            raise ValueError(
                f"{key}={model!r} is a {type(self._model).__name__}, which has no towers for pictures and texts"
            )
        # A control token that is written in a text, such as <|endoftext|>, is plain letters.
        self._processor.tokenizer.split_special_tokens = True
        self._takes = set(inspect.signature(self._model.forward).parameters)
        positions = self._model.config.get_text_config().max_position_embeddings
        self._limit = min(int(positions), int(self._processor.tokenizer.model_max_length))
        self.sigmoid = hasattr(self._model, "logit_bias")
        """Whether the model gives probabilities."""
        # SigLIP has learned from texts that are padded to its limit, and reads others badly.
        self._padding: Any = "max_length" if self.sigmoid else True
        self._probe(_Pair("a picture", plain_picture()))

    async def compare(self, text: str, picture: PillowImage) -> Likeness:
        """Return the likeness of a picture in RGB and a text, computed together with other pairs that wait.

        Raises:
            InfraFailure: when the model cannot read one of them, gives no finite number, or lacks memory.
        """
        return await self._computed(_Pair(text, picture))

    @torch.inference_mode()
    def _compare(self, items: list[_Pair]) -> list[Likeness]:
        texts = [pair.text[: self._limit * _CHARS_OF_A_TOKEN] for pair in items]
        whole = self._processor.tokenizer(texts, verbose=False)["input_ids"]
        cut_B = [
            len(ids) > self._limit or text != pair.text for ids, text, pair in zip(whole, texts, items, strict=True)
        ]
        inputs = self._processor(
            text=texts,
            images=[pair.picture for pair in items],
            padding=self._padding,
            truncation=True,
            max_length=self._limit,
            return_tensors="pt",
        )
        out = self._model(**self._placed({name: value for name, value in inputs.items() if name in self._takes}))
        cosine_B = cosines(out.image_embeds, out.text_embeds)
        probability_B = out.logits_per_image.float().diagonal().sigmoid().tolist() if self.sigmoid else None
        return [
            Likeness(cosine, probability_B[i] if probability_B else None, cut_B[i]) for i, cosine in enumerate(cosine_B)
        ]


def cosines(one_B_d: torch.Tensor, other_B_d: torch.Tensor) -> list[float]:
    """Return the cosine of each row of one [B, d] with the same row of the other. Raises ValueError unless all are finite."""
    one_B_d, other_B_d = (torch.nn.functional.normalize(each.float(), dim=-1) for each in (one_B_d, other_B_d))
    cosine_B = (one_B_d * other_B_d).sum(dim=-1)
    if not cosine_B.isfinite().all():
        raise ValueError(f"the model gives cosines that are not finite: {cosine_B.tolist()}")
    return [min(max(cosine, -1.0), 1.0) for cosine in cosine_B.tolist()]
