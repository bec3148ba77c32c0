"""Sentence embeddings from any model folder in HF layout, in this process.

Shape legend: B texts of a batch, T tokens, d dimensions of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.errors import MISREAD, InfraFailure
from genevolve_ray.experience.config import TransformersEmbedderConfig
from genevolve_ray.experience.embed import normalised
from genevolve_ray.models.hub import local_model

if TYPE_CHECKING:
    from torch import Tensor


class TransformersEmbedder:
    """Pool the last hidden states of a text model; texts that are longer than `max_tokens` are truncated.

    Padding is on the side that the model's tokenizer uses; pooling handles either side.
    """

    Config = TransformersEmbedderConfig

    def __init__(self, config: TransformersEmbedderConfig) -> None:
        """Load the model from its folder; nothing is downloaded.

        Raises:
            ValueError: naming the folder when it holds no usable model or tokenizer.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.config = config
        self.identity = f"transformers/1:{Path(config.model).name}:{config.pooling}:{config.max_tokens}:{config.dtype}"
        folder = local_model(config.model, "experience.embedder.transformers.model")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, config.dtype))
        except (OSError, ValueError) as error:
            raise ValueError(f"embedder.transformers.model={config.model!r} cannot be loaded: {error}") from error
        if self._tokenizer.pad_token_id is None:  # Masked anyway, so any token is suitable.
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.convert_ids_to_tokens(0)
        self._model = model.to(config.device).eval()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, d] with rows of length 1, computed in a thread of its own.

        Raises:
            InfraFailure: when the model gives a text no direction (it is not finite), or cannot read one.
        """
        try:
            return await asyncio.to_thread(self._embed, [self.config.prefix + text for text in texts])
        except (*MISREAD, RuntimeError) as error:
            raise InfraFailure(f"{self.identity}: {type(error).__name__}: {error}"[:300]) from error

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        size = self.config.batch_size
        batches = [self._batch(texts[i : i + size]) for i in range(0, len(texts), size)]
        if not batches:
            return np.zeros((0, int(self._model.config.hidden_size)), dtype=np.float32)
        return normalised(np.concatenate(batches))

    def _batch(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        ).to(self.config.device)
        if tokens["input_ids"].shape[1] == 0:  # Only empty texts, and a tokenizer that adds no special tokens.
            blank = torch.zeros((len(texts), 1), dtype=torch.long, device=self.config.device)
            tokens = {"input_ids": blank, "attention_mask": blank}
        mask_B_T = tokens["attention_mask"]
        # A row without any token would have nothing to attend to: its padding represents the empty text.
        mask_B_T = torch.where(mask_B_T.sum(dim=1, keepdim=True) == 0, torch.ones_like(mask_B_T), mask_B_T)
        with torch.inference_mode():
            hidden_B_T_d = self._model(input_ids=tokens["input_ids"], attention_mask=mask_B_T).last_hidden_state
        pooled_B_d = pool(hidden_B_T_d.float(), mask_B_T, self.config.pooling)
        return np.asarray(pooled_B_d.cpu().numpy(), dtype=np.float32)


def pool(hidden_B_T_d: Tensor, mask_B_T: Tensor, pooling: str) -> Tensor:
    """Return one vector per text, [B, d], from hidden states; `mask_B_T` is 0 on padding, on either side."""
    import torch

    if pooling == "mean":
        weight_B_T_1 = mask_B_T.unsqueeze(-1).to(hidden_B_T_d.dtype)
        return (hidden_B_T_d * weight_B_T_1).sum(dim=1) / weight_B_T_1.sum(dim=1)
    places_T = torch.arange(mask_B_T.shape[1], device=mask_B_T.device)
    last_B = (places_T * mask_B_T).argmax(dim=1)
    return hidden_B_T_d[torch.arange(len(last_B), device=last_B.device), last_B]
