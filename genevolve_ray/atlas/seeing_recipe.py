"""The shape of a small Qwen3-VL that a recipe trains from random weights, and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genevolve_ray.atlas.recipe_training import RecipeConfig
from genevolve_ray.atlas.tokenizer import VISION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_CONTROL = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
"""Names in the model's configuration of the tokens `VISION`."""


class SeeingRecipe(RecipeConfig):
    """Configure what recipes of models that see have besides: the pictures and the vision tower."""

    image_side: int = Field(default=64, ge=32)
    """Pixels of the side to which a picture is scaled."""
    patch_size: int = Field(default=16, ge=4)
    """Pixels of the side of a patch; two by two patches are one image token."""
    tower_width: int = Field(default=64, ge=32)
    tower_layers: int = Field(default=2, ge=1)

    @property
    def between(self) -> int | None:
        """Number of tokens between a picture and the one that it is compared with; None: pictures are not compared."""
        return None

    def new_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
        """Return a Qwen3-VL of this shape with random weights, the same for the same seed."""
        from genevolve_ray.learning.new_seeing import new_qwen3_vl

        known = tokenizer.get_vocab()
        return new_qwen3_vl(
            vocabulary=len(tokenizer),
            hidden_size=self.hidden_size,
            layers=self.layers,
            heads=self.heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            image_side=self.image_side,
            patch_size=self.patch_size,
            tower_width=self.tower_width,
            tower_layers=self.tower_layers,
            control={name: int(known[token]) for name, token in zip(_CONTROL, VISION, strict=True)},
            seed=seed,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            between=self.between,
        )

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Write a model of this shape to a folder in HF layout, image processor included."""
        from genevolve_ray.learning.new_seeing import write_processors
        from genevolve_ray.learning.policy import save_policy

        save_policy(model, tokenizer, folder)
        write_processors(folder, image_side=self.image_side, patch_size=self.patch_size)

    def write_shape(self, model: PreTrainedModel, folder: str | Path) -> None:
        """Write what tells the image tokens of the model: its configuration and its image processor."""
        from genevolve_ray.learning.new_seeing import write_processors

        model.config.save_pretrained(folder)
        write_processors(folder, image_side=self.image_side, patch_size=self.patch_size)
