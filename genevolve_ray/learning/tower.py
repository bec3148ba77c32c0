"""The frozen vision tower of a policy: each picture passes through it once a step, and its weights never change.

Shape legend: N image tokens of one picture, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from genevolve_ray.errors import GenevolveError
from genevolve_ray.learning.batch import ImageInputs, TowerPicture
from genevolve_ray.learning.lora import is_factor
from genevolve_ray.learning.policy import state_hash, vision_tower

_PATCHES = 1 << 14
"""Patches of one pass of the tower, which bounds the memory of its activations."""
_MIB = 1 << 20

Features = tuple[Tensor, ...]
"""Features [N, H] of one picture: those of its tokens, then those that early decoder layers add (deepstack)."""


class TowerFeatures:
    """Compute the features of pictures by a frozen tower, and keep them within a step.

    The rollouts of a group, their teacher and the reference then share one pass for each picture. Features carry no
    gradient, so the projectors must be frozen as well.
    """

    def __init__(self, models: Sequence[PreTrainedModel], limit_mib: int) -> None:
        """Start without features.

        Args:
            models: models with the same frozen tower; that of the first computes.
            limit_mib: the most MiB of features, 0 for none. Beyond it, pictures are computed in every pass: a cache
                that replaced its entries would lose each one before the next pass over the batch comes to it.
        """
        self._model: Any = models[0]
        tower = vision_tower(models[0])
        self._served = {id(model) for model in models} if tower is not None and limit_mib else set()
        # The rest of a sharded model may be elsewhere.
        self._device = torch.device("cpu") if tower is None else next(tower.parameters()).device
        self._limit, self._bytes = limit_mib * _MIB, 0
        self._kept: dict[str, Features] = {}
        self._kind: Any = None
        self._keeping = False
        self._one_at_a_time = Lock()
        self.computed = 0
        """Pictures that passed the tower since the start of the step."""

    def serves(self, model: PreTrainedModel) -> bool:
        """Return whether the features are those of this model, and are wanted."""
        return id(model) in self._served

    @contextmanager
    def step(self) -> Iterator[None]:
        """Keep features within this block."""
        self._keeping, self.computed = True, 0
        try:
            yield
        finally:
            self._keeping = False
            self._kept.clear()
            self._bytes = 0

    def outputs(self, images: ImageInputs) -> Any:
        """Return the output of the model's `get_image_features` for pictures, with kept features where there are some."""
        # Micro-batches side by side: the second finds what the first computes.
        with self._one_at_a_time:
            return self._outputs(images)

    def _outputs(self, images: ImageInputs) -> Any:
        places = [picture.sha256 or str(i) for i, picture in enumerate(images.pictures)]
        missing = {place: p for place, p in zip(places, images.pictures, strict=True) if place not in self._kept}
        fresh = dict(zip(missing, self._compute(list(missing.values())), strict=True))
        found = [fresh[place] if place in fresh else self._kept[place] for place in places]
        for place, picture in missing.items():
            if picture.sha256:
                self._keep(place, fresh[place])
        embeddings, *deep = zip(*found, strict=True)
        return self._kind(pooler_output=embeddings, **({"deepstack_features": deep} if deep else {}))

    def _keep(self, place: str, features: Features) -> None:
        size = sum(layer.nbytes for layer in features)
        if self._keeping and self._bytes + size <= self._limit:
            # A part of a larger tensor would keep all of it.
            self._kept[place] = tuple(layer.clone() for layer in features)
            self._bytes += size

    @torch.no_grad()
    def _compute(self, pictures: Sequence[TowerPicture]) -> list[Features]:
        """Return the features of each picture; several pictures share a pass of the tower."""
        self.computed += len(pictures)
        features: list[Features] = []
        for images in _passes(pictures):
            outputs = self._model.base_model.get_image_features(
                images.pixel_values.to(self._device), images.grid_thw.to(self._device), return_dict=True
            )
            self._kind = type(outputs)
            deep = getattr(outputs, "deepstack_features", None) or ()
            features += zip(outputs.pooler_output, *deep, strict=True)
        return features


def _passes(pictures: Sequence[TowerPicture]) -> Iterator[ImageInputs]:
    """Yield pictures in groups of at most `_PATCHES` patches; a larger picture is a group of its own."""
    group: list[TowerPicture] = []
    for picture in pictures:
        if group and sum(len(p.patches) for p in (*group, picture)) > _PATCHES:
            yield ImageInputs(tuple(group))
            group = []
        group.append(picture)
    if group:
        yield ImageInputs(tuple(group))


class TowerChanged(GenevolveError, RuntimeError):
    """Signal that a vision tower that must stay frozen is trained or has changed.

    Kept features, the reference and the engines' own caches would then belong to other weights.
    """


class FrozenTower:
    """Guard the weights of a vision tower, which no step may change; a model without vision has nothing to guard.

    Factors of an adapter on its projectors are not part of it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Hash the tower's weights as they are now."""
        tower = vision_tower(model)
        parameters = {} if tower is None else dict(tower.named_parameters())
        self._parameters = {name: p for name, p in parameters.items() if not is_factor(name)}
        self._digest = self._hash()

    def _hash(self) -> str:
        return state_hash(self._parameters) if self._parameters else ""

    def check_untrained(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that no weight of the tower can be trained. Raises TowerChanged naming one that can."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._parameters.items():
            if parameter.requires_grad or id(parameter) in trained:
                raise TowerChanged(f"the vision tower is frozen, but its weight {name} is in training")

    def check_unchanged(self, when: str) -> None:
        """Check that the weights are bit-equal to those at the start. Raises TowerChanged, which states `when`."""
        if self._hash() != self._digest:
            raise TowerChanged(f"the weights of the frozen vision tower differ from those at the start ({when})")
