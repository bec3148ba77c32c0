"""Likeness of pictures and texts by a dual encoder, such as CLIP or SigLIP, in this process.

Shape legend: B pairs of a batch, d dimensions of the common space.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel, AutoProcessor

from genevolve_ray.errors import MISREAD, InfraFailure
from genevolve_ray.models.hub import local_model
from genevolve_ray.models.image_processor import check_torchvision

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
class _Pair:
    text: str
    picture: PillowImage
    likeness: Likeness | None = None


class ImageTextModel:
    """Embed pictures and texts with any model that transformers loads with AutoModel and that has both towers.

    Calls that arrive while a batch is computed form the next one.
    """

    def __init__(self, model: str, *, key: str, device: str, dtype: str, batch_size: int) -> None:
        """Load the model.

        Args:
            model: a folder in Hugging Face layout, or a hub id.
            key: the setting that names the model, for messages.
            device: of torch.
            dtype: of the weights, by its name in torch.
            batch_size: most pairs that are computed at once.

        Raises:
            ValueError: naming the folder when it holds no usable model, processor or tokenizer.
        """
        folder = local_model(model, key)
        check_torchvision(folder)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            found: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise ValueError(f"{key}={model!r} cannot be loaded: {error}") from error
        if not (hasattr(found, "get_image_features") and hasattr(found, "get_text_features")):
            raise ValueError(f"{key}={model!r} is a {type(found).__name__}, which has no towers for pictures and texts")
        # A control token that is written in a text, such as <|endoftext|>, is plain letters.
        self._processor.tokenizer.split_special_tokens = True
        self._model = found.to(device).eval().requires_grad_(False)
        self._takes = set(inspect.signature(self._model.forward).parameters)
        self._device, self._batch_size = device, batch_size
        positions = self._model.config.get_text_config().max_position_embeddings
        self._limit = min(int(positions), int(self._processor.tokenizer.model_max_length))
        self.sigmoid = hasattr(self._model, "logit_bias")
        """Whether the model gives probabilities."""
        # SigLIP has learned from texts that are padded to its limit, and reads others badly.
        self._padding: Any = "max_length" if self.sigmoid else True
        # Two threads use it, by single operations that are atomic.
        self._waiting: OrderedDict[_Pair, None] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, "image-text")

    async def compare(self, text: str, picture: PillowImage) -> Likeness:
        """Return the likeness of a picture in RGB and a text, computed together with other pairs that wait.

        Raises:
            InfraFailure: when the model cannot read one of them, gives no finite number, or lacks memory.
        """
        pair = _Pair(text, picture)
        self._waiting[pair] = None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._likeness, pair)
        except (*MISREAD, RuntimeError) as error:
            raise InfraFailure(f"{type(error).__name__}: {error}"[:300]) from error
        finally:
            # A call that was cancelled never has its turn.
            self._waiting.pop(pair, None)

    async def aclose(self) -> None:
        """Stop the thread of the model."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _likeness(self, pair: _Pair) -> Likeness:
        """Return the likeness of a pair: what a batch before has left, or that of a new batch."""
        self._waiting.pop(pair, None)
        if pair.likeness is None:
            batch = [pair, *self._others()]
            try:
                found = self._compare(batch)
            except (*MISREAD, RuntimeError):
                if len(batch) == 1:
                    raise
                # One of the others may be to blame, or their number: each then has its own turn.
                found = self._compare([pair])
            for one, likeness in zip(batch, found, strict=False):
                one.likeness = likeness
        assert pair.likeness is not None
        return pair.likeness

    def _others(self) -> list[_Pair]:
        """Take further pairs that wait, up to a full batch."""
        taken: list[_Pair] = []
        while len(taken) < self._batch_size - 1:
            try:
                taken.append(self._waiting.popitem(last=False)[0])
            except KeyError:
                break
        return taken

    @torch.inference_mode()
    def _compare(self, pairs: list[_Pair]) -> list[Likeness]:
        texts = [pair.text[: self._limit * _CHARS_OF_A_TOKEN] for pair in pairs]
        whole = self._processor.tokenizer(texts, verbose=False)["input_ids"]
        cut_B = [
            len(ids) > self._limit or text != pair.text for ids, text, pair in zip(whole, texts, pairs, strict=True)
        ]
        inputs = self._processor(
            text=texts,
            images=[pair.picture for pair in pairs],
            padding=self._padding,
            truncation=True,
            max_length=self._limit,
            return_tensors="pt",
        ).to(self._device)
        out = self._model(**{name: value for name, value in inputs.items() if name in self._takes})
        image_B_d = torch.nn.functional.normalize(out.image_embeds.float(), dim=-1)
        text_B_d = torch.nn.functional.normalize(out.text_embeds.float(), dim=-1)
        cosine_B = (image_B_d * text_B_d).sum(dim=-1).tolist()
        probability_B = out.logits_per_image.float().diagonal().sigmoid().tolist() if self.sigmoid else None
        if not all(map(torch.isfinite, torch.tensor(cosine_B))):
            raise ValueError(f"the model gives cosines that are not finite: {cosine_B}")
        return [
            Likeness(min(max(cosine, -1.0), 1.0), probability_B[i] if probability_B else None, cut_B[i])
            for i, cosine in enumerate(cosine_B)
        ]
