"""The settings of all trainings of a setup from nothing: `genevolve small setup --from-nothing --set key=value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.records.base import Config
from genevolve_ray.small.teacher import ROWS
from genevolve_ray.small.training import cold_start, image_text, renderer
from genevolve_ray.small.training.image_text import ImageTextTraining
from genevolve_ray.small.training.renderer import RendererTraining


class SmallRowsConfig(Config):
    """Configure the conversations of the scripted teacher."""

    train: int = Field(default=ROWS["train"], ge=1)
    """Conversations to train on; `cold_start.max_rows` of them are drawn."""
    validation: int = Field(default=ROWS["validation"], ge=0)
    """Conversations about validation requests, which no training reads."""
    seed: int = Field(default=1, ge=0)
    """Seed of the errors of the teacher."""


class SmallTrainings(Config):
    """Configure what a setup from nothing trains.

    The defaults are a recipe of the same kind as that of the weights that ship, which their `provenance.json` records.
    """

    renderer: RendererTraining = Field(default_factory=lambda: renderer.RendererTraining())
    """The autoencoder and the denoiser."""
    image_text: ImageTextTraining = Field(default_factory=lambda: image_text.ImageTextTraining())
    """The image tower of the judges."""
    rows: SmallRowsConfig = SmallRowsConfig()
    """What the cold start learns from."""
    cold_start: SftRowsConfig = Field(default_factory=lambda: SftRowsConfig.model_validate(cold_start.SETTINGS))
    """The fine-tuning of the policy, by the keys of `genevolve sft`; some defaults are others than there. `lora` is needed."""

    @model_validator(mode="after")
    def _an_adapter(self) -> SmallTrainings:
        if self.cold_start.lora is None:
            raise ValueError(
                f"lora={self.cold_start.lora} of cold_start: the cold start of small trains an adapter; give keys"
            )
        return self


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with the default of every key that is not given, also inside of groups.

    The default of a group is not that of its class: the denoiser takes other steps than the autoencoder.
    """
    return _over(SmallTrainings().model_dump(mode="json"), given)


def _over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
